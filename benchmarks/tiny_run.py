"""Pretraining of a tiny BERT in one or two processes, to test faults."""

import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax.models import Transformer, TransformerConfig, save_pretrained
from metajax.runs.paths import in_bucket, to_path
from metajax.training import checkpoint

STEPS, SAVE_EVERY = 60, 5
WORDS = [f"w{number}" for number in range(90)]


class Topology(NamedTuple):
    """The number of processes of a run, and of all devices."""

    processes: int
    devices: int


ONE, TWO = Topology(1, 1), Topology(2, 8)


class Place:
    """The data, the undisturbed runs, and a way to start others."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random, self.count = root, random.Random(seed), 0
        size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
        config = TransformerConfig(
            vocab_size=95, num_hidden_layers=2, max_position_embeddings=32, **size
        )
        model = Transformer(config, head="masked_lm")
        save_pretrained(root / "bert", model, model.init(jax.random.key(7)))
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        (root / "bert" / "vocab.txt").write_text("\n".join(special + WORDS) + "\n")
        tokenizer = '{"tokenizer_class": "BertTokenizer"}'
        (root / "bert" / "tokenizer_config.json").write_text(tokenizer)
        lines = (" ".join(self.random.choices(WORDS, k=10)) for _ in range(60))
        (root / "text.txt").write_text("\n".join(lines) + "\n")
        self.undisturbed: dict[Topology, Any] = {}
        self.durations: dict[tuple[Topology, str | None], float] = {}

    def new(self, parent: str | None = None) -> Path:
        """Return a new working directory."""
        self.count += 1
        return to_path(f"{parent or self.root}/run{self.count}")

    def start(self, workdir: Path, on: Topology = ONE) -> list[subprocess.Popen]:
        """Start or resume the run."""
        if on.processes == 1:
            return [self._start(workdir, on.devices)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meet = ["--distributed", "--coordinator", f"127.0.0.1:{free.getsockname()[1]}"]
        meet += ["--num-processes", on.processes, "--process-id"]
        each = on.devices // on.processes
        return [self._start(workdir, each, *meet, number) for number in range(on.processes)]

    def _start(self, workdir: Path, devices: int, *more: object) -> subprocess.Popen:
        command = [sys.executable, "-m", "metajax", "pretrain", "--workdir", workdir, *more]
        command += ["--model", self.root / "bert", "--text", self.root / "text.txt"]
        command += ["--steps", STEPS, "--save-every", SAVE_EVERY, "--max-length", 16]
        command += ["--batch-size", 8, "--parts", 8]
        own = {
            "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
            f"--xla_force_host_platform_device_count={devices}",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self.root / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
            "HF_HUB_OFFLINE": "1",
        }
        with (self.root / "log").open("a") as log:
            return subprocess.Popen(
                list(map(str, command)),
                env=os.environ | own,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def expect(self, on: Topology, parent: str | None = None) -> None:
        """Run without faults, unless this was done before."""
        if (on, parent) not in self.durations:
            for _ in range(2):  # The first run compiles.
                workdir, begun = self.new(parent), time.perf_counter()
                statuses = [process.wait(300) for process in self.start(workdir, on)]
                assert not any(statuses), (self.root / "log").read_text()
                self.durations[on, parent] = time.perf_counter() - begun
            self.undisturbed.setdefault(on, params_of(workdir))


def params_of(workdir: Path) -> Any:
    """Return the final parameters."""
    return jax.device_get(checkpoint.load(workdir / "checkpoints").params)


def at(workdir: Path) -> tuple[int, int]:
    """Return the last step, and the last saved step."""
    try:
        rows = (workdir / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0, 0
    directory = workdir / "checkpoints"
    directories = list(directory.glob("*"))
    if in_bucket(
        directory
    ):  # In a bucket, an incomplete checkpoint already has its number as its name.
        directories = [path.parent for path in directory.glob("*/commit_success.txt")]
    saved = [int(path.name) for path in directories if path.name.isdigit()]
    return max(0, len(rows) - 1), max(saved, default=0)


def gap(left: Any, right: Any) -> float:
    """Return the largest difference, relative to the largest value; 0 means equal bits."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    gaps = [np.abs(a - b).max() for a, b in pairs]
    return float(np.max(gaps) / max(np.abs(leaf).max() for leaf in jax.tree.leaves(right)))
