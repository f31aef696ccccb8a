"""Paths of runs: in a directory, or in a bucket of Google Cloud Storage."""

import atexit
import contextlib
import functools
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

from etils import epath

from metajax.errors import InputError, StoppedError, reason_of

_SILENCE = 60  # After so many seconds without a byte, a request is tried again.
_PATIENCE = 600  # Seconds in which an object has to be written.
_CLIENTS = ("gcsfs", "aiohttp", "requests", "urllib3", "google")


def to_path(text: str) -> Path:
    """Return the path that `--workdir` or `--model` names: a local path or `gs://BUCKET/NAME`.

    A path in a bucket is not a `pathlib.Path`, but has the methods that a run needs.

    Raises:
        InputError: the text is another kind of address, or the bucket cannot be reached.
    """
    if "://" not in text:
        return Path(text)
    scheme, _, place = text.partition("://")
    bucket, _, name = place.partition("/")
    if scheme != "gs" or not bucket or not name.strip("/"):
        raise InputError(f"{text}: is an address; give a directory, or gs://BUCKET/NAME")
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(
            f"{text}: needs gcsfs; install it with `pip install gcsfs google-cloud-storage`"
        )
    _reach(bucket)
    return cast(Path, epath.Path(text))


@functools.cache  # Check each bucket once.
def _reach(bucket: str) -> None:
    import aiohttp
    import fsspec
    from google.api_core.exceptions import NotFound
    from google.cloud import storage

    # A cached listing would lack what TensorStore and other hosts write.
    settings = fsspec.config.conf.setdefault("gs", {})
    settings.setdefault("use_listings_cache", False)
    # gcsfs tries six times, TensorStore 32 times. Neither of them waits forever.
    silence = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
    settings.setdefault("session_kwargs", {"timeout": silence})
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(_SILENCE))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # It also logs what it raises.
    try:
        fsspec.filesystem("gs").ls(bucket, max_results=1)
        storage.Client().get_bucket(bucket)  # As Orbax does.
    except (FileNotFoundError, NotFound):
        raise InputError(
            f"gs://{bucket}: there is no bucket of this name; check the name"
        ) from None
    except Exception as error:  # From gcsfs, its HTTP client or Google's libraries.
        raise InputError(
            f"gs://{bucket}: cannot be read ({reason_of(error)}); check the network, log in with "
            "`gcloud auth application-default login`, and set GOOGLE_CLOUD_PROJECT"
        ) from error


@contextlib.contextmanager
def bucket_errors() -> Iterator[None]:
    """Explain errors of a bucket that fails during a command.

    Raises:
        StoppedError: gcsfs or one of the clients below it gave up.
    """
    try:
        yield
    except Exception as error:
        if "gcsfs" not in sys.modules or type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        raise StoppedError(
            f"the bucket does not answer ({reason_of(error)}); existing checkpoints are intact; "
            "check the network and the access to the bucket, and run the same command again"
        ) from error


def in_bucket(path: Path) -> bool:
    """Return whether a path from `to_path` is in a bucket."""
    return not isinstance(path, Path)


def children(directory: Path) -> list[Path]:
    """Return the content of a directory; nothing if it does not exist."""
    paths = list(directory.iterdir()) if directory.is_dir() else []
    # Google's console, and programs that mount a bucket, create an object for the directory itself.
    return [path for path in paths if path.name != directory.name or not in_bucket(directory)]


def on_disk(text: str) -> Path:
    """Return the local path that an option names.

    Raises:
        InputError: the text is an address.
    """
    if "://" in text:
        raise InputError(f"{text}: is an address; give a directory")
    return Path(text)


def address(path: Path) -> str:
    """Return a path that does not depend on the current directory."""
    return str(path) if in_bucket(path) else str(path.absolute())


def write_object(path: Path, content: bytes) -> None:
    """Write an object of a bucket completely or not at all.

    Raises:
        StoppedError: the bucket refuses it.
    """
    writer = ThreadPoolExecutor(1)
    try:
        # gcsfs tries six times, on two levels. It would need up to an hour to give up.
        writer.submit(path.write_bytes, content).result(_PATIENCE)
    except Exception as error:
        raise StoppedError(
            f"{path}: cannot be written ({reason_of(error)}); existing checkpoints are intact; "
            "restore access to the bucket, and run the same command again"
        ) from error
    finally:
        writer.shutdown(wait=False)


@contextlib.contextmanager
def staged_upload(directory: Path, last: str) -> Iterator[Path]:
    """Yield the directory, or a local one whose files are then uploaded, `last` as the last.

    Raises:
        StoppedError: the bucket refuses a file.
    """
    if not in_bucket(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        yield copy
        for file in sorted(copy.iterdir(), key=lambda file: file.name == last):
            write_object(directory / file.name, file.read_bytes())


def local(directory: Path) -> Path:
    """Return the directory, or a local copy for libraries that cannot read a bucket."""
    if not in_bucket(directory):
        return directory
    copy = Path(tempfile.mkdtemp(prefix="metajax-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    for file in children(directory):
        (copy / file.name).write_bytes(file.read_bytes())
    return copy
