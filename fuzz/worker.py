"""Run the inputs of one reader in a separate process, because a reader may crash or fill memory."""

import contextlib
import logging
import os
import random
import resource
import shutil
import time
import traceback
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from fuzz.mutate import mutate
from fuzz.readers import READERS, controls
from fuzz.seeds import Files
from fuzz.watch import Hung, Watch
from metajax.cli.logging import input_error_line
from metajax.errors import StoppedError, one_line

SECONDS = 5.0
MEGABYTES = 500  # Limit for one small file.
_ADDRESSES = 3 << 30  # In addition to the memory after the valid input.


class Outcome(NamedTuple):
    """The outcome of an input.

    Attributes:
        case: the number of the input.
        kind: "accepted", "refused", or "failed".
        seconds: time of the reader.
        message: the line of a refusal, or a description of a failure.
        trace: the traceback of a failure.
    """

    case: int
    kind: str
    seconds: float
    message: str = ""
    trace: str = ""


def make(name: str, seed: int, case: int, valid: Sequence[Files], directory: Path) -> None:
    """Write an input: valid files with a fault in one or two of them."""
    draw = random.Random(f"{seed} {name} {case}")
    files = dict(draw.choice(valid))
    for _ in range(draw.choice([1, 1, 1, 2])):
        file = draw.choice(sorted(files))
        other = draw.choice(sorted(draw.choice(valid).values()))
        files[file] = mutate(draw, file, files[file], other)
    write(directory, files)
    if draw.random() < 0.02:
        _replace(directory / draw.choice(sorted(files)), draw.randrange(5))


def _replace(path: Path, kind: int) -> None:
    """Replace a file by something else."""
    path.unlink()
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        path.symlink_to(path.name)
    elif kind == 2:
        path.symlink_to("/dev/zero")
    elif kind == 3:
        os.mkfifo(path)


def run(name: str, seed: int, cases: Sequence[int], root: Path, results: Connection) -> None:
    """Send True after the valid inputs, then an `Outcome` for each case."""
    scratch = root / "scratch"
    valid, directory, watch = prepare(name, root, scratch)
    results.send(True)
    _limit()
    with (scratch / "log").open("w") as log, contextlib.redirect_stderr(log):
        for case in cases:
            make(name, seed, case, valid, directory)
            results.send(judge(name, case, directory, root, watch))
    results.close()


def prepare(name: str, root: Path, scratch: Path) -> tuple[list[Files], Path, Watch]:
    """Prepare this process: return a reader's valid inputs, its directory and its watch."""
    reader, directory = READERS[name], scratch / "input"
    valid = list(reader.seeds(root))
    scratch.mkdir(parents=True, exist_ok=True)
    os.chdir(scratch)
    warnings.simplefilter("ignore")
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # As in the command line.
    # The first input imports and compiles.
    for files in valid:
        write(directory, files)
        reader.read(directory, root)
    return valid, directory, Watch(scratch, root / "outside")


def write(directory: Path, files: Files) -> None:
    """Write these files, and remove all others."""
    shutil.rmtree(directory, ignore_errors=True)
    for file, content in files.items():
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        (directory / file).write_bytes(content)


def _limit() -> None:
    """Limit the memory of a reader."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def judge(name: str, case: int, directory: Path, root: Path, watch: Watch) -> Outcome:
    """Run a reader on a directory and return its outcome."""
    kind, message, trace = "accepted", "", ""
    _most_memory()
    before, begun = _most_memory(), time.perf_counter()
    try:
        with watch.on(SECONDS):
            READERS[name].read(directory, root)
    except StoppedError as error:
        kind, message = "refused", one_line(error)
    except (Exception, Hung) as error:
        line = input_error_line(error)
        kind, message = ("refused", line) if line is not None else ("failed", _where(error))
        trace = traceback.format_exc() if line is None else ""
    except BaseException as error:  # For example from a panic in Rust.
        kind, message, trace = "failed", _where(error), traceback.format_exc()
    seconds, grown = time.perf_counter() - begun, (_most_memory() - before) / 1e6
    if kind == "refused" and (controls(message) or len(message) > 2000 or not message.strip()):
        kind, message = "failed", f"says {message[:200]!r}"
    if grown > MEGABYTES:
        kind, message = "failed", f"took {grown:.0f} MB"
    if watch.seen:
        kind, message = "failed", watch.seen[0]
    return Outcome(case, kind, seconds, message, trace)


def _most_memory() -> int:
    """Return the peak memory in bytes since the last call."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _where(error: BaseException) -> str:
    """Return an error's type and the last line of our code in its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/metajax/" in frame.filename] or list(frames)
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    return f"{type(error).__name__} at {place}: {one_line(error)[:100]}"
