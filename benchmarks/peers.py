"""Compare one step of MAML on BERT with PyTorch libraries: seconds, peak memory, gradients.

higher, torch.func and TorchOpt run in another environment, on transformers' BertModel with the same
weights and tasks: no dropout, float32, SGD in the inner loop. A step is the mean meta-gradient of a
batch of tasks. The contenders take turns with one step each, after one step that is not counted.
Each is a process that is idle while others work, but keeps its memory: choose some with --ours and
--peers. metajax uses the settings of its stages on a CPU: only embedding rows that a task mentions,
unrolled blocks and steps, and packed texts with --data. The peers pad each set to its longest text.
low-memory means `--low-memory --remat`, and default `metajax.maml` without any option.

    python3 -m venv peers && peers/bin/pip install torch==2.13.0
    peers/bin/pip install torch==2.13.0 transformers higher torchopt
    python -m benchmarks.peers --peer-python peers/bin/python
    python -m benchmarks.peers --peer-python peers/bin/python --case episodes \
        --model DIR --data BANKING77/full.jsonl
    python -m benchmarks.peers --peer-python peers/bin/python --case base \
        --ours low-memory --peers torch.func

Prints a table and, with --output, writes it as JSON.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CLASSES, RATE = 5, 0.01


class Case(NamedTuple):
    """The sizes of a step. The upper `layers` are adapted (None: all, and the embeddings)."""

    shape: str
    support: int
    query: int
    length: int
    steps: int
    tasks: int
    layers: int | None = None
    dtype: str = "float32"


CASES = {
    "minilm-10": Case("minilm", support=10, query=10, length=32, steps=3, tasks=2),
    "minilm-5": Case("minilm", support=5, query=25, length=16, steps=5, tasks=4),
    "top-half": Case("minilm", support=10, query=10, length=32, steps=3, tasks=2, layers=3),
    "base": Case("base", support=16, query=16, length=64, steps=3, tasks=1),
    "episodes": Case("minilm", support=25, query=25, length=64, steps=3, tasks=2),
    "tiny": Case("tiny", support=5, query=5, length=8, steps=2, tasks=2),
}
CONFIG = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
)
OURS = ("metajax", "default", "low-memory")
PEERS = {False: ("higher", "torch.func", "torchopt"), True: ("higher", "torch.func")}


def write_case(
    folder: Path, case: Case, first_order: bool, count: int, episodes_of: tuple[str, str] | None
) -> None:
    """Write the settings, weights and tasks of a case to a folder for all contenders."""
    import jax

    from benchmarks.memory import bert
    from metajax.models import from_pretrained
    from metajax.models.convert import to_hugging_face

    if episodes_of is not None:
        model, params = from_pretrained(episodes_of[0], head="encoder")
        write_episodes(folder, model, episodes_of[1], count, case.tasks)
    else:
        model = bert(case.shape, remat=False)
        params = model.replace(head="encoder").init(jax.random.key(0))
        sizes = {
            "support": (case.tasks, case.support, case.length),
            "query": (case.tasks, case.query, case.length),
        }
        batch = random_texts(sizes, model.config.vocab_size)
        for number in range(count):
            np.savez(folder / f"tasks_{number:03}.npz", **batch)
    kernel = np.random.default_rng(0).normal(size=(1, model.config.hidden_size, CLASSES)) / 20
    params["classifier"] = {"kernel": kernel.astype(np.float32), "bias": np.zeros((1, CLASSES))}
    np.savez(folder / "weights.npz", **to_hugging_face(jax.device_get(params)))
    config = {key: getattr(model.config, key) for key in CONFIG}
    settings = {
        "config": config | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "classes": CLASSES,
        "rate": RATE,
        "steps": case.steps,
        "tasks": case.tasks,
        "layers": case.layers,
        "dtype": case.dtype,
        "first_order": first_order,
    }
    (folder / "case.json").write_text(json.dumps(settings))


def random_texts(sizes: dict[str, tuple[int, int, int]], vocabulary: int) -> dict[str, np.ndarray]:
    """Return random texts of the same length [tasks, examples, length]."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, shape in sizes.items():
        # Without 0: transformers treats it as padding, whose row has no gradient.
        arrays[f"{part}/input_ids"] = rng.integers(1, vocabulary, shape, np.int32)
        arrays[f"{part}/attention_mask"] = np.ones(shape, np.int32)
        arrays[f"{part}/token_type_ids"] = np.zeros(shape, np.int32)
        arrays[f"{part}/labels"] = rng.integers(0, CLASSES, shape[:2], np.int32)
    return arrays


def write_episodes(folder: Path, model: Any, file: str, count: int, tasks: int) -> None:
    """Return real episodes, 5-way 5-shot with 5 queries per class, padded and packed."""
    from metajax import data

    examples = [data.tokenize_task(task, model.tokenizer, 64) for task in data.load_tasks([file])]
    spec = data.EpisodeSpec(ways=CLASSES, shots=5, queries=5)
    plan = data.plan_episodes(examples, spec, 0, tasks, count)
    for number in range(count):
        drawn = data.sample_episodes(examples, spec, 0, number, tasks)
        ours = data.gather(examples, drawn, plan)._asdict()
        padded = {}
        for part in ("support", "query"):
            rows = getattr(drawn, part)
            tokens = examples[0].tokens
            mask = np.arange(tokens.input_ids.shape[1]) < tokens.lengths[rows][:, :, None]
            padded[f"{part}/input_ids"] = tokens.input_ids[rows]
            padded[f"{part}/attention_mask"] = mask.astype(np.int32)
            padded[f"{part}/token_type_ids"] = tokens.token_type_ids[rows].astype(np.int32)
            padded[f"{part}/labels"] = getattr(drawn, f"{part}_labels")
        np.savez(folder / f"tasks_{number:03}.npz", **padded)
        flat = {f"{part}/{key}": value for part in ours for key, value in ours[part].items()}
        np.savez(folder / f"packed_{number:03}.npz", **flat)


class Contender:
    """A process that takes steps when asked to."""

    def __init__(self, name: str, folder: Path, peer_python: str):
        self.name, self.seconds, self.peak = name, [], 0
        command = [sys.executable, "-m", "benchmarks.metajax_contender", name, str(folder)]
        if name not in OURS:
            script = Path(__file__).parent / "torch_peers.py"
            command = [peer_python, str(script), name, str(folder)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions = json.loads(self._answer())

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended early; see above")
        return line

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def step(self, number: int) -> float:
        """Take one step, and return its seconds."""
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        answer = json.loads(self._answer())
        self.peak = answer["peak_bytes"]
        return answer["seconds"]


def run(name: str, first_order: bool, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row per contender."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        real = (options.model, options.data) if name == "episodes" else None
        write_case(folder, CASES[name], first_order, options.turns + 1, real)
        peers = able(name, first_order, options.peers)
        with contextlib.ExitStack() as stack:
            contenders = []
            for each in (*options.ours, *peers):
                contenders.append(Contender(each, folder, options.peer_python))
                stack.callback(contenders[-1].stop)
            for turn in range(options.turns + 1):
                for contender in contenders:
                    seconds = contender.step(turn)
                    if turn:
                        contender.seconds.append(seconds)
            gaps = {each.name: gap(folder, options.ours[0], each.name) for each in contenders}
    medians = {each.name: statistics.median(each.seconds) for each in contenders}
    fastest = min(medians[peer] for peer in peers)
    return [
        {
            "case": name,
            "order": "first" if first_order else "second",
            "contender": each.name,
            "seconds": medians[each.name],
            "all_seconds": each.seconds,
            "ratio": medians[each.name] / fastest,
            "peak_bytes": each.peak,
            "gap": gaps[each.name],
            "versions": each.versions,
        }
        for each in contenders
    ]


def able(name: str, first_order: bool, chosen: list[str]) -> list[str]:
    """Return the chosen peers that support a case; TorchOpt adapts all, in second order."""
    peers = [peer for peer in PEERS[first_order] if peer in chosen]
    return [peer for peer in peers if CASES[name].layers is None or peer != "torchopt"]


def gap(folder: Path, reference: str, name: str) -> float:
    """Return the relative distance of a contender's last meta-gradient from ours."""
    with np.load(folder / f"{reference}.npz") as ours, np.load(folder / f"{name}.npz") as theirs:
        shared = [key for key in ours.files if not key.startswith("pooler")]
        difference = sum(float(np.square(ours[key] - theirs[key]).sum()) for key in shared)
        return (difference / sum(float(np.square(ours[key]).sum()) for key in shared)) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", help="the Python of the peers' environment")
    cases = [name for name in CASES if name not in ("tiny", "episodes")]
    parser.add_argument("--case", nargs="+", choices=CASES, default=cases)
    parser.add_argument("--order", nargs="+", choices=("second", "first"), default=["second"])
    parser.add_argument("--ours", nargs="+", choices=OURS, default=["metajax"])
    parser.add_argument("--peers", nargs="+", choices=PEERS[False], default=PEERS[False])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--model", help="the weights for --case episodes")
    parser.add_argument("--data", help="the labelled texts for --case episodes")
    parser.add_argument("--output", help="write the rows as JSON")
    options = parser.parse_args()
    if options.peer_python is None:
        parser.error(
            "--peer-python: is missing; give the Python of the peers' environment (see --help)"
        )
    pairs = itertools.product(options.case, options.order)
    if not all(able(name, order == "first", options.peers) for name, order in pairs):
        parser.error(
            "--peers torchopt: supports neither first order nor some layers; give another peer"
        )
    if "default" in options.ours and any(CASES[name].layers for name in options.case):
        parser.error("--ours default: adapts all layers; give another case than top-half")
    if "episodes" in options.case and not (options.model and options.data):
        parser.error("--case episodes: needs --model and --data; give both")
    print(f"{'case':10} {'order':6} {'':10}  seconds   ratio   peak GB   gradient's gap")
    rows = []
    for name in options.case:
        for order in options.order:
            for row in run(name, order == "first", options):
                rows.append(row)
                print(
                    f"{name:10} {order:6} {row['contender']:10}  {row['seconds']:7.3f}  "
                    f"{row['ratio']:6.2f}  {row['peak_bytes'] / 1e9:8.2f}   {row['gap']:.1e}",
                    flush=True,
                )
    if options.output:
        about = {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0))}
        report = {"settings": vars(options), "machine": about, "rows": rows}
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
