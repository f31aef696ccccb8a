"""Fuzz every reader of files: it must read its input or refuse it with one line.

    python -m fuzz --inputs 100000 --seed 0        # all readers, an hour on one core
    python -m fuzz --only csv yaml --inputs 5000   # some
    python -m fuzz --only csv --case 17            # one input again, and its traceback

Each input is a valid file with a fault: changed bits and lengths, spliced files, other types, huge
numbers, deep nesting, NUL, bytes that are not UTF-8, terminal escapes, paths outside the directory,
code. Or the file is a directory, a device, a pipe, or missing. An input is a function of the seed,
the reader and the number of the input. Slow readers (tokenizer, checkpoint, report) get fewer
inputs.

A reader must return, or refuse with one printable line, within 5 seconds and 500 MB. It must not
raise another error, write outside its directory, run code, start a process or use the network.
Python's audit events report these.

Prints a table with the number of inputs, of accepted, refused and failed ones, and the time of the
slowest one in seconds. Then it prints each failure once, and the command that repeats it. The exit
status is 1 if there is a failure.
"""

import argparse
import collections
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}

from fuzz import seeds, worker
from fuzz.readers import READERS
from fuzz.worker import Outcome

_PATIENCE = 60  # Seconds to wait for a process that does not react to its alarm.


def outcomes(name: str, seed: int, cases: range, root: Path) -> Iterator[Outcome]:
    """Return the outcomes of a reader's inputs. Start a new process if one dies."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["fuzz.worker"])  # It imports the modules once for all processes.
    while cases:
        ours, theirs = server.Pipe(duplex=False)
        process = server.Process(target=worker.run, args=(name, seed, cases, root, theirs))
        process.start()
        theirs.close()
        ended = "hangs"
        try:
            ours.recv()
        except EOFError:
            raise RuntimeError(f"{name}: its valid input is not read") from None
        try:
            while cases and ours.poll(_PATIENCE):
                outcome = ours.recv()
                cases = cases[1:]
                yield outcome
        except EOFError:
            process.join(_PATIENCE)
            ended = f"the process ended with {process.exitcode}"
        process.kill()
        process.join()
        if cases:
            yield Outcome(cases[0], "failed", 0.0, ended)
            cases = cases[1:]


def split(inputs: int, names: list[str]) -> dict[str, int]:
    """Return how many inputs each reader gets, at least one."""
    total = sum(READERS[name].share for name in names)
    return {name: -(-inputs * READERS[name].share // total) for name in names}


def fuzz(name: str, seed: int, cases: range, root: Path) -> dict[str, Any]:
    """Return a row of the table."""
    counts: collections.Counter[str] = collections.Counter()
    failures: dict[str, list[Outcome]] = {}
    slowest = 0.0
    for outcome in outcomes(name, seed, cases, root):
        counts[outcome.kind] += 1
        slowest = max(slowest, outcome.seconds)
        if outcome.kind == "failed":
            failures.setdefault(outcome.message.split(": ")[0], []).append(outcome)
    return {
        "reader": name,
        "inputs": len(cases),
        **{kind: counts[kind] for kind in ("accepted", "refused", "failed")},
        "slowest": slowest,
        "failures": [
            {"case": outcomes[0].case, "times": len(outcomes), "message": outcomes[0].message}
            for outcomes in failures.values()
        ],
    }


def again(name: str, seed: int, case: int, root: Path) -> bool:
    """Run one input again, print its outcome, and return whether it failed."""
    (outcome,) = outcomes(name, seed, range(case, case + 1), root)
    print(f"{name} {case}: {outcome.kind} {outcome.message}\n{outcome.trace}")
    return outcome.kind == "failed"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_000, help="of all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--case", type=int, help="one input again")
    parser.add_argument("--output", help="write the rows as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        seeds.build(root)
        if options.case is not None:
            failed = [again(each, options.seed, options.case, root) for each in options.only]
            sys.exit(any(failed))
        columns = ("inputs", "accepted", "refused", "failed")
        print("{:12} {:>7} {:>9} {:>8} {:>7} {:>11}".format("reader", *columns, "slowest (s)"))
        rows = []
        for each, count in split(options.inputs, options.only).items():
            rows.append(row := fuzz(each, options.seed, range(count), root))
            values = [row[key] for key in columns]
            print("{:12} {:7} {:9} {:8} {:7} {:11.2f}".format(each, *values, row["slowest"]))
            sys.stdout.flush()
    total = [sum(row[key] for row in rows) for key in columns]
    print("{:12} {:7} {:9} {:8} {:7}".format("all", *total))
    for row in rows:
        for failure in row["failures"]:
            print(
                f"--only {row['reader']} --case {failure['case']} "
                f"({failure['times']}): {failure['message']}"
            )
    if options.output:
        report = {"settings": vars(options), "rows": rows}
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(total[-1] > 0)


if __name__ == "__main__":
    main()
