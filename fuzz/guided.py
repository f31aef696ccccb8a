"""Fuzz the same readers with atheris, guided by coverage.

    pip install 'atheris>=3'
    python -m fuzz.guided --seconds 30              # each reader of small files
    python -m fuzz.guided --only csv --seconds 600  # one, for longer

An input is one file of a valid input with other bytes. The rules for readers are those of `python
-m fuzz`, and so are the first inputs. atheris keeps inputs that reach new code and varies them, so
it also finds faults that need several changes. Its inputs differ from run to run.

Prints a table with the number of inputs, of reached edges in our code, and of failures. A reader
ends at its first failure, and its traceback and input are printed. The exit status is 1 if there is
a failure. It takes ten minutes.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}

_SMALL = 20  # Readers with at least this share of the inputs need about a millisecond.
_FAILED = 77  # The exit status of libFuzzer.


def explore(name: str, seconds: int, seed: int, root: Path) -> None:
    """Run atheris on one reader. It ends the process."""
    import atheris

    with atheris.instrument_imports(include=["metajax"]):
        from fuzz import worker
    valid, directory, watch = worker.prepare(name, root, root / name / "scratch")
    places = [(files, file) for files in valid for file in sorted(files)]
    corpus = root / name / "corpus"
    corpus.mkdir()
    for number, (files, file) in enumerate(places):
        (corpus / str(number)).write_bytes(bytes([number]) + files[file])

    def read(content: bytes) -> None:
        files, file = places[content[0] % len(places) if content else 0]
        worker.write(directory, files | {file: content[1:]})
        outcome = worker.judge(name, 0, directory, root, watch)
        assert outcome.kind != "failed", f"{outcome.message}\n{outcome.trace}"

    limits = [f"-max_total_time={seconds}", "-max_len=8192", "-timeout=0", "-rss_limit_mb=0"]
    settings = [*limits, f"-seed={seed + 1}", f"-artifact_prefix={root / name}/"]
    atheris.Setup([sys.argv[0], str(corpus), *settings], read)
    atheris.Fuzz()


def guided(name: str, seconds: int, seed: int, root: Path) -> bool:
    """Print the row of a reader, and return whether an input failed."""
    command = [sys.executable, "-m", "fuzz.guided", "--explore", name]
    how = ("--seconds", str(seconds), "--seed", str(seed), "--root", str(root))
    done = subprocess.run([*command, *how], capture_output=True, text=True, check=False)
    counts = re.findall(r"#(\d+)\s+\w+\s+cov: (\d+)", done.stderr)
    if done.returncode not in (0, _FAILED) or not counts:
        sys.exit(f"{name}: atheris did not run:\n{done.stderr[-2000:]}")
    inputs, reached = map(int, counts[-1])
    failed = done.returncode == _FAILED
    print(f"{name:12} {inputs:9,} {reached:9,} {failed:9}", flush=True)
    if failed:
        print(done.stdout + done.stderr[-3000:])
        for file in (root / name).glob("crash-*"):
            print(f"its input: {file.read_bytes()!r}")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", help="some readers of `python -m fuzz`")
    parser.add_argument("--seconds", type=int, default=30, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--explore", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.explore:
        explore(options.explore, options.seconds, options.seed, options.root)
    from fuzz import seeds
    from fuzz.readers import READERS

    names = options.only or [name for name in READERS if READERS[name].share >= _SMALL]
    with tempfile.TemporaryDirectory() as folder:
        seeds.build(Path(folder))
        print(f"{'reader':12} {'inputs':>9} {'reached':>9} {'failures':>9}")
        run = [guided(name, options.seconds, options.seed, Path(folder)) for name in names]
    sys.exit(any(run))


if __name__ == "__main__":
    main()
