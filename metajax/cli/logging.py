"""What a terminal is told: a line for bad input, and notes on the run."""

import contextlib
import errno
import logging
import logging.handlers
import sys
from collections.abc import Iterator

from metajax.errors import InputError, one_line

# A path that the user gave cannot be used: the input's fault, unlike a disk that is full.
_MISNAMED = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
}


def refusal(error: BaseException) -> str | None:
    """The line that says what is wrong with the input; None where something else is at fault."""
    if isinstance(error, InputError):
        return one_line(error)
    if isinstance(error, OSError) and error.errno in _MISNAMED and error.filename:
        reason = (error.strerror or "cannot be used").lower()
        return one_line(f"{error.filename}: {reason}: name another")
    return None


class _Lines(logging.Formatter):
    """Each note in a line of its own: it may quote what a file holds."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


class _Notes(logging.handlers.MemoryHandler):
    """Holds notes back until a stage logs (INFO) that it begins: bad input gets one line."""

    def shouldFlush(self, record: logging.LogRecord) -> bool:  # noqa: N802
        return record.levelno == logging.INFO


@contextlib.contextmanager
def notes(level: str) -> Iterator[None]:
    """Our log goes to standard error; of others' only errors do, or at "debug" their notes too."""
    least, root = logging.getLevelNamesMapping()[level.upper()], logging.getLogger()
    debug = least == logging.DEBUG
    logger, progress = logging.getLogger("metajax"), logging.getLogger("metajax.progress")
    orbax = logging.getLogger("absl")
    stream, others = logging.StreamHandler(sys.stderr), logging.StreamHandler(sys.stderr)
    stream.setFormatter(_Lines("metajax: %(message)s"))
    stream.addFilter(lambda record: record.levelno >= least)
    held = _Notes(capacity=0, target=stream)
    root.setLevel(logging.INFO if debug else logging.ERROR)
    # Orbax's threads log, with a traceback, what they raise too: it may come after our line.
    orbax.setLevel(logging.INFO if debug else logging.CRITICAL)
    if debug:
        root.addHandler(others)
    logger.setLevel(logging.INFO)
    progress.setLevel(least)
    logger.addHandler(held)
    logger.propagate = False  # Some libraries give the root logger a handler of their own.
    try:
        yield
    except InputError:
        held.buffer.clear()
        raise
    finally:
        root.removeHandler(others)
        logger.removeHandler(held)
        logger.propagate = True
        progress.setLevel(logging.NOTSET)
        held.close()
