r"""Adapt a decoder to source files while it reads them: what meta-training adds.

Claim: on files of packages that no training has seen, a small decoder that is meta-trained in
first order to adapt while it reads has a lower loss than the same decoder with the same steps after
longer pretraining (dynamic evaluation), and than longer pretraining with four times the context, at
equal arithmetic. The interval of each difference excludes zero. Second order is a little ahead of
first order after as many outer steps, and behind it in equal arithmetic.
Paper: dynamic evaluation, Krause et al. 2018 (arXiv:1709.07432); meta-learned test-time training
of a decoder's upper feed-forward layers, TTT-E2E (arXiv:2512.23675).
Command: python -m experiments.documents --root runs/documents
Hardware and time: two CPU cores, 46 minutes for three seeds while other jobs run.
Expect: 2.64 to 2.69 nats per token in first order, 2.68 to 2.74 for dynamic evaluation, 3.03 to
3.13 without steps; see RESULTS.md. The text is what is installed, so numbers differ.

The text is the Python source of the standard library and of the installed packages: a file is a
document, and each package is for training, validation or testing as a whole. A byte-pair
vocabulary and a Llama are made from scratch. All runs begin with the same pretraining. Then they
go on with equal arithmetic (matrix products, counted). K chunks of a file are the stream: the loss
on each is measured before the inner step on it, which changes the feed-forward layers of the last
quarter of the blocks. `--valid` tests on the validation packages.
"""

import argparse
import functools
import hashlib
import json
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.orders import cosine, cosine_line
from experiments.runs import command, evaluated, side_by_side, trained
from metajax import data
from metajax.config.groups import ModelSettings, TaskSettings
from metajax.config.inner import InnerSettings
from metajax.models import Transformer, causal_lm_loss
from metajax.runs.demo_documents import write_decoder
from metajax.runs.document_eval import DocumentRow
from metajax.runs.document_tasks import load_streams
from metajax.runs.few_shot import open_few_shot
from metajax.runs.inner import DEFAULTS
from metajax.runs.learner import make_algorithm
from metajax.training.evaluation import estimate
from metajax.training.flops import count_flops
from metajax.types import Task

PARTS = ("train", "valid", "test")
FILES = 40  # Of a package, at most.
TESTED = 80  # Files to validate or test on, at most.
LONGEST = 20_000  # Characters of a file that are read.
COPIED = 0.3  # The part of a tested file's lines that training files may have, at most.
LENGTH = 128
WIDE = 4  # Chunks that a decoder with more context reads at once.
SECOND, FIRST = "test-time-training", "first-order-test-time-training"


def sources() -> Iterator[tuple[str, str]]:
    """Yield the name of each installed package or module and the text of each of its files."""
    for name in ("stdlib", "purelib"):
        root = Path(sysconfig.get_path(name))
        for entry in sorted(root.iterdir()):
            if entry.name in ("site-packages", "test", "__pycache__") or entry.name[0] in "._":
                continue
            files = sorted(entry.rglob("*.py")) if entry.is_dir() else [entry]
            chosen = [file for file in files if file.suffix == ".py"]
            for file in sorted(chosen, key=lambda file: _number(file.name))[:FILES]:
                text = file.read_text(encoding="utf-8", errors="ignore")[:LONGEST]
                if len(text) > 4000:
                    yield entry.stem, text


def _number(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)


def part_of(package: str) -> str:
    """Return whether a package is for training, validation or testing: 8, 1 and 1 of ten."""
    return {8: "valid", 9: "test"}.get(_number(package) % 10, "train")


def write_texts(root: Path) -> None:
    """Write the documents of each part as JSON lines."""
    texts: dict[str, list[str]] = {part: [] for part in PARTS}
    for package, text in sources():
        texts[part_of(package)].append(text)
    for part, own in texts.items():
        kept = sorted(dict.fromkeys(own), key=_number)
        if part != "train":
            kept = without_copies(kept[:TESTED], texts["train"])
        lines = (json.dumps({"text": text}) + "\n" for text in kept)
        (root / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{part}: {len(kept)} files", flush=True)


def without_copies(texts: Sequence[str], train: Sequence[str]) -> list[str]:
    """Return the texts of which at most a part of the lines is in training files.

    Packages contain copies of other packages.
    """
    known = {line for text in train for line in _lines(text)}
    return [
        text
        for text in texts
        if sum(line in known for line in _lines(text)) <= COPIED * len(_lines(text))
    ]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if len(line.strip()) > 10]


def write_model(root: Path, options: argparse.Namespace) -> tuple[str, Transformer]:
    """Write a random Llama and its vocabulary, in Hugging Face format; return where, and it."""
    rows = (root / "train.jsonl").read_text(encoding="utf-8").splitlines()
    size = (
        f"{options.blocks}x{options.width}-{options.vocabulary}"  # Else it would replace another.
    )
    directory = root / f"model-{size}-{options.seed}"
    model = write_decoder(
        directory,
        (json.loads(row)["text"] for row in rows),
        options.seed,
        vocabulary=options.vocabulary,
        width=options.width,
        blocks=options.blocks,
    )
    return str(directory), model


class Costs(NamedTuple):
    """The arithmetic of a step, in floating-point operations.

    Attributes:
        pretrain: of a row of pretraining.
        wide: of a row of pretraining with more context.
        second: of a document in second-order test-time training.
        first: of a document in first-order test-time training.
    """

    pretrain: float
    wide: float
    second: float
    first: float


def costs(model: Transformer, options: argparse.Namespace) -> Costs:
    """Count the arithmetic of rows of pretraining and of documents of meta-training."""
    params = jax.eval_shape(model.init, jax.random.key(0))

    def rows(*shape: int) -> dict[str, jax.ShapeDtypeStruct]:
        names = ("input_ids", "attention_mask", "loss_mask")
        return {name: jax.ShapeDtypeStruct(shape, np.int32) for name in names}

    loss = causal_lm_loss(model)
    gradient = jax.grad(lambda params, batch: loss(params, batch, None)[0])
    of_rows = [count_flops(gradient, params, rows(1, length)) for length in (LENGTH, wide())]
    document = Task(rows(options.inner_steps, 1, LENGTH), None)
    own = {"inner_steps": options.inner_steps, "trainable": "mlps", "head": None}
    of_documents = [
        count_flops(
            lambda params, task, algorithm=algorithm: algorithm.meta_grad(params, task, None)[0],
            params,
            document,
        )
        for algorithm in (
            make_algorithm(model, DEFAULTS | own | {"algorithm": name}, jax.random.key(0))
            for name in (SECOND, FIRST)
        )
    ]
    return Costs(*of_rows, *of_documents)


def wide() -> int:
    """Return the number of tokens of several chunks, which overlap by one."""
    return WIDE * (LENGTH - 1) + 1


def agreement(runs: Sequence[str], spec: str, options: argparse.Namespace) -> str:
    """Return a line on the cosine between the meta-gradients in second and first order.

    Args:
        runs: the workdirs of the weights before and after meta-training.
        spec: `--tasks`; 32 of these documents are used.
        options: of the experiment.
    """
    inner = inner_settings(options)
    opened = [open_few_shot(run, ModelSettings(model=run), inner, None) for run in runs]
    documents = load_streams(TaskSettings(tasks=(spec,)), opened[0].model, LENGTH)
    size = data.StreamSpec(options.inner_steps, 0, LENGTH)
    tasks = data.sample_streams(documents, size, options.seed, 0, 32)
    cosines = []
    for few_shot in opened:
        second, first = (
            make_algorithm(few_shot.model, few_shot.inner | {"algorithm": name}, jax.random.key(0))
            for name in (SECOND, FIRST)
        )
        cosines.append(cosine(second, first, few_shot.params, tasks))
    return cosine_line(*cosines)


def inner_settings(options: argparse.Namespace) -> InnerSettings:
    """Return the settings of the steps on a document."""
    return InnerSettings(
        inner_steps=options.inner_steps,
        inner_lr=options.inner_lr,
        inner_clip_norm=1.0,
        trainable="mlps",
    )


def run_seed(root: Path, options: argparse.Namespace) -> dict[str, DocumentRow]:
    """Train all models with one seed, and return their rows on the test packages."""
    directory, model = write_model(root, options)
    train = (f"documents:{root / 'train.jsonl'}",)
    tested = (f"documents:{root / ('valid' if options.valid else 'test')}.jsonl",)
    steps_on_documents = inner_settings(options)
    shared: dict[str, Any] = {"seed": options.seed, "max_length": LENGTH} | {
        name: getattr(steps_on_documents, name)
        for name in ("inner_steps", "inner_lr", "inner_clip_norm", "trainable")
    }

    def pretrained(name: str, start: str, steps: float, rows: int, length: int) -> str:
        return trained(
            root,
            name,
            "pretrain",
            model=start,
            text=train,
            steps=round(steps),
            batch_size=rows,
            max_length=length,
            learning_rate=options.pretraining_rate,
            seed=options.seed,
        ).path

    def results(model: str, *methods: str, **changes: Any) -> list[DocumentRow]:
        return evaluated(root, model, *methods, tasks=tested, queries=0, **shared | changes)

    rows, cost = options.batch_size, costs(model, options)
    budget = options.steps * options.tasks * cost.second
    parts = (f"{name} {each / 1e9:.4g}" for name, each in cost._asdict().items())
    print(f"GFLOP: {', '.join(parts)}, all steps after the base {budget / 1e9:.0f}", flush=True)
    base = pretrained("base", directory, options.pretraining, rows, LENGTH)
    longer = pretrained("longer", base, budget / (rows * cost.pretrain), rows, LENGTH)
    few = rows // WIDE
    more = pretrained("wide", base, budget / (few * cost.wide), few, wide())
    names = ("pretrained longer", "pretrained longer, dynamic evaluation")
    found = dict(zip(names, results(longer, "none", "same-steps")))
    # The same tokens in fewer chunks.
    changes = {"inner_steps": options.inner_steps // WIDE, "max_length": wide()}
    [found[f"pretrained longer, context of {wide()} tokens"]] = results(more, "none", **changes)
    for name, algorithm, steps in (
        ("second order", SECOND, options.steps),
        ("first order", FIRST, round(budget / (options.tasks * cost.first))),
        ("first order, as many steps", FIRST, options.steps),
    ):
        run = trained(
            root,
            algorithm,
            "metatrain",
            model=base,
            tasks=train,
            algorithm=algorithm,
            steps=steps,
            meta_batch_size=options.tasks,
            learning_rate=options.learning_rate,
            **shared,
        )
        [found[name]] = results(run.path, "checkpoint")
        if name == "second order":
            line = agreement((base, run.path), train[0], options)
    print(f"seed {options.seed}: {line}", flush=True)
    return found


def show(rows: dict[str, DocumentRow], title: str) -> None:
    """Print the losses, the best first, and differences of the losses file by file."""
    ranked = sorted(rows.items(), key=lambda item: item[1].loss)
    head = f"{title:<44}{'nats/token':>12}{'bits/byte':>12}{'behind the best':>22}"
    print(head + f"{'second order ahead by':>26}")
    for name, row in ranked:
        losses = np.array(row.losses)
        behind, ahead = (
            estimate(losses - np.array(other.losses))
            for other in (ranked[0][1], rows["second order"])
        )
        print(
            f"{name:<44}{row.loss:>12.4f}{row.bits_per_byte:>12.4f}"
            f"{f'{behind.mean:.4f} ± {behind.ci95:.4f}':>22}"
            f"{f'{ahead.mean:.4f} ± {ahead.ci95:.4f}':>26}",
            flush=True,
        )
    for name, row in rows.items():
        print(f"{name:<44}" + " ".join(f"{loss:.3f}" for loss in row.chunks))


def main(arguments: list[str] | None = None) -> None:
    """Train and test with each seed, and print a table for each."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--root", default="runs/documents", help="the folder of the runs")
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    made.add_argument("--valid", action="store_true", help="test on the validation packages")
    sizes = {"vocabulary": 1024, "width": 64, "blocks": 3, "pretraining": 4000, "batch-size": 16}
    for name, size in (sizes | {"steps": 180, "tasks": 4, "inner-steps": 12}).items():
        made.add_argument(f"--{name}", type=int, default=size)
    rates = {"pretraining-rate": 4e-3, "learning-rate": 2e-3, "inner-lr": 2.0}
    for name, rate in rates.items():
        made.add_argument(f"--{name}", type=float, default=rate)
    options = made.parse_args(arguments)
    root = Path(options.root)
    root.mkdir(parents=True, exist_ok=True)
    if not all((root / f"{part}.jsonl").is_file() for part in PARTS):
        write_texts(root)
    kind = "valid" if options.valid else "test"
    each = [argparse.Namespace(**{**vars(options), "seed": seed}) for seed in options.seeds]
    results = side_by_side(functools.partial(run_seed, root), each)
    for seed, rows in zip(options.seeds, results):
        show(rows, f"{kind} packages, seed {seed}")


if __name__ == "__main__":
    command(main)
