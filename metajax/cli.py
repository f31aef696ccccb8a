"""The command line: arguments (see arguments.py) to stages, errors to messages."""

import contextlib
import errno
import importlib
import json
import logging
import logging.handlers
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from metajax.arguments import parse
from metajax.errors import InputError, StoppedError
from metajax.stages.option import Settings
from metajax.stages.run import cache_directory

# A path that the user gave cannot be used: the input's fault, unlike a disk that is full.
_MISNAMED = {
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
}


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Returns:
        The exit status: 0 done, 2 the input is at fault (one line on standard error says what),
        1 stopped. Anything else raises, which ends Python with 1 too.
    """
    # JAX reads it when it is imported: what one run compiled, the next one loads.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_directory() / "xla"))
    # That PyTorch is missing is as it should be.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        name, chosen, level = parse(arguments)
        with _notes(level):
            results = _run(name, chosen)
        _show(name, chosen, results)
        sys.stdout.flush()
    except InputError as error:
        print(f"metajax: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except StoppedError as error:
        print(f"metajax: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "metajax: stopped; the same command resumes from the last checkpoint", file=sys.stderr
        )
        return 1
    except BrokenPipeError:
        # Whoever read our output has enough of it: leave nothing for the exit to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno in _FULL:
            where = error.filename or "the disk"
            print(f"metajax: {where}: no room; what was saved is safe", file=sys.stderr)
            return 1
        if error.errno not in _MISNAMED or not error.filename:
            raise
        reason = (error.strerror or "cannot be used").lower()
        print(f"metajax: error: {error.filename}: {reason}: name another", file=sys.stderr)
        return 2
    return 0


def run() -> NoReturn:
    """The command `metajax`: `main`, and then the end of the process."""
    try:
        status = main()
    except Exception:
        traceback.print_exc()
        status = 1
    if status:
        # At once: where a save has failed, Orbax's threads wait for it for minutes, and where
        # one of several processes fails, JAX waits for the others.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


class _Notes(logging.handlers.MemoryHandler):
    """Holds notes back until a stage logs (INFO) that it begins: bad input gets one line."""

    def shouldFlush(self, record: logging.LogRecord) -> bool:  # noqa: N802
        return record.levelno == logging.INFO


@contextlib.contextmanager
def _notes(level: str) -> Iterator[None]:
    """Our log goes to standard error; of others' only errors do, or at "debug" their notes too."""
    least = logging.getLevelNamesMapping()[level.upper()]
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(logging.Formatter("metajax: %(message)s"))
    stream.addFilter(lambda record: record.levelno >= least)
    notes, logger, others = _Notes(capacity=0, target=stream), logging.getLogger("metajax"), None
    logging.getLogger().setLevel(logging.ERROR)
    if least == logging.DEBUG:
        others = logging.StreamHandler(sys.stderr)
        logging.getLogger().setLevel(logging.INFO)
        logging.getLogger().addHandler(others)
    logger.setLevel(logging.INFO)
    logging.getLogger("metajax.progress").setLevel(least)
    logger.addHandler(notes)
    logger.propagate = False  # Some libraries give the root logger a handler of their own.
    try:
        yield
    except InputError:
        notes.buffer.clear()
        raise
    finally:
        logger.removeHandler(notes)
        logger.propagate = True
        logging.getLogger("metajax.progress").setLevel(logging.NOTSET)
        logging.getLogger().removeHandler(others or notes)
        notes.close()


def _run(name: str, chosen: Settings) -> Any:
    if hasattr(chosen, "distributed"):
        from metajax.stages import hosts  # It imports JAX.

        hosts.join(chosen)
    module = importlib.import_module(f"metajax.stages.{name}")
    return getattr(module, name)(chosen)


def _show(name: str, chosen: Any, results: Any) -> None:
    if name == "evaluate":
        from metajax.stages.evaluate import table

        print(table(results))
    elif name == "lineage":
        from metajax.stages.lineage import summary as lines

        print(lines(results))
    elif name == "plan":
        from metajax.stages.plan import summary

        print(summary(results))
    elif results is not None:
        print(json.dumps(results, indent=2))
        if hasattr(chosen, "workdir"):
            print(f"written to {chosen.workdir}")
