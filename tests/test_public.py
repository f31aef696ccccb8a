"""The public names, their examples, and the cost of importing them."""

import ast
import dataclasses
import doctest
import importlib
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import tiny

import metajax

ROOT = Path(__file__).parents[1]
HEAVY = ("jax", "flax", "transformers", "datasets", "orbax", "sklearn", "scipy", "torch")


def test_all_is_sorted_and_complete():
    in_modules = [name for names in metajax._MODULES.values() for name in names]
    tree = ast.parse(Path(metajax.__file__).read_text())
    block = next(
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    for_type_checkers = {(node.module, alias.name) for node in block.body for alias in node.names}
    assert metajax.__all__ == sorted(metajax.__all__)
    assert metajax.__all__ == sorted(in_modules)
    assert for_type_checkers == {
        (f"metajax.{module}", name) for module, names in metajax._MODULES.items() for name in names
    }


# Each public name with the package that it is imported from.
PUBLIC = [
    (package, name)
    for package in ("metajax", "metajax.data", "metajax.models")
    for name in importlib.import_module(package).__all__
] + [
    (module.__name__, name)
    for module in (metajax.lora, metajax.tree)
    for name, value in vars(module).items()
    if inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] != "_"
]


def lacking(package, name):
    """Return what a public name lacks: existence, an example that runs, documented arguments."""
    module = importlib.import_module(package)
    value = getattr(module, name)
    if name not in dir(module):
        yield "is not in dir()"
    if typing.get_origin(value) is not None:
        return  # A type alias can have no docstring.
    if ">>> " not in value.__doc__:
        yield "show an example that runs"
    takes = not isinstance(value, type) and inspect.signature(value).parameters
    takes = takes or hasattr(value, "_fields") or dataclasses.is_dataclass(value)
    if takes and not re.search(r"^ *(Args|Attributes):$", value.__doc__, re.M):
        yield "say what goes in, with shapes"


def test_every_public_name_is_there_and_documented():
    assert len(PUBLIC) > 60
    wrong = [
        f"{package}.{name}: {what}" for package, name in PUBLIC for what in lacking(package, name)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_reference_has_every_public_name():
    pages = [path.read_text() for path in (ROOT / "docs/reference").glob("*.md")]
    shown = {name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.M)}
    homes = {
        name: {
            f"metajax.{module}.{name}",
            f"{getattr(metajax, name).__module__}.{getattr(metajax, name).__name__}",
        }
        for module, names in metajax._MODULES.items()
        for name in names
    }
    unseen = {name for name, places in homes.items() if not places & shown}
    assert not unseen, "add them to a page of docs/reference"
    for package in ("metajax.models", "metajax.data"):
        last = {name.rpartition(".")[2] for name in shown if name.startswith(package)}
        assert last == set(importlib.import_module(package).__all__)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'mamal'"):
        _ = metajax.mamal


LIGHT = f"""
import sys
import metajax
assert callable(metajax.data.load_tasks)
import metajax.cli.main
heavy = set({HEAVY}) & sys.modules.keys()
assert not heavy, heavy
"""


def test_importing_loads_nothing_heavy():
    """A subpackage needs no separate import."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    for name, module in metajax._WHOLE.items():  # Python asks for them like this.
        assert metajax.__getattr__(name) is sys.modules[module]


LIGHT_ESTIMATOR = """
import sys
import metajax
assert metajax.FewShotClassifier
heavy = {"orbax", "transformers", "datasets", "torch"} & sys.modules.keys()
assert not heavy, heavy
"""


def test_importing_the_estimator_loads_no_other_framework():
    done = subprocess.run(
        [sys.executable, "-c", LIGHT_ESTIMATOR], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


FIT = """
import sys
import metajax
classifier = metajax.FewShotClassifier(sys.argv[1], method="linear")
classifier.fit(["w1 w2", "w3"], ["+", "-"]).predict(["w1"])
heavy = {"orbax", "datasets"} & sys.modules.keys()
assert not heavy, heavy
"""


@pytest.mark.slow
def test_fit_imports_neither_orbax_nor_datasets(tmp_path):
    command = [sys.executable, "-c", FIT, tiny.write_model(tmp_path / "bert")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "metajax").rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.xdist_group("docs")  # They compile similar programs.
@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
