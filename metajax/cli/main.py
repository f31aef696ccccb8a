"""The command line: arguments (see arguments.py) to stages, errors to messages."""

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
from metajax.cli.logging import notes, refusal
from metajax.config.fields import Settings
from metajax.errors import InputError, StoppedError, one_line, printable
from metajax.runs.workdir import cache_directory

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
    chosen = None
    try:
        name, chosen, level = parse(arguments)
        with notes(level):
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
        # Whoever read our output has enough of it: leave nothing for the exit to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            where = one_line(error.filename or "the disk")
            print(f"metajax: {where}: no room; what was saved is safe", file=sys.stderr)
            return 1
        complaint = refusal(error)
        if complaint is None:
            raise
        print(f"metajax: error: {complaint}", file=sys.stderr)
        return 2
    return 0


def run() -> NoReturn:
    """The command `metajax`: `main`, and then the end of the process."""
    _open_closed_streams()
    sys.unraisablehook = _unraisable
    # A character that the terminal cannot show is no reason to lose what was computed.
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
    """Ends the process at once.

    Where a save has failed, Orbax's threads wait for it for minutes, and where one of several
    processes fails, JAX waits for the others.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(status)


def _open_closed_streams() -> None:
    """Opens the null device in place of standard streams that are closed.

    Otherwise the next file that is opened, a checkpoint perhaps, would get the stream's number,
    and what a library prints would be written into it. `sys.stdin` and `sys.stdout` stay None.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Ends the process where Python would drop an interrupt.

    JAX runs code while garbage is collected, and an exception that is raised there goes no further.
    """
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        _say_stopped()
        _end(1)
    sys.__unraisablehook__(unraisable)


def _say_stopped(resumes: bool = False) -> None:
    again = "; the same command resumes from the last checkpoint" if resumes else ""
    print(f"metajax: stopped{again}", file=sys.stderr)


def _run(name: str, chosen: Settings) -> Any:
    if hasattr(chosen, "distributed"):
        from metajax.training import distributed  # It imports JAX.

        distributed.init_distributed(chosen)
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
        # A list of numbers, a row of the confusion matrix say, on one line.
        lists = re.compile(r"\[\n\s+([-+.\w]+(?:,\n\s+[-+.\w]+)*)\n\s*\]")
        text = json.dumps(results, indent=2, ensure_ascii=False)
        text = lists.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
        print("\n".join(printable(line, as_json=True) for line in text.split("\n")))
        if hasattr(chosen, "workdir"):
            print(f"written to {chosen.workdir}")
