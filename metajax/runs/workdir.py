"""A stage's workdir: what the run is, whether it may resume, and its metrics.

run.json          the record: see record.py
config.yaml       the settings again, for `--config`
model/            the Hugging Face config and tokenizer
checkpoints/      Orbax
metrics.jsonl     one JSON object a step
results.json      what the stage reports at its end
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from metajax.config.fields import flag
from metajax.config.files import write_config
from metajax.errors import InputError, reason_of
from metajax.reading import parse_json
from metajax.runs.paths import children, in_bucket, staged_upload, to_path, write_object
from metajax.runs.record import SETTINGS, identity, read_record, recorded

_log = logging.getLogger("metajax")
_KEPT = ("run.json", "config.yaml", "metrics.jsonl", "results.json", "model", "checkpoints")


class Run(NamedTuple):
    """A run in its workdir."""

    path: Path
    record: dict[str, Any]

    @property
    def checkpoints(self) -> Path:
        """The directory of the Orbax checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The directory of the Hugging Face config and the tokenizer."""
        return self.path / "model"


def cache_directory() -> Path:
    """Where what can be made again is kept between runs: `$XDG_CACHE_HOME/metajax`."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "metajax"
    home = os.path.expanduser("~")
    if home == "~":  # So it stays for a user without one, as in some containers.
        return Path(tempfile.gettempdir(), f"metajax-{os.getuid()}")
    return Path(home, ".cache", "metajax")


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    if in_bucket(path):
        write_object(path, text.encode())
        return
    # Always under the same name: what a killed run leaves, the next one writes over.
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def open_run(workdir: str, record: dict[str, Any]) -> Run:
    """Open the run in a workdir, or check that a new one can begin there.

    Writes nothing: `begin` does, once all input has been read.

    Raises:
        InputError: the workdir is not writable, holds something else, or a run with other
            settings; the message names the first difference.
    """
    path = to_path(workdir)
    if not in_bucket(path):
        check_writable(path)
    known = read_record(path)
    if known is None:
        # A run killed before its first file was whole leaves a hidden one.
        if all(child.name.startswith(".") for child in children(path)):
            return Run(path, record)
        # Another host may have begun it in the meantime.
        known = read_record(path)
    if known is None:
        raise InputError(f"{path}: is not empty and holds no run: name a new --workdir")
    if known["stage"] != record["stage"]:
        raise InputError(
            f"{path}: belongs to a {known['stage']} run, not {record['stage']}: "
            "name another --workdir"
        )
    difference = _difference(known, record)
    if difference:
        raise InputError(
            f"{path}: holds a run with other settings ({difference}): repeat them to resume, "
            "or name another --workdir"
        )
    return Run(path, known)


def check_writable(path: Path) -> None:
    """Checks that a directory can be made, or written to.

    Raises:
        InputError: it cannot.
    """
    existing = path
    while not existing.exists() and existing != existing.parent:
        if existing.is_symlink():
            target = os.readlink(existing)
            raise InputError(f"{existing}: links to {target}, which does not exist: make it")
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{existing}: is not a directory: name another")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{existing}: is not writable: name another directory")


def writable(path: str, *inputs: str) -> Path:
    """A path to write a file to.

    Args:
        path: its name.
        *inputs: what is read, which it must not be.

    Raises:
        InputError: its directory does not exist or cannot be written to, or it is no plain file, an
            input or what keeps a run.
    """
    target = Path(path)
    problem = None
    if not target.parent.is_dir():
        problem = "its directory does not exist"
    elif target.exists() and any(os.path.exists(name) and target.samefile(name) for name in inputs):
        raise InputError(f"{path}: is read by this command: name another file")
    elif _belongs_to_run(target):
        problem = "belongs to a run"
    elif target.exists() and not target.is_file():
        problem = "is a directory" if target.is_dir() else "is not a plain file"
    elif not os.access(target.parent, os.W_OK | os.X_OK):
        problem = "its directory is not writable"
    if problem:
        raise InputError(f"{path}: {problem}: name a file in another directory")
    return target


def _belongs_to_run(path: Path) -> bool:
    """Whether a run keeps, or would keep, something of its own under this name."""
    path = path.absolute()
    kept = [path, *path.parents]
    return any(p.name in _KEPT and p.with_name("run.json").is_file() for p in kept)


def _difference(known: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Return the first setting, file or weight that affects results and has changed, or None."""
    for setting in dataclasses.fields(SETTINGS[new["stage"]]):
        old_value = recorded(known, setting.name)
        value = new["settings"][setting.name]
        if setting.metadata["affects_results"] and old_value != value:
            return f"{flag(setting.name)} was {old_value}, is now {value}"
    # Files may have moved: what they are to the run counts, and what they hold.
    old_files, files = _contents(known["data"]), _contents(new["data"])
    for name, content in zip(new["data"], files):
        if content not in old_files:
            return f"the contents of {name} have changed"
    if old_files != files:
        return "the files given are fewer, or in another order"
    if identity(known["parent"]) != identity(new["parent"]):
        return "--model names other weights"
    return None


def _contents(data: dict[str, str]) -> list[tuple[str, str]]:
    """The option and the hash of each file."""
    return [(name.split()[0], digest) for name, digest in data.items()]


def begin(run: Run, save_model: Callable[[Path], None]) -> None:
    """Makes the workdir of a new run.

    Args:
        run: from `open_run`.
        save_model: `(directory) -> None`, writes the tokenizer and, last, `config.json`.
    """
    if not in_bucket(run.path):  # Which has no directories to make.
        run.path.mkdir(parents=True, exist_ok=True)
    if not (run.path / "run.json").is_file():
        write_atomically(run.path / "run.json", json.dumps(run.record, indent=2) + "\n")
    if not (run.path / "config.yaml").is_file():
        write_atomically(run.path / "config.yaml", write_config(run.record["settings"]))
    if not (run.model / "config.json").is_file():
        with staged_upload(run.model, last="config.json") as directory:
            save_model(directory)


@contextlib.contextmanager
def locked(run: Run) -> Iterator[None]:
    """Keeps other processes out of a run that has begun; a killed one lets go by itself.

    In a bucket nothing can be locked, and nobody is kept out.

    Raises:
        InputError: another process is at work in the workdir.
    """
    if in_bucket(run.path):
        yield
        return
    with (run.path / "run.json").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{run.path}: another process is running there: wait for it, or name another "
                "--workdir"
            ) from None
        except OSError as error:  # Some file systems of a network have no locks.
            _log.warning(
                "%s: cannot be locked (%s): keep other runs out of it", run.path, reason_of(error)
            )
        yield


def write_results(run: Run, results: dict[str, Any]) -> None:
    """Writes what the stage reports at its end."""
    write_atomically(run.path / "results.json", json.dumps(results, indent=2) + "\n")


def read_results(workdir: Path) -> dict[str, Any] | None:
    """What a run that has ended wrote; None of one that has not.

    Raises:
        InputError: it is no JSON object.
    """
    path = workdir / "results.json"
    if not path.is_file():
        return None
    results = read_json(path)
    if not isinstance(results, dict):
        raise InputError(f"{path}: is not a run's results: restore it from a backup")
    return results


def read_json(path: Path) -> Any:
    """What a stage wrote as JSON.

    Raises:
        InputError: it is damaged.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{path}: is not JSON: restore it from a backup") from None
