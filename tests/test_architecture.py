"""Arrows between modules go one way, and files stay short."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "metajax").rglob("*.py"))
MAX_LINES = 320

CONTRACTS = {"errors", "reading", "types", "tree", "checks", "dtypes"}
ALGORITHMS = {"maml", "reptile", "meta_sgd", "implicit", "metric", "supervised"}
LEARNING = {"inner", "adaptation", *ALGORITHMS, "outer", "parallel", "evaluate"}
# What each part may import besides itself. An algorithm may not even import another.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "reading": {"errors"},
    "tree": {"types"},
    "dtypes": {"types"},
    "checks": {"types", "tree"},
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
    "directories": set(),
    "checkpoint": {*CONTRACTS, "outer", "directories"},
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
    "arguments": {"errors", "reading", "stages"},
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
    """The lines of a file that import from metajax, wherever they stand, and the parts they do.

    Relative imports there are none: ruff's TID252.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from metajax import x` imports the part x, any other the part named after metajax.
            names = (
                [f"metajax.{alias.name}" for alias in node.names]
                if node.module == "metajax"
                else [node.module or ""]
            )
        for name in names:
            package, _, rest = name.partition(".")
            if package == "metajax" and rest:
                yield node.lineno, rest.split(".")[0]


def test_arrows_go_one_way():
    parts = {path: part_of(path) for path in FILES if part_of(path) != "__init__"}
    unknown = {part for part in parts.values() if part not in ARROWS}
    assert not unknown, "say in ARROWS what they may import"
    wrong = [
        f"{name_of(path)}:{line}: {part} may not import {target}"
        for path, part in parts.items()
        for line, target in imported_parts(path)
        if target not in (part, *ARROWS[part])
    ]
    assert not wrong, "\n".join(wrong)


def test_the_arrows_have_no_cycle():
    left = dict(ARROWS)
    while left:
        free = {part for part, targets in left.items() if not targets & left.keys()}
        assert free, f"a cycle among {sorted(left)}"
        left = {part: targets for part, targets in left.items() if part not in free}


def test_files_stay_short():
    lines = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    long = {name: count for name, count in lines.items() if count > MAX_LINES}
    assert not long, "they want to be two files each"
