"""Arrows between modules go one way; files and their public parts stay small and explained."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "metajax").rglob("*.py"))
MAX_LINES = 320

CONTRACTS = {"errors", "reading", "types", "tree"}
ALGORITHMS = {"maml", "reptile", "meta_sgd", "implicit", "metric", "supervised"}
LEARNING = {"inner", "adaptation", *ALGORITHMS, "outer", "parallel", "evaluate"}
# What each part may import besides itself. An algorithm may not even import another.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "reading": {"errors"},
    "tree": {"types"},
    "lora": CONTRACTS,
    "arithmetic": CONTRACTS,
    "hypergrad": CONTRACTS,
    "inner": {*CONTRACTS, "hypergrad"},
    "adaptation": {*CONTRACTS, "inner", "hypergrad"},
    **{name: {*CONTRACTS, "inner", "hypergrad", "adaptation"} for name in ALGORITHMS},
    "outer": {*CONTRACTS, "inner", "hypergrad", "adaptation", *ALGORITHMS},
    "parallel": {*CONTRACTS, "outer"},
    "evaluate": {*CONTRACTS, "outer"},
    "optimizer": CONTRACTS,
    "checkpoint": {*CONTRACTS, "outer"},
    "report": {*CONTRACTS, "evaluate"},
    "models": CONTRACTS,
    "data": CONTRACTS,
    "stages": {
        "lora",
        *CONTRACTS,
        *LEARNING,
        "arithmetic",
        "optimizer",
        "checkpoint",
        "report",
        "models",
        "data",
    },
    "arguments": {"errors", "stages"},
    "terminal": {"errors"},
    "cli": {"errors", "stages", "arguments", "terminal"},
    "__main__": {"cli"},
}


def part_of(path):
    """`metajax/data/text.py` belongs to data, `metajax/tree.py` to tree."""
    return path.relative_to(ROOT / "metajax").parts[0].removesuffix(".py")


def name_of(path):
    return str(path.relative_to(ROOT))


def imported_parts(path):
    """The parts of metajax that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: use absolute imports"
            # `from metajax import x` imports the part x, any other the part named after metajax.
            names = (
                [f"metajax.{alias.name}" for alias in node.names]
                if node.module == "metajax"
                else [node.module]
            )
        for name in names:
            package, _, rest = name.partition(".")
            if package == "metajax" and rest:
                yield node.lineno, rest.split(".")[0]


@pytest.mark.parametrize(
    "path", [path for path in FILES if part_of(path) != "__init__"], ids=name_of
)
def test_arrows_go_one_way(path):
    part = part_of(path)
    assert part in ARROWS, f"{name_of(path)}: say in ARROWS what it may import"
    for line, target in imported_parts(path):
        assert target == part or target in ARROWS[part], (
            f"{name_of(path)}:{line}: {part} may not import {target}"
        )


def test_the_arrows_have_no_cycle():
    left = dict(ARROWS)
    while left:
        free = {part for part, targets in left.items() if not targets & left.keys()}
        assert free, f"a cycle among {sorted(left)}"
        left = {part: targets for part, targets in left.items() if part not in free}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{name_of(path)} has {lines} lines: it wants to be two files"


def undocumented(node, prefix=""):
    """Names of public functions and classes without a docstring, methods included."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if child.name.startswith("_"):
            continue
        if ast.get_docstring(child) is None:
            yield prefix + child.name
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f"{prefix}{child.name}.")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_everything_public_is_documented(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{name_of(path)} does not say what it is"
    assert not list(undocumented(tree))
