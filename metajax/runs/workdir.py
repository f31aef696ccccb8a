"""The working directory of a run: its files, and whether a run may resume there.

- `run.json`: the record; see record.py.
- `config.yaml`: the settings, for `--config`.
- `model/`: the Hugging Face config and tokenizer.
- `checkpoints/`: Orbax checkpoints.
- `metrics.jsonl`: one JSON object per step.
- `results.json`: the results of a finished run.
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
    """A run and its working directory."""

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
    """Return the directory of caches: `$XDG_CACHE_HOME/metajax` or `~/.cache/metajax`."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "metajax"
    home = os.path.expanduser("~")
    if home == "~":  # In some containers the user has no home.
        return Path(tempfile.gettempdir(), f"metajax-{os.getuid()}")
    return Path(home, ".cache", "metajax")


def write_atomically(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    if in_bucket(path):
        write_object(path, text.encode())
        return
    # Always the same name: the next run overwrites what a killed run left.
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def open_run(workdir: str, record: dict[str, Any]) -> Run:
    """Open the run in a working directory, or check that a new one can start there.

    This writes nothing. `begin` writes the first files, after all input has been read.

    Raises:
        InputError: the directory is not writable, or has other files or a run with other settings.
            The message names the first difference.
    """
    path = to_path(workdir)
    if not in_bucket(path):
        check_writable(path)
    known = read_record(path)
    if known is None:
        # A run that was killed during its first write leaves a hidden file.
        if all(child.name.startswith(".") for child in children(path)):
            return Run(path, record)
        # Another host may have started the run in the meantime.
        known = read_record(path)
    if known is None:
        raise InputError(f"{path}: is not empty and has no run; give a new --workdir")
    if known["stage"] != record["stage"]:
        raise InputError(
            f"{path}: belongs to a {known['stage']} run, not to {record['stage']}; "
            "give another --workdir"
        )
    difference = _difference(known, record)
    if difference:
        raise InputError(
            f"{path}: has a run with other settings ({difference}); use the same settings "
            "to resume, or give another --workdir"
        )
    return Run(path, known)


def check_writable(path: Path) -> None:
    """Check that a directory can be created or written to.

    Raises:
        InputError: it cannot.
    """
    existing = path
    while not existing.exists() and existing != existing.parent:
        if existing.is_symlink():
            target = os.readlink(existing)
            raise InputError(f"{existing}: links to {target}, which does not exist; create it")
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{existing}: is not a directory; give another")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{existing}: is not writable; give another directory")


def writable(path: str, *inputs: str) -> Path:
    """Check that a file can be written, and return its path.

    Args:
        path: the path.
        *inputs: files that the command reads, and must not overwrite.

    Raises:
        InputError: the directory does not exist or is not writable, or the path is not a plain
            file, is an input, or belongs to a run.
    """
    target = Path(path)
    problem = None
    if not target.parent.is_dir():
        problem = "its directory does not exist"
    elif target.exists() and any(os.path.exists(name) and target.samefile(name) for name in inputs):
        raise InputError(f"{path}: is read by this command; give another file")
    elif _belongs_to_run(target):
        problem = "belongs to a run"
    elif target.exists() and not target.is_file():
        problem = "is a directory" if target.is_dir() else "is not a plain file"
    elif not os.access(target.parent, os.W_OK | os.X_OK):
        problem = "its directory is not writable"
    if problem:
        raise InputError(f"{path}: {problem}; give a file in another directory")
    return target


def _belongs_to_run(path: Path) -> bool:
    """Return whether this path belongs to the files of a run."""
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
    # Files may have moved: compare their options and their contents, not their paths.
    old_files, files = _contents(known["data"]), _contents(new["data"])
    for name, content in zip(new["data"], files):
        if content not in old_files:
            return f"the contents of {name} have changed"
    if old_files != files:
        return "there are fewer files, or they have another order"
    if identity(known["parent"]) != identity(new["parent"]):
        return "--model has other weights"
    # Their files are not in the hash of the config.
    for name in ("dense", "prompt"):
        old_value, value = known["model"].get(name), new["model"].get(name)
        if old_value != value:
            return f"{name} of --model was {old_value!r}, is now {value!r}"
    # An encoder that names its pooling only now, or a run from before pairs could be read apart.
    old_value, value = (
        "apart" if each["model"].get("siamese") else "together" for each in (known, new)
    )
    if old_value != value:
        return f"the texts of a pair were read {old_value}, are now read {value}"
    return None


def _contents(data: dict[str, str]) -> list[tuple[str, str]]:
    """Return the option and the hash of each file."""
    return [(name.split()[0], digest) for name, digest in data.items()]


def begin(run: Run, save_model: Callable[[Path], None]) -> None:
    """Write the first files of a new run.

    Args:
        run: a run from `open_run`.
        save_model: `(directory) -> None` writes the tokenizer and then `config.json`.
    """
    if not in_bucket(run.path):  # A bucket has no directories.
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
    """Lock a run, so that no other process uses it. A killed process releases its lock.

    In a bucket there are no locks.

    Raises:
        InputError: another process uses the run.
    """
    if in_bucket(run.path):
        yield
        return
    with (run.path / "run.json").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{run.path}: another process is running there; wait for it, or give another "
                "--workdir"
            ) from None
        except OSError as error:  # Some network file systems have no locks.
            _log.warning(
                "%s: cannot be locked (%s); do not start another run there",
                run.path,
                reason_of(error),
            )
        yield


def write_results(run: Run, results: dict[str, Any]) -> None:
    """Write the results of a finished run."""
    write_atomically(run.path / "results.json", json.dumps(results, indent=2) + "\n")


def read_results(workdir: Path) -> dict[str, Any] | None:
    """Read the results of a run; None if it has not finished.

    Raises:
        InputError: the file is not a JSON object.
    """
    path = workdir / "results.json"
    if not path.is_file():
        return None
    results = read_json(path)
    if not isinstance(results, dict):
        raise InputError(f"{path}: has no results of a run; restore it from a backup")
    return results


def read_json(path: Path) -> Any:
    """Read a JSON file of a run.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{path}: is not JSON; restore it from a backup") from None
