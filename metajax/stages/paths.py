"""Where a workdir is: a directory, or in a bucket of Google Cloud Storage."""

import functools
import importlib.util
import tempfile
from pathlib import Path
from typing import cast

from etils import epath

from metajax.errors import InputError


def to_path(text: str) -> Path:
    """What `--workdir` or `--model` names; `gs://BUCKET/...` does what a directory does.

    Raises:
        InputError: it is another kind of address, or what it needs is not installed.
    """
    if "://" not in text:
        return Path(text)
    if not text.startswith("gs://"):
        raise InputError(f"{text}: is an address: name a directory, or gs://BUCKET/NAME")
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(f"{text}: needs gcsfs: install it with `pip install 'metajax[gcs]'`")
    return cast(Path, epath.Path(text))  # It has the same methods.


def address(path: Path) -> str:
    """What finds a path from anywhere."""
    return str(path) if in_bucket(path) else str(path.absolute())


def in_bucket(path: Path) -> bool:
    """Whether a path is not on a file system."""
    return not isinstance(path, Path)


def check_bucket(path: Path) -> None:
    """Checks that a bucket is there and can be read.

    Raises:
        InputError: it cannot.
    """
    try:
        path.exists()
        next(path.parent.iterdir(), None)
    except Exception as error:  # Of gcsfs, of Google's libraries, or of the network.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{path}: cannot be read ({reason}): check the bucket's name, and log in with "
            "`gcloud auth application-default login`"
        ) from error


def upload(directory: Path, target: Path, last: str) -> None:
    """Copies a directory's files into a bucket, one of them after all others."""
    for file in sorted(directory.iterdir(), key=lambda file: file.name == last):
        (target / file.name).write_bytes(file.read_bytes())


def local(directory: Path) -> Path:
    """A directory on this machine with the same files, for libraries that read no bucket."""
    return Path(_downloaded(str(directory)).name) if in_bucket(directory) else directory


@functools.cache  # Kept until the process ends.
def _downloaded(address: str) -> tempfile.TemporaryDirectory:
    copy = tempfile.TemporaryDirectory(prefix="metajax-")
    for file in epath.Path(address).iterdir():
        (Path(copy.name) / file.name).write_bytes(file.read_bytes())
    return copy
