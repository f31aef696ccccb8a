"""Measure what a run loses at faults such as kills, a full disk and damaged checkpoints.

    python -m benchmarks.faults                      # all of them, about an hour on two cores
    python -m benchmarks.faults --fault kill full    # some
    python -m benchmarks.faults --kills 5 --pair-kills 2 --terms 5

The run is `metajax pretrain` with a tiny BERT, 60 steps, dropout, and a checkpoint every 5 steps.
After each fault the same command runs again to its end. Its parameters are compared with those of
an undisturbed run on the same devices and processes, bit for bit. If the devices have changed, they
are compared to 1e-6. Prints a table with the number of faults, how many ended well (in time,
without losing more steps than allowed, and with the same parameters), the most steps lost, and the
longest time until all processes had ended, in seconds. The exit status is 1 if a run did not end
well. --output writes the rows as JSON.

`kill-bucket` kills two processes that write to one bucket of a server on loopback. `full` mounts a
file system (as root, on Linux). If it cannot, it limits the size of files instead, and the table
says so.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.bucket import served
from benchmarks.tiny_run import ONE, SAVE_EVERY, TWO, Place, Topology, at, gap, params_of
from metajax.runs.paths import in_bucket

# Saving is asynchronous. A kill loses the checkpoint that is being written and the steps since.
MOST_LOST = 2 * SAVE_EVERY
BUCKET = "gs://bucket"


class Outcome(NamedTuple):
    """The outcome of one fault: whether the run ended well, steps lost, seconds to stop.

    It ended well if the processes ended within a minute, lost no more steps than since the last
    save (and the unfinished one), and the parameters are those of the undisturbed run.
    """

    alike: bool
    lost: int
    seconds: float


Fault = Callable[[Place], Outcome]


def ends_alike(place: Place, workdir: Path, on: Topology, tolerance: float = 0.0) -> bool:
    """Run the command again to its end, and compare the parameters."""
    place.expect(on)
    processes = place.start(workdir, on)
    stopped(processes)
    left = []
    if not in_bucket(workdir):  # Files have their final name at once in this case.
        left = [path for path in workdir.rglob("*") if "tmp" in path.name or ".part" in path.name]
    return (
        not any(process.returncode for process in processes)
        and not left
        and gap(params_of(workdir), place.undisturbed[on]) <= tolerance
    )


def outcome(
    place: Place,
    workdir: Path,
    on: Topology,
    seconds: float,
    most_lost: int,
    tolerance: float = 0.0,
) -> Outcome:
    """Return what was lost after all processes have stopped, and how the run then ends."""
    taken, saved = at(workdir)
    fine = seconds < 60 and taken - saved <= most_lost
    return Outcome(ends_alike(place, workdir, on, tolerance) and fine, taken - saved, seconds)


def stopped(processes: list[subprocess.Popen]) -> float:
    """Wait until all processes have ended, kill those that hang, and return the seconds."""
    begun = time.perf_counter()
    for process in processes:
        try:
            process.wait(300)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return time.perf_counter() - begun


def kill(on: Topology, parent: str | None = None) -> Fault:
    """Kill all processes with SIGKILL at a random moment."""

    def fault(place: Place) -> Outcome:
        place.expect(on)
        place.expect(on, parent)
        workdir = place.new(parent)
        processes = place.start(workdir, on)
        time.sleep(place.random.uniform(0, place.durations[on, parent]))
        for process in processes:
            process.kill()
        return outcome(place, workdir, on, stopped(processes), MOST_LOST)

    return fault


def lose_one(number: int, how: signal.Signals) -> Fault:
    """Kill one of two processes, which the other has to notice; or stop it with a signal."""

    def fault(place: Place) -> Outcome:
        place.expect(TWO)
        workdir = place.new()
        processes = place.start(workdir, TWO)
        wait_for(lambda: at(workdir)[1] > 0, processes[0])
        processes[number].send_signal(how)
        most_lost = MOST_LOST if how == signal.SIGKILL else 0
        return outcome(place, workdir, TWO, stopped(processes), most_lost)

    return fault


def term(place: Place) -> Outcome:
    """Send SIGTERM at a random moment of the run: a step, an evaluation, a save."""
    place.expect(ONE)
    workdir = place.new()
    processes = place.start(workdir)
    wait_for(lambda: (workdir / "metrics.jsonl").exists(), processes[0])
    time.sleep(place.random.uniform(0, place.durations[ONE, None] / 2))
    processes[0].send_signal(signal.SIGTERM)
    return outcome(place, workdir, ONE, stopped(processes), 0)


def full(place: Place) -> Outcome:
    """Fill the disk before a checkpoint is written."""
    place.expect(ONE)
    workdir = place.new()
    workdir.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", workdir]
    mounted = subprocess.run(mount, stderr=subprocess.DEVNULL).returncode == 0
    try:
        [process] = place.start(workdir)
        wait_for(lambda: at(workdir)[1] > 0, process)
        if mounted:
            fill(workdir / ".filler")
        else:
            print("full: could not mount a file system; files are limited to 9 kB")
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (9000, 9000))
        seconds = stopped([process])
        (workdir / ".filler").unlink(missing_ok=True)
        return outcome(place, workdir, ONE, seconds, MOST_LOST)
    finally:
        if mounted:
            subprocess.run(["umount", workdir], check=True)


def fill(path: Path) -> None:
    """Write until the file system is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1000))


def damaged(harm: Callable[[Path], None]) -> Fault:
    """Damage the newest checkpoint after a kill."""

    def fault(place: Place) -> Outcome:
        place.expect(ONE)
        workdir = place.new()
        [process] = place.start(workdir)
        wait_for(lambda: at(workdir)[1] > SAVE_EVERY, process)
        process.kill()
        process.wait()
        taken, newest = at(workdir)
        directory = workdir / "checkpoints"
        before = max(
            int(path.name)
            for path in directory.glob("*")
            if path.name.isdigit() and int(path.name) < newest
        )
        harm(directory / str(newest))
        alike = ends_alike(place, workdir, ONE)
        aside = (workdir / f"damaged-{newest}").is_dir()
        lost = taken - before
        return Outcome(alike and aside and lost <= MOST_LOST + SAVE_EVERY, lost, 0.0)

    return fault


def truncate(newest: Path) -> None:
    for path in newest.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_a_file(newest: Path) -> None:
    files = [path for path in (newest / "params").rglob("d/*") if path.is_file()]
    max(files, key=lambda path: path.stat().st_size).unlink()


def moved(before: int, after: int) -> Fault:
    """Stop on some devices, and resume on other devices."""

    def fault(place: Place) -> Outcome:
        workdir = place.new()
        processes = place.start(workdir, Topology(1, before))
        wait_for(lambda: at(workdir)[1] > SAVE_EVERY, processes[0])
        processes[0].send_signal(signal.SIGTERM)
        return outcome(place, workdir, Topology(1, after), stopped(processes), 0, tolerance=1e-6)

    return fault


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.002)


FAULTS: dict[str, Fault] = {
    "kill": kill(ONE),
    "kill-pair": kill(TWO),
    "kill-bucket": kill(TWO, BUCKET),
    "kill-first": lose_one(0, signal.SIGKILL),
    "kill-second": lose_one(1, signal.SIGKILL),
    "term": term,
    "term-second": lose_one(1, signal.SIGTERM),
    "full": full,
    "truncated": damaged(truncate),
    "file-lost": damaged(lose_a_file),
    "2-to-8": moved(2, 8),
    "8-to-2": moved(8, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fault", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--pair-kills", type=int, default=20)
    parser.add_argument("--terms", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", help="write the rows as JSON")
    options = parser.parse_args()
    times = {"kill": options.kills, "term": options.terms}
    times |= dict.fromkeys(("kill-pair", "kill-bucket"), options.pair_kills)
    print(f"{'fault':11} {'times':>5} {'as undisturbed':>15} {'steps lost':>11} {'seconds':>8}")
    rows = []
    with tempfile.TemporaryDirectory() as root, served(Path(root)) as environment:
        os.environ.update(environment)
        place = Place(Path(root), options.seed)
        for name in options.fault:
            outcomes = []
            for _ in range(times.get(name, 1)):
                outcomes.append(FAULTS[name](place))
                shutil.rmtree(place.root / f"run{place.count}", ignore_errors=True)
            alike = sum(outcome.alike for outcome in outcomes)
            lost = max(outcome.lost for outcome in outcomes)
            seconds = max(outcome.seconds for outcome in outcomes)
            rows.append({"fault": name, "outcomes": [each._asdict() for each in outcomes]})
            print(f"{name:11} {len(outcomes):5} {alike:15} {lost:11} {seconds:8.1f}", flush=True)
    if options.output:
        report = {"settings": vars(options), "rows": rows}
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(any(not each["alike"] for row in rows for each in row["outcomes"]))


if __name__ == "__main__":
    main()
