"""The public names, their examples, and how little importing them costs."""

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
    if inspect.isfunction(value) and value.__module__ == module.__name__
]


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_every_public_name_is_there_and_documented(package, name):
    module = importlib.import_module(package)
    value = getattr(module, name)
    # A type alias can have no docstring.
    if typing.get_origin(value) is None:
        assert ">>> " in value.__doc__, f"{package}.{name}: show an example that runs"
        takes = not isinstance(value, type) and inspect.signature(value).parameters
        if takes or hasattr(value, "_fields") or dataclasses.is_dataclass(value):
            explained = re.search(r"^ *(Args|Attributes):$", value.__doc__, re.M)
            assert explained, f"{package}.{name}: say what goes in, with shapes"
    assert name in dir(module)


def test_the_reference_has_every_public_name():
    pages = [path.read_text() for path in (ROOT / "docs/reference").glob("*.md")]
    shown = {name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.M)}
    for module, names in metajax._MODULES.items():
        for name in names:
            homes = {f"metajax.{module}.{name}", f"{getattr(metajax, name).__module__}.{name}"}
            assert homes & shown, f"{name}: add it to a page of docs/reference"
    for package in ("metajax.models", "metajax.data"):
        last = {name.rpartition(".")[2] for name in shown if name.startswith(package)}
        assert last == set(importlib.import_module(package).__all__)


def test_functions_keep_their_names_when_their_modules_are_imported():
    for name in ("maml", "evaluate", "supervised"):
        importlib.import_module(f"metajax.{name}")
        assert callable(getattr(metajax, name))


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'mamal'"):
        _ = metajax.mamal


def test_subpackages_need_no_import_of_their_own():
    code = "import metajax; print(metajax.data.load_tasks, metajax.models.Bert)"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)


@pytest.mark.parametrize("module", ["metajax", "metajax.cli"])
def test_importing_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*[m for m in {HEAVY} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert loaded.stdout.strip() == ""


WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "metajax").rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
