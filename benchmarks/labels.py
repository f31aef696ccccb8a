"""Compare few-shot classifiers where texts have several labels, or classes unequal sizes.

    python -m benchmarks.labels --model all-MiniLM-L6-v2 --data HWU64/full.jsonl \
        --classes HWU64/few_shot/01/labels.test.txt

`several`: a text is made of one to three texts of different classes, joined by " and ", and has the
labels of all. The support set uses `--shots` texts of each class. `unequal`: each text has one
label, and the number of examples grows from one, for the first class, to `--shots`, in equal
ratios. Test texts are made in the same way, but with classes of equal sizes. scikit-learn fits one
logistic regression, or one for each label, to the frozen features of the same encoder. `balanced`
is `class_weight="balanced"`. (Several labels are always balanced in metajax.) Prints scores in
percent with their 95% intervals over draws, and the paired difference to scikit-learn without
weights.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.multiclass import OneVsRestClassifier

import metajax
from benchmarks.few_shot import percent
from metajax import data
from metajax.runs.features import features_of
from metajax.runs.few_shot import FEATURE_NORM

_TRAINED = ("linear", "contrastive", "finetune")
OURS = {
    "several": ("linear", "finetune"),
    "unequal": (*_TRAINED, *(f"{method} balanced" for method in _TRAINED)),
}
THEIRS = ("scikit-learn", "scikit-learn balanced")


class Examples(NamedTuple):
    """Texts [N] with labels: int [N], or 0 and 1 [N, C]."""

    texts: list[str]
    labels: np.ndarray


def several(
    task: data.TaskData, shots: int, tested: int, rng: np.random.Generator
) -> tuple[Examples, Examples]:
    """Return texts with one to three labels each, made of different texts for each part."""
    if len(task.label_names) < 3:
        raise SystemExit("--data: has fewer than three classes; give others")
    support, test = _split(task, [shots] * len(task.label_names), rng)
    return _joined(task, support, len(support) // 2, rng), _joined(task, test, tested, rng)


def _joined(
    task: data.TaskData, rows: np.ndarray, count: int, rng: np.random.Generator
) -> Examples:
    """Join rows of different classes. All rows are used before one is used again."""
    queue: list[int] = []
    texts, labels = [], np.zeros((count, len(task.label_names)), np.int64)
    for number, size in enumerate(1 + np.arange(count) % 3):
        own: list[int] = []
        while len(own) < size:
            taken = {int(task.labels[row]) for row in own}
            next_row = next((row for row in queue if int(task.labels[row]) not in taken), None)
            if next_row is None:
                queue += rng.permutation(rows).tolist()
            else:
                queue.remove(next_row)
                own.append(next_row)
        texts.append(" and ".join(task.texts[row] for row in own))
        labels[number, task.labels[own]] = 1
    return Examples(texts, labels)


def unequal(
    task: data.TaskData, shots: int, tested: int, rng: np.random.Generator
) -> tuple[Examples, Examples]:
    """Return a support set with classes of 1 to `shots` examples, and a test set."""
    sizes = np.geomspace(1, shots, len(task.label_names)).round().astype(int)
    support, rest = _split(task, sizes.tolist(), rng)
    each = max(1, tested // len(sizes))
    by_class = [rest[task.labels[rest] == label][:each] for label in range(len(sizes))]
    return _examples(task, support), _examples(task, np.concatenate(by_class))


def _examples(task: data.TaskData, rows: np.ndarray) -> Examples:
    return Examples([task.texts[row] for row in rows], task.labels[rows])


def _split(
    task: data.TaskData, sizes: list[int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows with so many examples of each class, and all others."""
    shuffled = [rng.permutation(rows) for rows in task.drawn_rows()]
    support = np.concatenate([rows[:size] for rows, size in zip(shuffled, sizes)])
    return support, np.concatenate([rows[size:] for rows, size in zip(shuffled, sizes)])


MAKE = {"several": several, "unequal": unequal}


def frozen_features(model: str) -> Callable[[list[str]], np.ndarray]:
    """Return a function from N texts to their features, float64 [N, H], as few-shot heads read."""
    network, params = metajax.from_pretrained(model, feature_norm=FEATURE_NORM)

    def features(texts: list[str]) -> np.ndarray:
        tokens = data.tokenize(texts, None, network.tokenizer, 128)
        labels = np.zeros(len(texts), np.int32)
        return features_of(network, params, data.TokenizedTask("texts", tokens, labels, (), ()))

    return features


def predictions_of(
    name: str,
    options: argparse.Namespace,
    seed: int,
    support: Examples,
    test: Examples,
    features: Callable[[list[str]], np.ndarray],
) -> np.ndarray:
    """Return what a contender predicts for the test texts, in the form of their labels."""
    kind, _, weight = name.partition(" ")
    weight = weight or None
    if kind != "scikit-learn":
        classifier = metajax.FewShotClassifier(
            options.model, method=kind, class_weight=weight, seed=seed
        )
        return np.asarray(classifier.fit(*support).predict(test.texts))
    regression: Any = LogisticRegression(max_iter=1000, class_weight=weight)
    fitted = OneVsRestClassifier(regression) if support.labels.ndim == 2 else regression
    fitted.fit(features(support.texts), support.labels)
    return np.asarray(fitted.predict(features(test.texts)))


def scores(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the scores that are usual for this kind of labels, 0..1."""
    kinds = ("macro", "micro") if labels.ndim == 2 else ("macro",)
    measures = {f"{kind}-F1": f1_score(labels, predicted, average=kind) for kind in kinds}
    right = predicted == labels
    return measures | {"accuracy": float((right.all(1) if labels.ndim == 2 else right).mean())}


def show(title: str, rows: dict[str, list[dict[str, float]]]) -> None:
    """Print a row per contender, with the paired difference to the first."""
    names = list(next(iter(rows.values()))[0])
    print(f"{title:<24}" + "".join(f"{name:>16}{'ahead':>15}" for name in names))
    first = next(iter(rows.values()))
    for contender, scored in rows.items():
        cells = []
        for name in names:
            own, other = (np.array([row[name] for row in each]) for each in (scored, first))
            cells.append(f"{percent(own):>16}{percent(own - other):>15}")
        print(f"{contender:<24}" + "".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="the directory of a sentence encoder")
    parser.add_argument("--data", required=True, help="a data set with one label for each text")
    parser.add_argument("--classes", help="a file with the labels to use (default: all)")
    parser.add_argument("--kind", nargs="+", choices=MAKE, default=list(MAKE))
    parser.add_argument("--shots", type=int, default=8, help="examples per class, at most")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--tested", type=int, default=600, help="test texts")
    parser.add_argument("--output", help="write the rows as JSON")
    options = parser.parse_args()
    [task] = data.load_tasks([options.data], classes=options.classes)
    features, written = frozen_features(options.model), []
    for kind in options.kind:
        rows: dict[str, list[dict[str, float]]] = {}
        for seed in options.seeds:
            rng = np.random.default_rng(seed)
            support, test = MAKE[kind](task, options.shots, options.tested, rng)
            for name in (*THEIRS, *OURS[kind]):
                predicted = predictions_of(name, options, seed, support, test, features)
                rows.setdefault(name, []).append(scores(predicted, test.labels))
                written.append({"kind": kind, "seed": seed, "method": name} | rows[name][-1])
            if options.output:
                Path(options.output).write_text(json.dumps(written, indent=2) + "\n")
        show(f"{kind}, {options.shots} per class", rows)


if __name__ == "__main__":
    main()
