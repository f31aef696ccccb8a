r"""Adapt a decoder to source files while it reads them: what meta-training adds.

Claim: on files of packages that no training has seen, a small decoder that was meta-trained to
adapt (second order) has a lower loss after its steps than the same decoder with the same steps and
without meta-training, than first order, and than longer pretraining, at equal arithmetic. The
interval of each difference excludes zero.
Paper: dynamic evaluation, Krause et al. 2018 (arXiv:1709.07432); meta-learned test-time training
of a decoder's upper feed-forward layers, TTT-E2E (arXiv:2512.23675).
Command: python -m experiments.documents --root runs/documents
Hardware and time: two CPU cores, 45 minutes for the three seeds.
Expect: see RESULTS.md. The text is what is installed, so that numbers differ between machines.

The text is the Python source of the standard library and of the installed packages: a file is a
document, and each package is for training, validation or testing as a whole. A byte-pair
vocabulary and a Llama of 4 blocks are made from scratch. All runs begin with the same pretraining.
Then either pretraining continues, or the model is meta-trained: K chunks of a file are the stream,
one inner step each, and the following chunks are the query set. The inner steps change the
feed-forward layers of the last quarter of the blocks. Methods have equal arithmetic (matrix
products, counted) after the first pretraining. `--valid` tests on the validation packages.
"""

import argparse
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import tokenizers

from experiments.runs import command, evaluated, trained
from metajax.models import Transformer, TransformerConfig, causal_lm_loss, save_pretrained
from metajax.runs.document_eval import DocumentRow
from metajax.runs.inner import DEFAULTS
from metajax.runs.learner import make_algorithm
from metajax.training.evaluation import estimate
from metajax.training.flops import count_flops
from metajax.types import Task

PARTS = ("train", "valid", "test")
FILES = 40  # Of a package, at most.
TESTED = 80  # Files to validate or test on, at most.
LONGEST = 20_000  # Characters of a file that are read.
QUERIES, LENGTH, END = 4, 128, "<|end|>"


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
        kept = sorted(dict.fromkeys(own), key=_number)[: None if part == "train" else TESTED]
        lines = (json.dumps({"text": text}) + "\n" for text in kept)
        (root / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{part}: {len(kept)} files", flush=True)


def write_model(root: Path, options: argparse.Namespace) -> tuple[str, Transformer]:
    """Write a random Llama and its vocabulary, in Hugging Face format; return where, and it."""
    rows = (root / "train.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = tokenizers.ByteLevelBPETokenizer()
    texts = (json.loads(row)["text"] for row in rows)
    pairs.train_from_iterator(texts, options.vocabulary, special_tokens=[END], show_progress=False)
    directory = root / f"model-{options.seed}"
    model = Transformer(
        TransformerConfig(
            model_type="llama",
            vocab_size=pairs.get_vocab_size(),
            hidden_size=options.width,
            num_hidden_layers=options.blocks,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=3 * options.width,
            max_position_embeddings=2048,
            type_vocab_size=0,
            layer_norm_eps=1e-5,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            hidden_act="silu",
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        ),
        head="causal_lm",
    )
    save_pretrained(directory, model, model.init(jax.random.key(options.seed)))
    pairs.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(directory), model


class Costs(NamedTuple):
    """The arithmetic of a step, in floating-point operations.

    Attributes:
        pretrain: of a block of pretraining.
        second: of a task of second-order meta-training.
        first: of a task of first-order meta-training.
    """

    pretrain: float
    second: float
    first: float


def costs(model: Transformer, options: argparse.Namespace) -> Costs:
    """Count the arithmetic of a block of pretraining and of a task of meta-training."""
    params = jax.eval_shape(model.init, jax.random.key(0))

    def rows(*shape: int) -> dict[str, jax.ShapeDtypeStruct]:
        names = ("input_ids", "attention_mask", "loss_mask")
        return {name: jax.ShapeDtypeStruct((*shape, LENGTH), np.int32) for name in names}

    loss = causal_lm_loss(model)
    gradient = jax.grad(lambda params, batch: loss(params, batch, None)[0])
    task = Task(rows(options.inner_steps, 1), rows(QUERIES))
    own = {"inner_steps": options.inner_steps, "trainable": "mlps", "head": None}
    of_task = [
        count_flops(
            lambda params, task, algorithm=algorithm: algorithm.meta_grad(params, task, None)[0],
            params,
            task,
        )
        for algorithm in (
            make_algorithm(model, DEFAULTS | own | {"algorithm": name}, jax.random.key(0))
            for name in ("maml", "fomaml")
        )
    ]
    return Costs(count_flops(gradient, params, rows(1)), *of_task)


def run_seed(root: Path, options: argparse.Namespace) -> dict[str, DocumentRow]:
    """Train all models with one seed, and return their rows on the test packages."""
    directory, model = write_model(root, options)
    train = f"documents:{root / 'train.jsonl'}"
    shared = {"seed": options.seed, "max_length": LENGTH}
    text = {"text": (train,), "batch_size": options.batch_size, "learning_rate": 2e-3, **shared}
    base = trained(root, "base", "pretrain", model=directory, steps=options.pretraining, **text)
    cost = costs(model, options)
    budget = options.steps * options.tasks * cost.second
    longer = round(budget / (options.batch_size * cost.pretrain))
    more = trained(root, "longer", "pretrain", model=base.path, steps=longer, **text)
    inner = {
        "inner_steps": options.inner_steps,
        "inner_lr": options.inner_lr,
        "inner_clip_norm": 1.0,
        "trainable": "mlps",
    }
    test = {
        "tasks": (f"documents:{root / ('valid' if options.valid else 'test')}.jsonl",),
        "queries": QUERIES,
        **shared,
    }
    rows: dict[str, DocumentRow] = {}
    for name, order, steps in (
        ("second order", "maml", options.steps),
        ("first order", "fomaml", round(budget / (options.tasks * cost.first))),
    ):
        run = trained(
            root,
            order,
            "metatrain",
            model=base.path,
            tasks=(train,),
            algorithm=order,
            steps=steps,
            meta_batch_size=options.tasks,
            queries=QUERIES,
            learning_rate=options.learning_rate,
            **inner,
            **shared,
        )
        [rows[name]] = evaluated(root, run.path, "checkpoint", **test)
    for name, run in (("pretrained", base), ("pretrained longer", more)):
        found = evaluated(root, run.path, "none", "context", "same-steps", **inner, **test)
        kinds = ("", ", in context", ", dynamic evaluation")
        rows |= {f"{name}{kind}": row for kind, row in zip(kinds, found)}
    return rows


def show(rows: dict[str, DocumentRow], title: str) -> None:
    """Print the losses, the best first, and how far the second order is ahead, file by file."""
    ours = np.array(rows["second order"].losses)
    print(f"{title:<40}{'nats/token':>12}{'bits/byte':>12}{'second order ahead by':>26}")
    for name, row in sorted(rows.items(), key=lambda item: item[1].loss):
        ahead = estimate(np.array(row.losses) - ours)
        print(
            f"{name:<40}{row.loss:>12.4f}{row.bits_per_byte:>12.4f}"
            f"{f'{ahead.mean:.4f} ± {ahead.ci95:.4f}':>26}",
            flush=True,
        )
    for name, row in rows.items():
        print(f"{name:<40}" + " ".join(f"{loss:.3f}" for loss in row.chunks))


def main(arguments: list[str] | None = None) -> None:
    """Train and test with each seed, and print a table for each."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--root", default="runs/documents", help="the folder of the runs")
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    made.add_argument("--valid", action="store_true", help="test on the validation packages")
    for name, default in {
        **{"vocabulary": 2048, "width": 128, "blocks": 4, "pretraining": 1500, "batch-size": 16},
        **{"steps": 300, "tasks": 4, "inner-steps": 12},
    }.items():
        made.add_argument(f"--{name}", type=int, default=default)
    made.add_argument("--inner-lr", type=float, default=0.5)
    made.add_argument("--learning-rate", type=float, default=5e-4)
    options = made.parse_args(arguments)
    root = Path(options.root)
    root.mkdir(parents=True, exist_ok=True)
    if not all((root / f"{part}.jsonl").is_file() for part in PARTS):
        write_texts(root)
    for seed in options.seeds:
        own = argparse.Namespace(**{**vars(options), "seed": seed})
        kind = "valid" if options.valid else "test"
        show(run_seed(root, own), f"{kind} packages, seed {seed}")


if __name__ == "__main__":
    command(main)
