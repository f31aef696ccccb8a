"""Compare methods chosen by cross-validation, and calibrated probabilities, with fixed methods.

    python -m benchmarks.choice --model all-MiniLM-L6-v2 --data DATA --set hwu64 --classes 01/test

DATA is the folder with `glue` and `intents`; draws are those of `benchmarks.few_shot`. `choose` is
the method that `metajax.FewShotClassifier` chooses on the support set. `calibrated` divides the
logits by a temperature that is fitted to held-out examples of the support set. Prints the accuracy
and the expected calibration error (ECE; 15 bins; less is better) in percent, with their 95%
intervals over draws, and the paired difference to the first row.
"""

import argparse
import time
from typing import Any

import numpy as np

import metajax
from benchmarks.few_shot import GLUE, INTENTS, draw, load
from benchmarks.labels import show
from metajax.training.evaluation import calibration_error

ROWS = ("contrastive", "finetune", "linear", "choose")
CALIBRATED = tuple(f"{method}, calibrated" for method in ("contrastive", "finetune", "linear"))


def contend(
    name: str, model: str, seed: int, rows: tuple[list[dict[str, Any]], list[dict[str, Any]]]
) -> tuple[dict[str, float], str]:
    """Fit a row's classifier; return its scores, and what it chose."""
    method, _, calibrated = name.partition(", ")
    (support, labels), (test, truth) = (
        ([row["text"] for row in part], np.array([row["label"] for row in part])) for part in rows
    )
    classifier = metajax.FewShotClassifier(
        model, method=method, calibrate=bool(calibrated), seed=seed
    ).fit(support, labels)
    probabilities = classifier.predict_proba(test)
    correct = classifier.classes_[probabilities.argmax(1)] == truth
    chosen = "" if classifier.choice_ is None else str(classifier.choice_["chosen"])
    error = calibration_error(probabilities.max(1), correct)
    return {"accuracy": float(correct.mean()), "ECE": float(error)}, chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="the directory of a sentence encoder")
    parser.add_argument("--data", required=True, help="the folder with glue and intents")
    parser.add_argument("--set", choices=(*GLUE, *INTENTS), default="hwu64")
    parser.add_argument("--classes", help="of an intent set, such as 01/test (default: all)")
    parser.add_argument("--shots", type=int, default=5, help="examples per class")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--tested", type=int, default=500, help="test texts at most")
    parser.add_argument(
        "--methods", nargs="+", choices=(*ROWS, *CALIBRATED), default=[*ROWS, *CALIBRATED]
    )
    options = parser.parse_args()
    task, test = load(options, options.set)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in options.methods}
    for seed in options.seeds:
        drawn = draw(options, task, test, seed)
        for name in options.methods:
            begun = time.perf_counter()
            scored, chosen = contend(name, options.model, seed, drawn)
            rows[name].append(scored)
            took = time.perf_counter() - begun
            print(f"draw {seed}, {name}: {took:.0f} s {chosen}", flush=True)
    show(f"{options.set}, {options.shots} per class", rows)


if __name__ == "__main__":
    main()
