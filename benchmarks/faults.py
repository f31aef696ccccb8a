"""What a run loses when something goes wrong: a fault, what was kept, and how it ended.

    python -m benchmarks.faults                      # all of them, about an hour on two cores
    python -m benchmarks.faults --fault kill full    # some
    python -m benchmarks.faults --kills 5 --pair-kills 2 --terms 5

The run is `metajax pretrain` of a tiny BERT, 60 steps, a checkpoint every 5, dropout on. After each
fault the same command is run again to its end, and its parameters compared with the undisturbed
run's: bit for bit, or to 1e-6 where the devices are not the same. Prints a table: how often,
how many ended as they should, the most steps lost, the longest time until the processes were gone
(seconds). Exit status 1 if any did not end as it should. With --output, writes the rows as JSON.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax import checkpoint
from metajax.models import Bert, BertConfig, save_pretrained

STEPS, SAVE_EVERY = 60, 5
WORDS = [f"w{number}" for number in range(90)]


# A save is asynchronous: the one in flight when a process is killed is lost with the steps since.
MOST_LOST = 2 * SAVE_EVERY


class Outcome(NamedTuple):
    """Of one fault: whether the run then ended as it should, steps lost, seconds to stop."""

    alike: bool
    lost: int
    seconds: float


class Place:
    """The material, the undisturbed run, and how to start others."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random, self.count = root, random.Random(seed), 0
        size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
        config = BertConfig(vocab_size=95, num_hidden_layers=2, max_position_embeddings=32, **size)
        model = Bert(config, head="masked_lm")
        save_pretrained(root / "bert", model, model.init(jax.random.key(7)))
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        (root / "bert" / "vocab.txt").write_text("\n".join(special + WORDS) + "\n")
        tokenizer = '{"tokenizer_class": "BertTokenizer"}'
        (root / "bert" / "tokenizer_config.json").write_text(tokenizer)
        lines = (" ".join(self.random.choices(WORDS, k=10)) for _ in range(60))
        (root / "text.txt").write_text("\n".join(lines) + "\n")
        self.undisturbed: dict[int, Any] = {}
        self.duration = 0.0

    def new(self) -> Path:
        """A workdir that is not there yet."""
        self.count += 1
        return self.root / f"run{self.count}"

    def start(self, workdir: Path, devices: int = 1, *more: object) -> subprocess.Popen:
        """Starts the run, or goes on with it."""
        command = [sys.executable, "-m", "metajax", "pretrain", "--workdir", workdir, *more]
        command += ["--model", self.root / "bert", "--text", self.root / "text.txt"]
        command += ["--steps", STEPS, "--save-every", SAVE_EVERY, "--max-length", 16]
        command += ["--batch-size", 8, "--parts", 8]
        own = {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self.root / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
            "HF_HUB_OFFLINE": "1",
        }
        return subprocess.Popen(
            list(map(str, command)),
            env=os.environ | own,
            stdout=subprocess.DEVNULL,
            stderr=(self.root / "log").open("a"),
        )

    def start_two(self, workdir: Path) -> list[subprocess.Popen]:
        """The same on two processes of four devices."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meet = ["--distributed", "--coordinator", f"127.0.0.1:{free.getsockname()[1]}"]
        meet += ["--num-processes", "2", "--process-id"]
        return [self.start(workdir, 4, *meet, number) for number in (0, 1)]

    def expect(self, devices: int) -> None:
        """Makes the undisturbed run on some devices, if there is none yet."""
        if devices not in self.undisturbed:
            for _ in range(2):  # The first one compiles.
                workdir, begun = self.new(), time.perf_counter()
                assert self.start(workdir, devices).wait() == 0, (self.root / "log").read_text()
                self.duration = time.perf_counter() - begun
            self.undisturbed[devices] = params_of(workdir)


def params_of(workdir: Path) -> Any:
    """The parameters at the end."""
    return jax.device_get(checkpoint.load(workdir / "checkpoints").params)


def at(workdir: Path) -> tuple[int, int]:
    """The last step taken, and the last one saved."""
    try:
        rows = (workdir / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0, 0
    found = (workdir / "checkpoints").glob("*")
    saved = [int(path.name) for path in found if path.name.isdigit()]
    return max(0, len(rows) - 1), max(saved, default=0)


def gap(left: Any, right: Any) -> float:
    """The largest difference, relative to the largest value; 0 is bit for bit."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    gaps = [np.abs(a - b).max() for a, b in pairs]
    return float(np.max(gaps) / max(np.abs(leaf).max() for leaf in jax.tree.leaves(right)))


def ends_alike(place: Place, workdir: Path, devices: int, *, again: int | None = None) -> bool:
    """Runs the command again to its end, and compares."""
    place.expect(devices)
    if again == 2:
        statuses = [process.wait(300) for process in place.start_two(workdir)]
    else:
        statuses = [place.start(workdir, devices).wait(300)]
    left = [path for path in workdir.rglob("*") if "tmp" in path.name or ".part" in path.name]
    same = gap(params_of(workdir), place.undisturbed[devices])
    return not any(statuses) and not left and (same < 1e-6 if again == 2 else same == 0)


def stopped(processes: list[subprocess.Popen], begun: float) -> float:
    """Waits until all are gone; the seconds since."""
    for process in processes:
        process.wait(300)
    return time.perf_counter() - begun


def kill(place: Place) -> Outcome:
    """`kill -9` of the process, at any moment."""
    place.expect(1)
    workdir = place.new()
    process = place.start(workdir)
    time.sleep(place.random.uniform(0, place.duration))
    process.kill()
    process.wait()
    taken, saved = at(workdir)
    alike = ends_alike(place, workdir, 1) and taken - saved <= MOST_LOST
    return Outcome(alike, taken - saved, 0.0)


def kill_pair(place: Place) -> Outcome:
    """`kill -9` of both of two processes, at any moment."""
    place.expect(8)
    workdir = place.new()
    processes = place.start_two(workdir)
    time.sleep(place.random.uniform(0, 1.5 * place.duration))
    for process in processes:
        process.kill()
    seconds = stopped(processes, time.perf_counter())
    taken, saved = at(workdir)
    alike = ends_alike(place, workdir, 8, again=2) and taken - saved <= MOST_LOST
    return Outcome(alike, taken - saved, seconds)


def kill_one(place: Place) -> Outcome:
    """`kill -9` of one of two processes: the other one has to notice."""
    place.expect(8)
    workdir = place.new()
    processes = place.start_two(workdir)
    wait_for(lambda: at(workdir)[1] > 0, processes[0])
    processes[1].kill()
    seconds = stopped(processes, time.perf_counter())
    taken, saved = at(workdir)
    alike = ends_alike(place, workdir, 8, again=2) and seconds < 60
    return Outcome(alike, taken - saved, seconds)


def term(place: Place) -> Outcome:
    """SIGTERM once the run has begun, at any moment: a step, an evaluation, a save."""
    place.expect(1)
    workdir = place.new()
    process = place.start(workdir)
    wait_for(lambda: (workdir / "metrics.jsonl").exists(), process)
    time.sleep(place.random.uniform(0, place.duration / 2))
    process.send_signal(signal.SIGTERM)
    seconds = stopped([process], time.perf_counter())
    taken, saved = at(workdir)
    alike = ends_alike(place, workdir, 1) and seconds < 60 and taken == saved
    return Outcome(alike, taken - saved, seconds)


def full(place: Place) -> Outcome:
    """The disk is full when a checkpoint is written: no file can have more than 9 kB."""
    place.expect(1)
    workdir = place.new()
    process = place.start(workdir)
    wait_for(lambda: at(workdir)[1] > 0, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (9000, 9000))
    seconds = stopped([process], time.perf_counter())
    taken, saved = at(workdir)
    return Outcome(ends_alike(place, workdir, 1) and seconds < 60, taken - saved, seconds)


def damaged(harm: Callable[[Path], None]) -> Callable[[Place], Outcome]:
    def fault(place: Place) -> Outcome:
        place.expect(1)
        workdir = place.new()
        process = place.start(workdir)
        wait_for(lambda: at(workdir)[1] > SAVE_EVERY, process)
        process.kill()
        process.wait()
        before = at(workdir)[1]
        harm(workdir / "checkpoints" / str(before))
        alike = ends_alike(place, workdir, 1)
        aside = (workdir / f"damaged-{before}").is_dir()
        return Outcome(alike and aside, SAVE_EVERY, 0.0)

    return fault


def truncate(newest: Path) -> None:
    for path in newest.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_a_file(newest: Path) -> None:
    files = [path for path in (newest / "params").rglob("d/*") if path.is_file()]
    max(files, key=lambda path: path.stat().st_size).unlink()


def moved(before: int, after: int) -> Callable[[Place], Outcome]:
    def fault(place: Place) -> Outcome:
        workdir = place.new()
        process = place.start(workdir, before)
        wait_for(lambda: at(workdir)[1] > SAVE_EVERY, process)
        process.send_signal(signal.SIGTERM)
        seconds = stopped([process], time.perf_counter())
        taken, saved = at(workdir)
        place.expect(8)
        status = place.start(workdir, after).wait(300)
        alike = status == 0 and gap(params_of(workdir), place.undisturbed[8]) < 1e-6
        return Outcome(alike, taken - saved, seconds)

    return fault


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.002)


FAULTS: dict[str, Callable[[Place], Outcome]] = {
    "kill": kill,
    "kill-pair": kill_pair,
    "kill-one": kill_one,
    "term": term,
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
    times = {"kill": options.kills, "kill-pair": options.pair_kills, "term": options.terms}
    print(f"{'fault':10} {'times':>5} {'as undisturbed':>15} {'steps lost':>11} {'seconds':>8}")
    rows = []
    with tempfile.TemporaryDirectory() as root:
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
            print(f"{name:10} {len(outcomes):5} {alike:15} {lost:11} {seconds:8.1f}", flush=True)
    if options.output:
        report = {"settings": vars(options), "rows": rows}
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(any(not each["alike"] for row in rows for each in row["outcomes"]))


if __name__ == "__main__":
    main()
