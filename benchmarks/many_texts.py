"""Measure how long metatrain takes until its first step on many short texts, and its memory.

    python -m benchmarks.many_texts                                # a million texts in one file
    python -m benchmarks.many_texts --texts 100000 --files 200

A text has 5 to 15 random words. A file has 10 classes, or one per 1,000 texts. In fresh processes,
`metajax metatrain --steps 1` runs on one file of 1,000 texts, which shows what does not depend on
the data; and then on all files, first with nothing on disk and then, in a second run, with the
tokens and the compiled programs of the first. The network is a tiny BERT, unless
--model names another. CPU seconds are those of all threads, and memory is the largest resident set,
which includes mapped files. Prints a Markdown table.

Hardware and time: one CPU core, a minute for a million texts and less for 200 files. Expected: 36
seconds for a million texts, 15 for a thousand, and 14 for the second run; 0.3 GB more memory.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.tiny_run import WORDS, Place

FEW = 1000
COMMAND = "metatrain --algorithm protonet --steps 1 --shots 1 --queries 1 --meta-batch-size 2"


def write(path: Path, count: int, seed: int) -> None:
    """Write a file of texts, with a class each."""
    draw, classes = random.Random(seed), max(10, count // 1000)
    with path.open("w") as file:
        for number in range(count):
            text = " ".join(draw.choices(WORDS, k=draw.randint(5, 15)))
            file.write(json.dumps({"text": text, "label": f"class {number % classes}"}) + "\n")


def measure(root: Path, name: str, files: list[Path], model: str) -> str:
    """Run metatrain on some files; return the cells of a row."""
    disk = sum(file.stat().st_size for file in (root / "cache").rglob("*.arrow"))
    command = [sys.executable, "-m", "metajax", *COMMAND.split(), "--model", model, "--tasks"]
    command += [*map(str, files), "--workdir", str(root / name), "--max-length", "32"]
    own = {"HF_DATASETS_CACHE": str(root / "cache"), "HF_HUB_OFFLINE": "1"}
    # The programs of the few texts would serve the others, too.
    programs = root / ("xla-few" if name == "few" else "xla-every")
    own |= {"JAX_COMPILATION_CACHE_DIR": str(programs)}
    begun, log = time.perf_counter(), root / f"{name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=os.environ | own, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen does not see that it ended.
    assert process.returncode == 0, log.read_text()
    cpu = usage.ru_utime + usage.ru_stime
    return f"{disk / 1e6:.0f} | {seconds:.0f} | {cpu:.1f} | {usage.ru_maxrss / 1e6:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=1)
    parser.add_argument("--model", help="as for metatrain")
    options = parser.parse_args()
    each = options.texts // options.files
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        Place(root, seed=0)
        few, *files = [root / f"{number}.jsonl" for number in range(1 + options.files)]
        write(few, FEW, seed=0)
        for seed, path in enumerate(files, start=1):
            write(path, each, seed)
        print("| texts | files | MB of tokens on disk | seconds | CPU seconds | GB of memory |")
        print("|---" * 6 + "|")
        every = ("first", options.files * each, files), ("again", options.files * each, files)
        for name, count, read in (("few", FEW, [few]), *every):
            cells = measure(root, name, read, options.model or str(root / "bert"))
            print(f"| {count:,} | {len(read)} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
