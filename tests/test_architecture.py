"""Arrows between modules go one way; files and functions stay short."""

import ast
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "metajax").rglob("*.py"))
MAX_LINES = 320
# Of the functions: lines of a body without its docstring, and functions within one.
MEDIAN_BODY, MAX_BODY, MAX_NESTED = 8, 60, 3

CONTRACTS = {"errors", "reading", "types", "tree", "dtypes", "platforms"}
LIBRARY = {*CONTRACTS, "algorithms", "training", "models", "data"}
# What each part may import besides itself.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "platforms": set(),
    "reading": {"errors"},
    "tree": {"types"},
    "dtypes": {"types"},
    "algorithms": CONTRACTS,
    "training": {*CONTRACTS, "algorithms"},
    "models": {*CONTRACTS, "algorithms"},
    "data": CONTRACTS,
    "config": {"errors", "reading", "algorithms"},  # Of these, the registry.
    "runs": {*LIBRARY, "config"},
    "reporting": {*LIBRARY, "config", "runs"},
    "commands": {*LIBRARY, "config", "runs", "reporting"},
    "estimator": {*CONTRACTS, "data", "models", "config", "runs", "commands"},
    "regressor": {*CONTRACTS, "data", "models", "config", "runs"},
    "cli": {"errors", "reading", "config", "training", "runs", "commands"},
    "__main__": {"cli"},
}
# Within the algorithms: a family may not import another.
FAMILIES = {"maml", "reptile", "meta_sgd", "imaml", "prototypes", "supervised", "test_time"}
WITHIN_ALGORITHMS: dict[str, set[str]] = {
    "registry": set(),
    "checks": set(),
    "lora": set(),
    "clipping": set(),
    "hypergrad": set(),
    "scans": set(),
    "streams": {"hypergrad"},
    "inner_loop": {"checks", "hypergrad", "scans", "streams"},
    "adaptation": {"checks", "inner_loop", "hypergrad", "streams"},
    **{name: {"checks", "inner_loop", "hypergrad", "streams", "adaptation"} for name in FAMILIES},
}


def part_of(path):
    """`metajax/data/text.py` belongs to data, `metajax/tree.py` to tree."""
    return path.relative_to(ROOT / "metajax").parts[0].removesuffix(".py")


def name_of(path):
    return str(path.relative_to(ROOT))


def imported_modules(path):
    """Yield the lines of a file that import from metajax, and the imported modules.

    There are no relative imports: see ruff's TID252.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "metajax" and rest:
                yield node.lineno, rest.split(".")


def test_arrows_go_one_way():
    parts = {path: part_of(path) for path in FILES if part_of(path) != "__init__"}
    unknown = {part for part in parts.values() if part not in ARROWS}
    assert not unknown, "say in ARROWS what they may import"
    wrong = [
        f"{name_of(path)}:{line}: {part} may not import {target}"
        for path, part in parts.items()
        for line, (target, *_) in imported_modules(path)
        if target not in (part, *ARROWS[part])
    ]
    assert not wrong, "\n".join(wrong)


def test_a_family_of_algorithms_imports_no_other():
    files = {path.stem: path for path in FILES if part_of(path) == "algorithms"}
    del files["__init__"]
    assert files.keys() == WITHIN_ALGORITHMS.keys()
    wrong = [
        f"{name_of(path)}:{line}: {name} may not import {target[1]}"
        for name, path in files.items()
        for line, target in imported_modules(path)
        if target[0] == "algorithms" and target[1] not in WITHIN_ALGORITHMS[name]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_arrows_have_no_cycle():
    for arrows in (ARROWS, WITHIN_ALGORITHMS):
        left = dict(arrows)
        while left:
            free = {part for part, targets in left.items() if not targets & left.keys()}
            assert free, f"a cycle among {sorted(left)}"
            left = {part: targets for part, targets in left.items() if part not in free}


def test_files_stay_short():
    lines = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    long = {name: count for name, count in lines.items() if count > MAX_LINES}
    assert not long, "they want to be two files each"


def test_choices_follow_the_platform_that_is_compiled_for():
    """Nothing but `metajax.platforms` asks for JAX's default backend."""
    asking = [name_of(path) for path in FILES if "default_backend" in path.read_text()]
    assert asking == ["metajax/platforms.py"]


def functions_in(node):
    """Every function below a node, methods and nested functions included."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [each for each in ast.walk(node) if isinstance(each, kinds) and each is not node]


FUNCTIONS = [
    (f"{name_of(path)}:{node.lineno}: {node.name}", node)
    for path in FILES
    for node in functions_in(ast.parse(path.read_text()))
]


def body_lines(function):
    """How many lines a function's body has, without its docstring."""
    body = function.body if ast.get_docstring(function) is None else function.body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def is_any(annotation):
    """Whether an annotation says nothing: `Any`, or none at all."""
    return annotation is None or ast.unparse(annotation) in ("Any", "typing.Any", "object")


def test_functions_stay_short():
    lines = {where: body_lines(node) for where, node in FUNCTIONS}
    long = [f"{where} has {count} lines" for where, count in lines.items() if count > MAX_BODY]
    assert not long, "\n".join([*long, f"split them: a body has at most {MAX_BODY} lines"])
    assert statistics.median(lines.values()) <= MEDIAN_BODY, "most functions are too long"


def test_few_functions_are_nested():
    nested = {where: len(functions_in(node)) for where, node in FUNCTIONS}
    deep = [f"{where} has {count}" for where, count in nested.items() if count > MAX_NESTED]
    assert not deep, "\n".join(
        [*deep, f"move some to the module: a function has at most {MAX_NESTED} within it"]
    )


def test_keyword_arguments_of_public_functions_have_types():
    untyped = [
        f"{where} takes **{node.args.kwarg.arg}: Any; name its keys in a TypedDict (`Unpack`)"
        for where, node in FUNCTIONS
        if not node.name.startswith("_") and node.args.kwarg is not None
        if is_any(node.args.kwarg.annotation)
    ]
    assert not untyped, "\n".join(untyped)
