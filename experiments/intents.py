r"""Compare meta-learned models with fine-tuning and with classifiers on frozen weights: intents.

Claim: on 5-way episodes of unseen intents, with one and five examples per class, meta-learned
weights are ahead of fine-tuning, linear classifiers, nearest neighbours and prototypes on the
original weights. The interval of each difference excludes zero. (One case of twelve needs fewer
steps: see RESULTS.md.)
Paper: the data sets and class splits of Dopierre, Gravier & Logerais 2021 (ProtAugment,
arXiv:2105.12995); methods: MAML (arXiv:1703.03400), Proto-MAML (arXiv:1903.03096), ANIL
(arXiv:1909.09157), LoRA in the inner loop (arXiv:2106.09685), Reptile (arXiv:1803.02999),
prototypical networks (arXiv:1703.05175).
Command: python -m experiments.intents --model MINILM --data DATA --set BANKING77 --split 01 \
    --shots 1 --inner-lr 0.3 --methods protonet --root runs/intents
    and for all methods --model BERT --inner-lr 0.01 --learning-rate 1e-4 --steps 300
Hardware and time: two CPU cores, 25 minutes. All methods with a BERT of two layers need half an
hour of one core with one shot, and more than an hour with five. `--methods` runs some of them, so
that several cores can share the work. Finished parts are not run again.
Expect: BANKING77, split 01, 1 shot: prototypical network 89.0, baselines 85.0 to 85.5. With BERT:
78.7 to 78.8 if heads start from prototypes, but 60.1 with Reptile, and baselines 51.8 to 52.9.

Each method is meta-trained on episodes of the split's training classes (150 steps of four episodes)
and tested on 600 episodes of its test classes, with 5 queries per class. All methods get the same
episodes, and each query is classified by itself. `--valid` tests on the validation classes instead,
to choose rates and steps. RESULTS.md explains DATA, MINILM and BERT.
"""

import argparse
from pathlib import Path
from typing import Any

from experiments.runs import (
    SETS,
    command,
    exported,
    intent_sets,
    judged,
    judging,
    of_classes,
    parser,
    percent,
    show,
    trained,
)
from metajax.training.evaluation import estimate

BASELINES = ("same-steps", "prototypes", "linear", "knn")
METHODS: dict[str, dict[str, Any]] = {
    "protonet": {"inner_steps": 0, "algorithm": "fomaml"},
    "proto-maml": {"algorithm": "maml"},
    "first-order proto-maml": {"algorithm": "fomaml"},
    "maml": {"algorithm": "maml", "head": "zero"},
    "first-order maml": {"algorithm": "fomaml", "head": "zero"},
    "lora": {"algorithm": "fomaml", "lora": 8},
    "anil": {"algorithm": "anil"},
    "reptile": {"algorithm": "reptile"},
}


def compare(options: argparse.Namespace) -> None:
    """Meta-train and test the methods on one data set, split and number of shots."""
    sentences, root = intent_sets(options) / options.set, Path(options.root)
    root.mkdir(parents=True, exist_ok=True)
    asked = judging(options, sentences, ways=5, shots=options.shots)
    size = {name: asked[name] for name in ("ways", "shots", "max_length", "inner_lr")}
    results = {}
    for name in options.methods:
        run = trained(
            root,
            f"{options.set}-{options.split}-{options.shots}-{name}",
            "metatrain",
            model=options.model,
            steps=options.steps,
            learning_rate=options.learning_rate,
            seed=options.seed,
            save_every=50,
            **of_classes(sentences, options.split, "train"),
            **size,
            **METHODS[name],
        )
        if name == "protonet":
            # Nothing is adapted, so the features of each text are computed once for all episodes.
            [result] = judged(root, exported(run), "prototypes", **asked)
        else:
            [result] = judged(root, run.path, "checkpoint", **asked)
        results[name] = result._replace(training=run.seconds)
    if options.baselines:  # An empty list means no methods, not all methods.
        baselines = judged(root, options.model, *options.baselines, **asked)
        for name, result in zip(options.baselines, baselines):
            results[f"{name}, untrained"] = result
    show(options, results, f"{options.set} {options.split}, {options.shots}-shot")
    for name in ("proto-maml", "maml"):
        if {name, f"first-order {name}"} <= results.keys():
            first = results[f"first-order {name}"].accuracies
            ahead = estimate(results[name].accuracies - first)
            print(f"{name} ahead of first order by {percent(ahead)}")


def main(arguments: list[str] | None = None) -> None:
    """Print the accuracies of the methods, the best first."""
    made = parser(__doc__, "intents", steps=150, learning_rate=2e-5, inner_lr=0.1)
    made.add_argument("--set", choices=SETS, default="BANKING77")
    made.add_argument("--shots", type=int, default=1)
    made.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    made.add_argument("--baselines", nargs="*", choices=BASELINES, default=list(BASELINES))
    compare(made.parse_args(arguments))


if __name__ == "__main__":
    command(main)
