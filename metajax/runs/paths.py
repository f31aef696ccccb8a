"""Where a run lies: in a directory, or in a bucket of Google Cloud Storage."""

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

_SILENCE = 60  # Seconds without a byte until a request is given up and tried again.
_PATIENCE = 600  # Seconds until an object has to be written.
_CLIENTS = ("gcsfs", "aiohttp", "requests", "urllib3", "google")


def to_path(text: str) -> Path:
    """The path that `--workdir` or `--model` names: of this machine, or `gs://BUCKET/NAME`.

    One in a bucket is no `pathlib.Path`, but has the methods of one that a run needs.

    Raises:
        InputError: it is another kind of address, or a bucket that cannot be reached.
    """
    if "://" not in text:
        return Path(text)
    scheme, _, place = text.partition("://")
    bucket, _, name = place.partition("/")
    if scheme != "gs" or not bucket or not name.strip("/"):
        raise InputError(f"{text}: is an address: name a directory, or gs://BUCKET/NAME")
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(
            f"{text}: needs gcsfs: install it with `pip install gcsfs google-cloud-storage`"
        )
    _reach(bucket)
    return cast(Path, epath.Path(text))


@functools.cache  # Once is enough.
def _reach(bucket: str) -> None:
    import aiohttp
    import fsspec
    from google.api_core.exceptions import NotFound
    from google.cloud import storage

    # What TensorStore and other hosts write, a listing that is remembered lacks.
    settings = fsspec.config.conf.setdefault("gs", {})
    settings.setdefault("use_listings_cache", False)
    # gcsfs tries six times, TensorStore 32: none of them waits for an answer for ever.
    silence = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
    settings.setdefault("session_kwargs", {"timeout": silence})
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(_SILENCE))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # It logs what it raises, too.
    try:
        fsspec.filesystem("gs").ls(bucket, max_results=1)
        storage.Client().get_bucket(bucket)  # As Orbax does.
    except (FileNotFoundError, NotFound):
        raise InputError(f"gs://{bucket}: there is no such bucket: check its name") from None
    except Exception as error:  # Of gcsfs, of its HTTP client, or of Google's libraries.
        raise InputError(
            f"gs://{bucket}: cannot be read ({reason_of(error)}): check the network, log in with "
            "`gcloud auth application-default login`, and set GOOGLE_CLOUD_PROJECT"
        ) from error


@contextlib.contextmanager
def bucket_errors() -> Iterator[None]:
    """Says what it means when a bucket fails in the middle of a command.

    Raises:
        StoppedError: gcsfs or one of the clients below it gave up.
    """
    try:
        yield
    except Exception as error:
        if "gcsfs" not in sys.modules or type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        raise StoppedError(
            f"the bucket does not answer ({reason_of(error)}): what was saved is safe; check "
            "the network and the access to the bucket, and run the same command again"
        ) from error


def in_bucket(path: Path) -> bool:
    """Whether a path from `to_path` is not one of this machine's."""
    return not isinstance(path, Path)


def children(directory: Path) -> list[Path]:
    """What is in a directory; none where there is no such one."""
    found = list(directory.iterdir()) if directory.is_dir() else []
    # What mounts a bucket, or Google's console, makes an object that stands for the directory.
    return [path for path in found if path.name != directory.name or not in_bucket(directory)]


def on_disk(text: str) -> Path:
    """The path of this machine that an option names.

    Raises:
        InputError: it is an address.
    """
    if "://" in text:
        raise InputError(f"{text}: is an address: name a directory")
    return Path(text)


def address(path: Path) -> str:
    """What finds a path from anywhere."""
    return str(path) if in_bucket(path) else str(path.absolute())


def write_object(path: Path, content: bytes) -> None:
    """Writes an object of a bucket, whole or not at all.

    Raises:
        StoppedError: the bucket does not take it.
    """
    writer = ThreadPoolExecutor(1)
    try:
        # gcsfs tries again six times, on two levels: it would take up to an hour to give up.
        writer.submit(path.write_bytes, content).result(_PATIENCE)
    except Exception as error:
        raise StoppedError(
            f"{path}: cannot be written ({reason_of(error)}): what was saved is safe; restore "
            "access to the bucket, and run the same command again"
        ) from error
    finally:
        writer.shutdown(wait=False)


@contextlib.contextmanager
def staged_upload(directory: Path, last: str) -> Iterator[Path]:
    """The directory, or one whose files are then copied there, the one named `last` as the last.

    Raises:
        StoppedError: the bucket does not take them.
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
    """The directory, or a copy of its files for libraries that read no bucket."""
    if not in_bucket(directory):
        return directory
    copy = Path(tempfile.mkdtemp(prefix="metajax-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    for file in children(directory):
        (copy / file.name).write_bytes(file.read_bytes())
    return copy
