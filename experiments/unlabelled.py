r"""Learning to learn from plain text alone: tasks of hidden words (SMLMT).

Claim: weights meta-trained on episodes of hidden words, made from the intent sets' sentences
without their labels, adapt better to intents never seen than the same weights without it, by an
interval of the difference that excludes zero.
Paper: Bansal, Jha, Munkhdalai & McCallum 2020, "Self-supervised meta-learning for few-shot natural
language classification tasks" (arXiv:2009.08445), section 3 and table 1.
Command: python -m experiments.unlabelled --model BERT --data DATA --root runs/unlabelled
Hardware and time: one CPU core, ten minutes for a BERT of two layers.
Expect: 67 against 53 on BANKING77, 84 against 73 on CLINC150, 71 against 65 on HWU64 (1 shot).

BERT: weights with a masked-LM head, here two layers of 128 features. all-MiniLM-L6-v2, which was
trained on sentences to begin with, gains nothing (RESULTS.md). DATA is the folder of ProtAugment's
release.

The text is the sentences of the training classes of all three sets' splits (none of a test class);
an episode hides one word in sentences that hold it and asks which of five words it was. Judged on
600 5-way episodes of each set's test classes.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from experiments.runs import judged, show, trained

SETS = ("BANKING77", "CLINC150", "HWU64")


def write_text(data: Path, split: str, target: Path, sets: Sequence[str] = SETS) -> None:
    """The sentences of the training classes, a line each, without their labels."""
    lines = []
    for name in sets:
        classes = data / name / "few_shot" / split / "labels.train.txt"
        kept = set(classes.read_text(encoding="utf-8").split("\n"))
        rows = map(
            json.loads, (data / name / "full.jsonl").read_text(encoding="utf-8").splitlines()
        )
        lines += [" ".join(row["sentence"].split()) for row in rows if row["label"] in kept]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Meta-trains without labels, and prints what that changes on each set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the weights")
    parser.add_argument("--data", required=True, help="the folder that holds the sets")
    parser.add_argument("--split", default="01")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--valid", action="store_true", help="judge on the validation classes")
    parser.add_argument("--inner-lr", type=float, default=0.01, help="of all adaptation")
    parser.add_argument("--root", default="runs/unlabelled", help="where the runs are kept")
    options = parser.parse_args(arguments)
    root, data = Path(options.root), Path(options.data)
    root.mkdir(parents=True, exist_ok=True)
    text = root / f"text-{options.split}.txt"
    write_text(data, options.split, text)
    run = trained(
        root,
        f"smlmt-{options.split}-{options.learning_rate:g}-{options.steps}",
        "metatrain",
        model=options.model,
        tasks=(f"smlmt:{text}",),
        algorithm="fomaml",
        inner_lr=options.inner_lr,
        steps=options.steps,
        learning_rate=options.learning_rate,
        max_length=64,
    )
    for name in options.sets:
        classes = "valid" if options.valid else "test"
        asked = {
            "tasks": (str(data / name / "full.jsonl"),),
            "classes": str(data / name / "few_shot" / options.split / f"labels.{classes}.txt"),
            "shots": options.shots,
            "episodes": options.episodes,
            "max_length": 64,
            "inner_lr": options.inner_lr,
        }
        [ours] = judged(root, run.path, "maml", **asked)
        # Prototypes too: a rate that suits one of the two weights may spoil the other.
        plain, prototypes = judged(root, options.model, "finetune", "protonet", **asked)
        results = {
            "hidden words": ours._replace(training=run.seconds),
            "without": plain,
            "without, prototypes": prototypes,
        }
        show(root, results, f"{name}, {options.shots} shots")


if __name__ == "__main__":
    main()
