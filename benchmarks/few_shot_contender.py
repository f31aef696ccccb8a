"""Adapt to a support set and predict, for `benchmarks.few_shot`, which defines the protocol.

`python few_shot_contender.py NAME MODEL SEED FOLDER [ITERATIONS]` reads `support.json` and
`test.json` and writes `result.json`. NAME is setfit, fastfit or a method of
`metajax.FewShotClassifier`, with `+names` if the names of `names.json` are examples too. ITERATIONS
is SetFit's `num_iterations`.
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


def fit_fastfit(model: str, seed: int, rows: list[dict[str, Any]], folder: Path) -> Predict:
    """Fit FastFit with the settings of its README. It has no pairs of texts either.

    The time includes saving the result and reading it again, because only what is read predicts.
    """
    import fastfit.train
    from datasets import Dataset, DatasetDict
    from transformers import AutoTokenizer, pipeline

    fastfit.train.load_metric = lambda *_, **__: None  # It would be downloaded.
    columns = {
        "text": [joined(row["text"]) for row in rows],
        "label": [str(row["label"]) for row in rows],
    }
    support, place = Dataset.from_dict(columns), str(folder / "fastfit")
    trained = fastfit.train.FastFitTrainer(
        dataset=DatasetDict(train=support, validation=support, test=support),
        model_name_or_path=model,
        text_column_name="text",
        label_column_name="label",
        num_train_epochs=40,
        per_device_train_batch_size=32,
        max_text_length=128,
        dataloader_drop_last=False,
        num_repeats=4,
        optim="adafactor",
        clf_loss_factor=0.1,
        save_strategy="no",
        output_dir=place,
        seed=seed,
    ).train()
    trained.save_pretrained(place)
    network = fastfit.FastFit.from_pretrained(place)
    inputs = ["input_ids", "attention_mask"]
    tokenizer = AutoTokenizer.from_pretrained(model, model_input_names=inputs, model_max_length=128)
    classify = pipeline("text-classification", model=network, tokenizer=tokenizer)
    return lambda texts: [
        int(each["label"])
        for each in classify([*map(joined, texts)], batch_size=64, truncation=True)
    ]


def joined(text: Any) -> str:
    """Return a text, or the two of a pair as one."""
    return text if isinstance(text, str) else " ".join(text)


def main() -> None:
    name, model, seed, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    support, test = (
        json.loads((folder / f"{part}.json").read_text()) for part in ("support", "test")
    )
    names = json.loads((folder / "names.json").read_text())
    begun = time.perf_counter()
    if name == "setfit":
        predict = fit_setfit(model, seed, support, int(sys.argv[5]) if sys.argv[5:] else None)
    elif name == "fastfit":
        predict = fit_fastfit(model, seed, support, folder)
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
