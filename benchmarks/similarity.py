"""Predict how similar two sentences are (STS-B) after a few pairs.

    python -m benchmarks.similarity --model all-MiniLM-L6-v2 --data DATA

DATA is the folder with `glue`. Each draw has other pairs of the training set; all are tested on the
same pairs of the dev set. `cosine` is that of the two sentences' embeddings, and needs no example.
`linear` and `finetune` are methods of `metajax.FewShotRegressor`. Prints correlations in percent
with their 95% intervals over draws, and the paired difference to the cosine.
"""

import argparse
from pathlib import Path

import numpy as np
import scipy.stats

import metajax
from benchmarks.labels import frozen_features, show
from metajax import data

METHODS = ("linear", "finetune")


def correlations(predicted: np.ndarray, numbers: np.ndarray) -> dict[str, float]:
    """Return Pearson's and Spearman's correlation of N predictions with the numbers."""
    return {
        "Pearson": float(scipy.stats.pearsonr(predicted, numbers).statistic),
        "Spearman": float(scipy.stats.spearmanr(predicted, numbers).statistic),
    }


def cosines(model: str, pairs: list[tuple[str, str]]) -> np.ndarray:
    """Return the cosine of the two embeddings of each of N pairs, [N]."""
    features = frozen_features(model)
    first, second = (features([*side]) for side in zip(*pairs))
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.einsum("ni,ni->n", first, second) / norms


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="the directory of a sentence encoder")
    parser.add_argument("--data", required=True, help="the folder with glue")
    parser.add_argument("--examples", nargs="+", type=int, default=[8, 32, 128])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--tested", type=int, default=1000, help="dev pairs at most")
    options = parser.parse_args()
    train, dev = (
        data.load_tasks(["glue:stsb"], glue_dir=Path(options.data) / "glue", split=split)[0]
        for split in ("train", "validation")
    )
    pairs, dev_pairs = ([*zip(task.texts, task.pairs)] for task in (train, dev))
    tested = np.random.default_rng(0).permutation(len(dev_pairs))[: options.tested]
    test, numbers = [dev_pairs[row] for row in tested], dev.labels[tested]
    of_cosine = correlations(cosines(options.model, test), numbers)
    for count in options.examples:
        rows = {"cosine": [of_cosine] * len(options.seeds)}
        for method in options.methods:
            rows[method] = []
            for seed in options.seeds:
                drawn = np.random.default_rng(seed).permutation(len(pairs))[:count]
                regressor = metajax.FewShotRegressor(options.model, method=method, seed=seed)
                regressor.fit([pairs[row] for row in drawn], train.labels[drawn])
                rows[method].append(correlations(regressor.predict(test), numbers))
        show(f"STS-B, {count} pairs", rows)


if __name__ == "__main__":
    main()
