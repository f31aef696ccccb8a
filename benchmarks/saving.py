"""Measure what saving, resuming and waiting for data cost a run of metatrain.

    python -m benchmarks.saving --model MINILM --tasks intents.jsonl

Runs `metajax metatrain` (3-way 1-shot episodes, two per step) with a checkpoint every 20 steps.
Kills it after the third checkpoint, resumes it, and runs it again on eight simulated devices.
Prints

- saving: extra time of the five steps after a save, including the save, as a share of 100
  median steps; this is the cost of `--save-every 100`;
- resuming: seconds from the start of the process to the end of its first step, compiled programs
  in the cache;
- data: mean share of a step's time spent waiting for data, on one device and on eight.

--output writes the numbers as JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EVERY, AFTER = 20, 5


def command(options: argparse.Namespace, workdir: Path, episodes: int, steps: int) -> list[str]:
    sizes = {"ways": 3, "shots": 1, "queries": 3, "max-length": 32, "meta-batch-size": episodes}
    sizes |= {"save-every": EVERY, "steps": steps, "held-out": 0}
    given = [item for name, value in sizes.items() for item in (f"--{name}", str(value))]
    files = ["--model", options.model, "--tasks", options.tasks, "--workdir", str(workdir)]
    return [sys.executable, "-m", "metajax", "metatrain", *files, *given]


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    """Return the steps of a run so far."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines][1:]


def start(arguments: list[str], devices: int) -> subprocess.Popen:
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(arguments, env=os.environ | flags, **quiet)


def seconds_until(process: subprocess.Popen, workdir: Path, count: int) -> float:
    """Wait until a run has taken some steps, and return the seconds."""
    begun = time.perf_counter()
    while len(rows_of(workdir)) < count:
        if process.poll() is not None:
            raise RuntimeError("metatrain has ended early: run it by hand to see why")
        time.sleep(0.02)
    return time.perf_counter() - begun


def measure(options: argparse.Namespace, root: Path) -> dict[str, float]:
    workdir, total = root / "one", 3 * EVERY + AFTER + 1
    arguments = command(options, workdir, 2, 1000)
    process = start(arguments, 1)
    seconds_until(process, workdir, total)
    process.kill()
    process.wait()
    rows = rows_of(workdir)
    usual = statistics.median(row["seconds"] for row in rows)
    extra = [
        sum(row["seconds"] - usual for row in rows[saved : saved + AFTER])
        for saved in range(EVERY, total - AFTER, EVERY)
    ]
    costs = {"step_seconds": usual, "saving": statistics.median(extra) / (100 * usual)}
    print(f"a step                      {usual:8.3f} s")
    print(f"saving every 100 steps      {costs['saving']:8.2%} of the time", flush=True)
    begun, first = time.perf_counter(), 3 * EVERY + 1
    process = start(arguments, 1)
    while (
        len(rows_of(workdir)) >= first
    ):  # Wait until it has dropped the steps that were not saved.
        time.sleep(0.02)
    seconds_until(process, workdir, first)
    costs["resume_seconds"] = time.perf_counter() - begun
    print(f"from start to first step    {costs['resume_seconds']:8.1f} s, resumed", flush=True)
    process.kill()
    process.wait()
    eight = root / "eight"
    process = start(command(options, eight, 8, 1000), 8)
    seconds_until(process, eight, 12)
    process.kill()
    process.wait()
    # The first step waits for the compiler, and its data wait for the step.
    for name, path in {"data_wait": workdir, "data_wait_eight": eight}.items():
        costs[name] = statistics.mean(row["data_wait"] for row in rows_of(path)[1:])
    print(f"waiting for data            {costs['data_wait']:8.2%} of a step")
    print(f"  on eight devices          {costs['data_wait_eight']:8.2%}")
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="the weights")
    parser.add_argument("--tasks", required=True, help="labelled texts, of three classes or more")
    parser.add_argument("--output", help="write the numbers as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        costs = measure(options, Path(root))
    if options.output:
        Path(options.output).write_text(json.dumps(costs, indent=2) + "\n")


if __name__ == "__main__":
    main()
