"""Plants faults, one at a time, and checks that the tests named with each notice it.

    python -m tests.mutants                       # all of them, about 40 minutes on two cores
    python -m tests.mutants algorithms data       # some lists
    python -m tests.mutants --match inner.py      # those with this in their file or new text

A fault is noticed if its tests fail within two minutes. Before that, all tests named must pass on
the code as it is. Exit status 1 if a fault goes unnoticed.
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants import LISTS, ROOT, Mutant, read

SECONDS = 120
_PASSED, _FAILED = 0, 1  # pytest's exit statuses.


def copy_of_tree(to: Path) -> Path:
    """Copies the files that the tests need, uncommitted changes included."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


def _cache_of(tree: Path) -> Path:
    """Where a tree's tests keep compiled programs: what a fault does not change is not compiled."""
    return tree.with_name(f"{tree.name}-xla")


def run_tests(
    tree: Path, tests: Sequence[str], expected: Collection[int], seconds: float | None = None
) -> int | None:
    """pytest's exit status on some tests of a tree; None if they took too long.

    What it printed is shown where the status is not one of those expected.
    """
    environ = os.environ | {
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_COMPILATION_CACHE_DIR": str(_cache_of(tree)),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    # A process group, since tests start processes of their own.
    with subprocess.Popen(
        command, cwd=tree, env=environ, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return None
    if process.returncode not in expected:
        print(output, file=sys.stderr)
    return process.returncode


def verdict(status: int | None) -> str:
    """What a run of a mutant's tests says of it."""
    if status is None:
        return f"TOO SLOW: more than {SECONDS} s"
    return {_PASSED: "SURVIVED", _FAILED: "noticed"}.get(status, f"BROKEN: pytest exits {status}")


def verdicts(mutants: Sequence[Mutant], jobs: int, sound: Path) -> Iterator[tuple[Mutant, str]]:
    """Runs the tests of each mutant, `jobs` at a time, each on a copy of the sound tree."""
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for number in range(jobs):
        tree = sound.with_name(f"planted-{number}")
        shutil.copytree(sound, tree)
        if _cache_of(sound).is_dir():
            shutil.copytree(_cache_of(sound), _cache_of(tree))
        free.put(tree)

    def judge(mutant: Mutant) -> tuple[Mutant, str]:
        tree = free.get()
        path = tree / mutant.file
        sound = path.read_text(encoding="utf-8")
        try:
            path.write_text(mutant.planted(sound), encoding="utf-8")
            return mutant, verdict(run_tests(tree, mutant.tests, (_PASSED, _FAILED), SECONDS))
        finally:
            path.write_text(sound, encoding="utf-8")
            free.put(tree)

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(judge, mutants)


def main() -> int:
    """Plants the faults that the arguments choose."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "lists", nargs="*", metavar="LIST", help=f"{', '.join(LISTS)}; default: all"
    )
    parser.add_argument("--match", default="", help="only faults with this in file or new text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    mutants = [
        mutant
        for name in arguments.lists or LISTS
        for mutant in read(name)
        if arguments.match in mutant.file or arguments.match in mutant.new
    ]
    with tempfile.TemporaryDirectory() as folder:
        sound = copy_of_tree(Path(folder) / "sound")
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        if run_tests(sound, tests, [_PASSED]) != _PASSED:
            print("the tests named do not all pass on the code as it is", file=sys.stderr)
            return 1
        noticed = 0
        for mutant, said in verdicts(mutants, arguments.jobs, sound):
            noticed += said == "noticed"
            print(f"{said:<10} {mutant.file}: {mutant.new.strip().splitlines()[0]}", flush=True)
    print(f"{noticed} of {len(mutants)} noticed")
    return 0 if noticed == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
