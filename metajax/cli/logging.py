"""Messages on standard error: one line for bad input, and the log of a run."""

import contextlib
import errno
import logging
import logging.handlers
import sys
from collections.abc import Iterator

from metajax.errors import InputError, one_line

# Errors of a path that the user gave, unlike a full disk.
_BAD_PATH = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
}


def input_error_line(error: BaseException) -> str | None:
    """Return the line that says what is wrong with the input, or None for other errors."""
    if isinstance(error, InputError):
        return one_line(error)
    if isinstance(error, OSError) and error.errno in _BAD_PATH and error.filename:
        reason = (error.strerror or "cannot be used").lower()
        return one_line(f"{error.filename}: {reason}; give another path")
    return None


class _OneLineFormatter(logging.Formatter):
    """Formatter that prints a record as one line, because it may quote the content of a file."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


class _DeferredHandler(logging.handlers.MemoryHandler):
    """Handler that defers records until a command logs (INFO) that it begins.

    So bad input gets only one line.
    """

    def shouldFlush(self, record: logging.LogRecord) -> bool:  # noqa: N802
        return record.levelno == logging.INFO


@contextlib.contextmanager
def log_to_stderr(level: str) -> Iterator[None]:
    """Log to standard error; other libraries log errors only, or everything at "debug"."""
    threshold, root = logging.getLevelNamesMapping()[level.upper()], logging.getLogger()
    debug = threshold == logging.DEBUG
    logger, progress = logging.getLogger("metajax"), logging.getLogger("metajax.progress")
    orbax = logging.getLogger("absl")
    stream, libraries = logging.StreamHandler(sys.stderr), logging.StreamHandler(sys.stderr)
    stream.setFormatter(_OneLineFormatter("metajax: %(message)s"))
    stream.addFilter(lambda record: record.levelno >= threshold)
    deferred = _DeferredHandler(capacity=0, target=stream)
    root.setLevel(logging.INFO if debug else logging.ERROR)
    # Orbax's threads also log what they raise, with a traceback, perhaps after our line.
    orbax.setLevel(logging.INFO if debug else logging.CRITICAL)
    if debug:
        root.addHandler(libraries)
    logger.setLevel(logging.INFO)
    progress.setLevel(threshold)
    logger.addHandler(deferred)
    logger.propagate = False  # Some libraries add a handler to the root logger.
    try:
        yield
    except InputError:
        deferred.buffer.clear()
        raise
    finally:
        root.removeHandler(libraries)
        logger.removeHandler(deferred)
        logger.propagate = True
        progress.setLevel(logging.NOTSET)
        deferred.close()
