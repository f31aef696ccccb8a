"""Plant faults, one at a time, and check that their tests fail.

    python -m tests.mutants                       # all of them
    python -m tests.mutants algorithms data       # some lists
    python -m tests.mutants --match inner.py      # those with this in their file or new text
    python -m tests.mutants --every 5             # every fifth

A fault is noticed if its tests fail within two minutes. First, all these tests must pass on the
unchanged code. The exit status is 1 if a fault is not noticed.
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants import LISTS, ROOT, Mutant, read
from tests.mutants.forked import cache_of, output_of, prepare, run_tests

SECONDS = 120
_PASSED, _FAILED = 0, 1  # pytest's exit statuses.


def copy_of_tree(to: Path) -> Path:
    """Copy the files that the tests need, with uncommitted changes."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in names.split("\0"):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


def verdict(status: int | None) -> str:
    """Translate pytest's exit status."""
    if status is None:
        return f"TOO SLOW: more than {SECONDS} s"
    return {_PASSED: "SURVIVED", _FAILED: "noticed"}.get(status, f"BROKEN: pytest exits {status}")


def verdicts(mutants: Sequence[Mutant], jobs: int, sound: Path) -> Iterator[tuple[Mutant, str]]:
    """Run the tests of each mutant, `jobs` at a time, each on a copy of the tree."""
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for number in range(jobs):
        tree = sound.with_name(f"planted-{number}")
        shutil.copytree(sound, tree)
        shutil.copytree(cache_of(sound), cache_of(tree))
        free.put(tree)

    def judge(mutant: Mutant) -> tuple[Mutant, str]:
        tree = free.get()
        path = tree / mutant.file
        text = path.read_text(encoding="utf-8")
        try:
            path.write_text(mutant.planted(text), encoding="utf-8")
            return mutant, verdict(run_tests(tree, mutant.tests, SECONDS))
        finally:
            path.write_text(text, encoding="utf-8")
            free.put(tree)

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(judge, mutants)


def chosen(arguments: argparse.Namespace) -> list[Mutant]:
    """Return the mutants that the command line selects."""
    mutants = [mutant for name in arguments.lists or LISTS for mutant in read(name)]
    return [m for m in mutants if arguments.match in m.file or arguments.match in m.new][
        :: arguments.every
    ]


def main() -> int:
    """Plant the faults that the arguments select."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "lists", nargs="*", metavar="LIST", help=f"{', '.join(LISTS)}; default: all"
    )
    parser.add_argument("--match", default="", help="only faults with this in file or new text")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth of these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    mutants = chosen(arguments)
    if not mutants:  # Without names of tests, pytest would run all.
        parser.error(f"--match {arguments.match}: no fault has this in its file or new text")
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        sound = copy_of_tree(Path(folder) / "sound")
        cache_of(sound).mkdir()
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        if run_tests(sound, tests) != _PASSED:
            print(output_of(sound).read_text(), file=sys.stderr)
            print("some tests fail on the code as it is; fix them first", file=sys.stderr)
            return 1
        noticed = 0
        for mutant, said in verdicts(mutants, arguments.jobs, sound):
            noticed += said == "noticed"
            first_line = (mutant.new.strip() or f"without {mutant.old.strip()}").splitlines()[0]
            print(f"{said:<10} {mutant.file}: {first_line}", flush=True)
    print(f"{noticed} of {len(mutants)} noticed")
    return 0 if noticed == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
