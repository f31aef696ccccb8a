"""Adapt to a support set and predict, for `benchmarks.few_shot`, which defines the protocol.

`python few_shot_contender.py NAME MODEL SEED FOLDER [ITERATIONS]` reads `support.json` and
`test.json` and writes `result.json`. NAME is setfit or a method of `metajax.FewShotClassifier`,
with `+names` if the names of `names.json` are examples too. ITERATIONS is SetFit's
`num_iterations`.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Predict = Callable[[list[Any]], list[int]]


def fit_metajax(
    name: str, model: str, seed: int, rows: list[dict[str, Any]], names: list[str]
) -> Predict:
    """Fit a `FewShotClassifier`; return its predictions as a function of texts."""
    import metajax

    classifier = metajax.FewShotClassifier(
        model,
        method=name.removesuffix("+names"),
        label_names=dict(enumerate(names)) or None,
        seed=seed,
    )
    texts = [row["text"] for row in rows]
    classifier.fit(texts, [row["label"] for row in rows])
    return lambda texts: classifier.predict(texts).tolist()


def fit_setfit(
    model: str, seed: int, rows: list[dict[str, Any]], iterations: int | None
) -> Predict:
    """Fit SetFit with its other defaults. It has no pairs of texts; they are joined."""
    import datasets
    import setfit

    def joined(text: Any) -> str:
        return text if isinstance(text, str) else " ".join(text)

    columns = {
        "text": [joined(row["text"]) for row in rows],
        "label": [row["label"] for row in rows],
    }
    classifier = setfit.SetFitModel.from_pretrained(model)
    arguments = setfit.TrainingArguments(
        seed=seed, report_to="none", save_strategy="no", num_iterations=iterations
    )
    trainer = setfit.Trainer(classifier, arguments, datasets.Dataset.from_dict(columns))
    trainer.train()
    return lambda texts: [int(label) for label in classifier.predict(list(map(joined, texts)))]


def main() -> None:
    name, model, seed, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    support, test = (
        json.loads((folder / f"{part}.json").read_text()) for part in ("support", "test")
    )
    names = json.loads((folder / "names.json").read_text())
    begun = time.perf_counter()
    if name == "setfit":
        predict = fit_setfit(model, seed, support, int(sys.argv[5]) if sys.argv[5:] else None)
    else:
        predict = fit_metajax(name, model, seed, support, names)
    fitted = time.perf_counter()
    predictions = predict([row["text"] for row in test])
    result = {
        "fit": fitted - begun,
        "predict": time.perf_counter() - fitted,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "predictions": predictions,
    }
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
