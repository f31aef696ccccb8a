r"""Meta-train on GLUE and adapt to unrelated tasks: the setting of LEOPARD.

Claim: weights that were meta-trained on four GLUE tasks with two classes each adapt better to
intents (and to Python's docstrings, `--set docstrings`) with 2 to 12 classes than weights that were
fine-tuned on these four tasks. (They are better than the original weights on one data set of
intents, about level on another, and worse on a third and on docstrings with many examples: see
RESULTS.md.)
Paper: Bansal, Jha & McCallum 2020, "Learning to few-shot learn across diverse natural language
classification tasks" (arXiv:1911.03863), section 5 and table 1; the tasks to adapt to are others.
Command: python -m experiments.unseen --model BERT --data DATA --root runs/unseen --episodes 100
Hardware and time: one CPU core, an hour for a BERT of two layers, of which training takes ten
minutes. Finished parts are kept, so `--ways` and `--shots` can run some sizes at a time.
Expect: 83 meta-trained, 81 original weights, 77 fine-tuned (5 ways, 16 shots).

Data sets are tasks (`--whole-tasks`): CoLA, MRPC, RTE and SST-2, sampled in proportion to the
square root of their size. RESULTS.md explains DATA and BERT.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

from experiments.runs import (
    SETS,
    Trained,
    command,
    exported,
    intent_sets,
    judged,
    judging,
    parser,
    show,
    trained,
)
from metajax.runs.demo_data import write_data

GLUE = ("cola", "mrpc", "rte", "sst2")


def held_out(root: Path) -> dict[str, Any]:
    """Return the demo's task on held-out modules: to which module does a docstring belong?"""
    files = write_data(root / "docstrings", seed=0)
    # Some modules have only 20 docstrings: 16 to adapt to and 4 to test on.
    return {"tasks": (str(files.tasks),), "classes": str(files.test_classes), "queries": 4}


def both_ways(options: argparse.Namespace, root: Path) -> tuple[Trained, Trained]:
    """Meta-train on GLUE, and fine-tune on it."""
    shared: dict[str, Any] = {
        "model": options.model,
        "tasks": tuple(f"glue:{name}" for name in GLUE),
        "glue_dir": str(Path(options.data) / "glue"),
        "steps": options.steps,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
        "max_length": 64,
    }
    size = {"whole_tasks": True, "shots": 4, "queries": 4, "algorithm": "fomaml"}
    size["inner_lr"] = options.inner_lr
    meta = trained(root, "metatrain", "metatrain", **shared, **size)
    return meta, trained(root, "finetune", "finetune", **shared, pooling="mean")


def main(arguments: list[str] | None = None) -> None:
    """Train both ways on GLUE, and print how each model adapts to unrelated tasks."""
    made = parser(__doc__, "unseen", steps=300, learning_rate=1e-4, inner_lr=0.01, episodes=200)
    made.add_argument("--set", choices=(*SETS, "docstrings"), default="BANKING77")
    made.add_argument("--ways", type=int, nargs="+", default=[2, 5, 12])
    made.add_argument("--shots", type=int, nargs="+", default=[4, 8, 16])
    # One rate does not fit all weights: each is chosen on validation classes.
    made.add_argument(
        "--adapt-lr",
        type=float,
        nargs=3,
        default=[0.001, 0.0003, 0.01],
        metavar=("META", "TUNED", "PLAIN"),
        help="rates to adapt the meta-trained, the fine-tuned, and the original weights",
    )
    options = made.parse_args(arguments)
    if options.set == "docstrings" and options.valid:
        made.error("--valid: there are no validation modules; remove the option")
    root = Path(options.root)
    meta, multi = both_ways(options, root)
    plain = Trained(options.model, 0.0)
    compared = (
        # Without adaptation `evaluate` uses the weights that meta-training started from.
        ("meta-trained on GLUE", meta, exported(meta), "checkpoint"),
        ("fine-tuned on GLUE", multi, multi.path, "same-steps"),
        ("original weights", plain, plain.path, "same-steps"),
    )
    others = held_out(root) if options.set == "docstrings" else {}
    title = options.set if others else f"{options.set} {options.split}"
    for ways, shots in itertools.product(options.ways, options.shots):
        sizes = {"ways": ways, "shots": shots}
        asked = judging(options, intent_sets(options) / options.set, **sizes, **others)
        results = {}
        for (name, run, weights, method), lr in zip(compared, options.adapt_lr):
            [adapted] = judged(root, run.path, method, **{**asked, "inner_lr": lr})
            [prototypes] = judged(root, weights, "prototypes", **asked)
            results[name] = adapted._replace(training=run.seconds)
            results[f"{name}, prototypes"] = prototypes._replace(training=run.seconds)
        show(options, results, f"{title}, {ways}-way {shots}-shot")


if __name__ == "__main__":
    command(main)
