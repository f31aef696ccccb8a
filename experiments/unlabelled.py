r"""Learning to learn from plain text alone: tasks of hidden words (SMLMT).

Claim: weights meta-trained on episodes of hidden words, made from the intent sets' sentences
without their labels, adapt better to intents never seen than the same weights without it, by an
interval of the difference that excludes zero.
Paper: Bansal, Jha, Munkhdalai & McCallum 2020, "Self-supervised meta-learning for few-shot natural
language classification tasks" (arXiv:2009.08445), section 3 and table 1.
Command: python -m experiments.unlabelled --model BERT --data DATA --root runs/unlabelled
Hardware and time: one CPU core, a quarter of an hour for a BERT of two layers.
Expect: 67 against 53 on BANKING77, 84 against 73 on CLINC150, 70 against 65 on HWU64 (1 shot).

BERT: weights with a masked-LM head, here two layers of 128 features. all-MiniLM-L6-v2, which was
trained on sentences to begin with, gains nothing (RESULTS.md, which says what DATA is).

The text is the sentences of the training classes of all three sets' splits, less those that a
held-out class of one of the sets has too; some topics are in several sets, in other words. An
episode hides one word in sentences that hold it and asks which of five words it was. Judged on 600
5-way episodes of each set's test classes.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from experiments.runs import SETS, command, intent_sets, judged, judging, parser, show, trained


def write_text(data: Path, split: str, target: Path, sets: Sequence[str]) -> None:
    """The sentences of the training classes, a line each, without their labels.

    Less those that a held-out class of one of the sets has too.
    """
    kept, held_out = [], set()
    for name in sets:
        classes = data / name / "few_shot" / split / "labels.train.txt"
        train = set(classes.read_text(encoding="utf-8").split("\n"))
        lines = (data / name / "full.jsonl").read_text(encoding="utf-8").splitlines()
        for row in map(json.loads, lines):
            sentence = " ".join(row["sentence"].split())
            if row["label"] in train:
                kept.append(sentence)
            else:
                held_out.add(_letters(sentence))
    lines = [sentence for sentence in kept if _letters(sentence) not in held_out]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _letters(sentence: str) -> str:
    return "".join(filter(str.isalnum, sentence.lower()))


def main(arguments: list[str] | None = None) -> None:
    """Meta-trains without labels, and prints what that changes on each set."""
    made = parser(__doc__, "unlabelled", steps=300, learning_rate=1e-4, inner_lr=0.01)
    made.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="judged on")
    made.add_argument("--shots", type=int, default=1)
    options = made.parse_args(arguments)
    root, data = Path(options.root), intent_sets(options)
    root.mkdir(parents=True, exist_ok=True)
    text = root / f"text-{options.split}.txt"
    write_text(data, options.split, text, SETS)
    run = trained(
        root,
        "smlmt",
        "metatrain",
        model=options.model,
        tasks=(f"smlmt:{text}",),
        algorithm="fomaml",
        inner_lr=options.inner_lr,
        steps=options.steps,
        learning_rate=options.learning_rate,
        seed=options.seed,
        max_length=64,
    )
    for name in options.sets:
        asked = judging(options, data / name, shots=options.shots)
        [ours] = judged(root, run.path, "checkpoint", **asked)
        # Prototypes too: a rate that suits one of the two weights may spoil the other.
        plain, prototypes = judged(root, options.model, "same-steps", "prototypes", **asked)
        results = {
            "hidden words": ours._replace(training=run.seconds),
            "without": plain,
            "without, prototypes": prototypes,
        }
        show(options, results, f"{name} {options.split}, {options.shots}-shot")


if __name__ == "__main__":
    command(main)
