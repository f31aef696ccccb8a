r"""Measure the gain of each stage: the same tasks, with weights from different stages.

Claim: on unseen intents, each stage alone improves the original weights: pretraining on text of the
domain, fine-tuning on its labels and, most of all, meta-training. (All three together are not the
best: see RESULTS.md.)
Paper: pretraining on the domain: Gururangan et al. 2020 (arXiv:2004.10964); the rest as in
experiments/intents.py.
Command: python -m experiments.stages --model BERT --data DATA --root runs/stages
Hardware and time: one CPU core, 25 minutes for a BERT of two layers.
Expect: 79 meta-trained, 76 all three, 70 fine-tuned, 57 pretrained, 53 original weights (1 shot).

All training uses only the training classes of BANKING77's split: their sentences (pretrain), their
labels (finetune, all classes at once), and episodes of them (metatrain). The tests are 5-way
episodes of the test classes, adapted in three steps from class prototypes.
"""

from pathlib import Path
from typing import Any

from experiments.runs import (
    SETS,
    Trained,
    command,
    intent_sets,
    judged,
    judging,
    of_classes,
    parser,
    show,
    trained,
)
from experiments.unlabelled import write_text


def main(arguments: list[str] | None = None) -> None:
    """Train with each combination of stages, and print the accuracies."""
    made = parser(__doc__, "stages", steps=300, learning_rate=1e-4, inner_lr=0.01)
    made.add_argument("--set", choices=SETS, default="BANKING77")
    made.add_argument("--shots", type=int, default=1)
    options = made.parse_args(arguments)
    root, data = Path(options.root), intent_sets(options)
    root.mkdir(parents=True, exist_ok=True)
    text = root / f"text-{options.set}-{options.split}.txt"
    write_text(data, options.split, text, (options.set,))
    labelled = of_classes(data / options.set, options.split, "train")

    def run(name: str, stage: str, model: str, **settings: Any) -> Trained:
        shared = {"steps": options.steps, "learning_rate": options.learning_rate, "max_length": 64}
        shared["seed"] = options.seed
        return trained(root, name, stage, model=model, **shared, **settings)

    episodes = {**labelled, "shots": options.shots, "algorithm": "fomaml"}
    episodes["inner_lr"] = options.inner_lr
    pretrained = run("pretrain", "pretrain", options.model, text=(str(text),))
    tuned = run("finetune", "finetune", options.model, **labelled, pooling="mean")
    meta = run("metatrain", "metatrain", options.model, **episodes)
    both = run("pretrain-finetune", "finetune", pretrained.path, **labelled, pooling="mean")
    every = run("pretrain-finetune-metatrain", "metatrain", both.path, **episodes)
    paths = {
        "original weights": ("same-steps", options.model, 0.0),
        "pretrained": ("same-steps", pretrained.path, pretrained.seconds),
        "fine-tuned": ("same-steps", tuned.path, tuned.seconds),
        "meta-trained": ("checkpoint", meta.path, meta.seconds),
        "all three": ("checkpoint", every.path, pretrained.seconds + both.seconds + every.seconds),
    }
    asked = judging(options, data / options.set, shots=options.shots)
    results = {}
    for name, (method, path, seconds) in paths.items():
        [result] = judged(root, path, method, **asked)
        results[name] = result._replace(training=seconds)
    [results["original weights, prototypes"]] = judged(root, options.model, "prototypes", **asked)
    show(options, results, f"{options.set} {options.split}, {options.shots}-shot")


if __name__ == "__main__":
    command(main)
