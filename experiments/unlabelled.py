r"""Meta-train on plain text only, on tasks of hidden words (SMLMT).

Claim: weights that were meta-trained on hidden words, in sentences of intents without their labels,
adapt better to unseen intents than the original weights. The interval of the difference excludes
zero.
Paper: Bansal, Jha, Munkhdalai & McCallum 2020, "Self-supervised meta-learning for few-shot natural
language classification tasks" (arXiv:2009.08445), section 3 and table 1.
Command: python -m experiments.unlabelled --model BERT --data DATA --root runs/unlabelled
Hardware and time: one CPU core, a quarter of an hour for a BERT of two layers.
Expect: 67 against 53 on BANKING77, 84 against 73 on CLINC150, 70 against 65 on HWU64 (1 shot).

BERT has a masked-LM head and here two layers of 128 features. all-MiniLM-L6-v2, which was trained
on sentences, gains nothing. RESULTS.md explains DATA.

The text has the sentences of the training classes of all three data sets, without sentences that a
held-out class also has. (Some topics occur in several data sets, in other words.) An episode hides
one of five words in each sentence and asks which word it was. The tests are 600 5-way episodes of
the test classes of each data set.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from experiments.runs import SETS, command, intent_sets, judged, judging, parser, show, trained


def write_text(data: Path, split: str, target: Path, sets: Sequence[str]) -> None:
    """Return the sentences of the training classes, one per line, without labels.

    Sentences that a held-out class of a data set also has are removed.
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
                held_out.add(letters(sentence))
    lines = [sentence for sentence in kept if letters(sentence) not in held_out]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def letters(sentence: str) -> str:
    """Return the letters and digits of a sentence, by which copies are recognized."""
    return "".join(filter(str.isalnum, sentence.lower()))


def main(arguments: list[str] | None = None) -> None:
    """Meta-train without labels, and print the change on each data set."""
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
        # Prototypes too, because a rate may fit one of the two weights but not the other.
        plain, prototypes = judged(root, options.model, "same-steps", "prototypes", **asked)
        results = {
            "hidden words": ours._replace(training=run.seconds),
            "without": plain,
            "without, prototypes": prototypes,
        }
        show(options, results, f"{name} {options.split}, {options.shots}-shot")


if __name__ == "__main__":
    command(main)
