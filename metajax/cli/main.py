"""The entry point: run the command that the arguments name, and turn errors into messages."""

import errno
import importlib
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from metajax.cli.arguments import parse
from metajax.cli.logging import input_error_line, log_to_stderr
from metajax.config.fields import Settings
from metajax.config.groups import DeviceSettings
from metajax.errors import InputError, StoppedError, one_line, printable
from metajax.runs.workdir import cache_directory

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        The exit status: 0 for success, 2 for bad input (explained in one line on standard error),
        1 if the run was stopped. Other errors are raised, and end Python with 1 too.
    """
    # JAX reads this at import: a run loads what an earlier run compiled.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_directory() / "xla"))
    chosen = None
    try:
        name, chosen, level = parse(arguments)
        with log_to_stderr(level):
            results = _run(name, chosen)
        _show(name, chosen, results)
        if sys.stdout is not None:
            sys.stdout.flush()
    except StoppedError as error:
        print(f"metajax: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _say_stopped(resumes=hasattr(chosen, "workdir"))
        return 1
    except BrokenPipeError:
        # The reader of our output is gone: leave nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            where = one_line(error.filename or "the disk")
            print(f"metajax: {where}: disk full; existing checkpoints are intact", file=sys.stderr)
            return 1
        line = input_error_line(error)
        if line is None:
            raise
        print(f"metajax: error: {line}", file=sys.stderr)
        return 2
    return 0


def run() -> NoReturn:
    """Run `main` as the command `metajax`, and exit with its status."""
    _open_closed_streams()
    sys.unraisablehook = _unraisable
    # A character that the terminal cannot show must not lose the results.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main()
    except Exception:
        traceback.print_exc()
        status = 1
    if status:
        _end(status)
    sys.exit(status)


def _end(status: int) -> NoReturn:
    """End the process at once.

    After a failed save, Orbax's threads would wait for minutes; after a failure in one of several
    processes, JAX would wait for the others.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(status)


def _open_closed_streams() -> None:
    """Open the null device in place of closed standard streams.

    Otherwise the next file to be opened (perhaps a checkpoint) would get the stream's number, and
    libraries would print into it. `sys.stdin` and `sys.stdout` stay None.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """End the process on an interrupt that Python would drop.

    JAX runs code during garbage collection, and Python only prints exceptions raised there.
    """
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        _say_stopped()
        _end(1)
    sys.__unraisablehook__(unraisable)


def _say_stopped(resumes: bool = False) -> None:
    again = "; the same command resumes from the last checkpoint" if resumes else ""
    print(f"metajax: stopped{again}", file=sys.stderr)


def _run(name: str, chosen: Settings) -> Any:
    if isinstance(chosen, DeviceSettings) and chosen.distributed:
        from metajax.training import distributed  # It imports JAX.

        distributed.init_distributed(chosen.coordinator, chosen.num_processes, chosen.process_id)
    module = importlib.import_module(f"metajax.commands.{name}")
    from metajax.runs.paths import bucket_errors

    with bucket_errors():
        return getattr(module, name)(chosen)


def _show(name: str, chosen: Any, results: Any) -> None:
    if name == "evaluate":
        from metajax.commands.evaluate import table

        print(table(results))
    elif name == "lineage":
        from metajax.commands.lineage import summary as lines

        print(lines(results))
    elif name == "plan":
        from metajax.commands.plan import summary

        print(summary(results))
    elif results is not None:
        # Print a list of numbers, such as a row of the confusion matrix, on one line.
        lists = re.compile(r"\[\n\s+([-+.\w]+(?:,\n\s+[-+.\w]+)*)\n\s*\]")
        text = json.dumps(results, indent=2, ensure_ascii=False)
        text = lists.sub(lambda match: f"[{' '.join(match[1].split())}]", text)
        print("\n".join(printable(line, as_json=True) for line in text.split("\n")))
        if hasattr(chosen, "workdir"):
            print(f"written to {chosen.workdir}")
