"""Open a model that can label text, and run it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.special

from metajax import data
from metajax.config.groups import ModelSettings
from metajax.errors import InputError
from metajax.models import Transformer
from metajax.models.files import base_of
from metajax.models.metadata import no_classifier
from metajax.models.prefix import prefix_length
from metajax.runs.features import compiled_logits, outputs_of
from metajax.runs.source import find, open_source, text_length
from metajax.runs.task_data import tokenized
from metajax.runs.workdir import read_json
from metajax.types import Params

_MANY = 1024  # Texts for which slower compilation pays off, on one core with a MiniLM.
SAVED = "few_shot_classifier.json"  # The settings of a `FewShotClassifier`, beside its weights.
SAVED_REGRESSOR = "few_shot_regressor.json"  # Of a `FewShotRegressor`.


def write_settings(folder: Path, name: str, settings: dict[str, Any]) -> None:
    """Write a file of settings beside the weights, and remove the other kind's from before."""
    for other in {SAVED, SAVED_REGRESSOR} - {name}:
        (folder / other).unlink(missing_ok=True)
    (folder / name).write_text(json.dumps(settings, indent=2) + "\n")


class Classifier(NamedTuple):
    """A model that can label text.

    Attributes:
        model: the network.
        params: its parameters.
        head: number of the head to use.
        max_length: maximum tokens per text in its run.
        pairs: whether its run used pairs of texts. None if unknown.
        columns: columns of the texts and the second texts in the run's files. None for the default
            name.
    """

    model: Transformer
    params: Params
    head: int
    max_length: int
    pairs: bool | None
    columns: tuple[str | None, str | None] = (None, None)


def is_multi_label(model: Transformer) -> bool:
    """Return whether a text can have several labels, each with its own probability."""
    return model.problem_type == "multi_label_classification"


def is_regression(model: Transformer) -> bool:
    """Return whether a network predicts one number for each text."""
    return model.num_labels == (1,) and not is_multi_label(model)


def open_classifier(spec: str, task: str | None) -> Classifier:
    """Open a model that can label text.

    Args:
        spec: workdir of adapt or finetune, or a Hugging Face classifier.
        task: name of a task of finetune. It may be None if there is only one task.

    Raises:
        InputError: the model has no classification head, or no head for this task.
    """
    path, record = find(spec)
    problem = None
    if record is None:
        problem = "has adapters and no head" if base_of(path) else no_classifier(spec)
    if problem is not None:
        raise InputError(f"{spec}: {problem}; run finetune or adapt on it first")
    if record is not None and record["stage"] not in ("adapt", "finetune"):
        raise InputError(
            f"{spec}: is a {record['stage']} run without labels; run adapt on it first"
        )
    if record is not None and record["model"].get("head") == "causal_lm":
        raise InputError(
            f"{spec}: has adapted to documents without labels; run adapt on labelled tasks first"
        )
    source = open_source(spec) if record else open_source(spec, head="classification")
    names = [spec]
    if record is not None:  # An adaptation to label names alone has no tasks.
        settings = record["settings"]
        names = list(settings["tasks"]) or [settings["label_names"]]
    if task is None and len(names) == 1:
        task = names[0]
    if task not in names:
        problem = "--task: is missing" if task is None else f"--task {task}: unknown task"
        raise InputError(f"{problem}; choose from {', '.join(names)}")
    head, model, params = names.index(task), source.model, source.params
    files = [path / name for name in (SAVED, SAVED_REGRESSOR) if (path / name).is_file()]
    if record is None and files:
        saved = read_json(files[0])
        return Classifier(model, params, head, saved["settings"]["max_length"], saved["pairs"])
    if record is None:
        pairs = True if model.siamese else None
        return Classifier(model, params, head, ModelSettings.max_length, pairs)
    run_settings = record["settings"]
    pairs = dict(zip(names, record.get("pairs", ()))).get(task)
    columns = (run_settings.get("text_column"), run_settings.get("pair_column"))
    return Classifier(model, params, head, run_settings["max_length"], pairs, columns)


def logits_of(
    classifier: Classifier, texts: list[str], pairs: list[str] | None, batch_size: int
) -> Iterator[np.ndarray]:
    """Yield the logits [C] of each text, in order.

    Raises:
        InputError: the texts are pairs but the classifier was trained on single texts, or vice
            versa.
    """
    model, params, head, max_length, in_pairs, _ = classifier
    if in_pairs is not None and in_pairs != (pairs is not None):
        given, wanted = ("single texts", "pairs") if in_pairs else ("pairs", "single texts")
        raise InputError(
            f"the input: has {given}, but the model was trained on {wanted}; give {wanted} (a tab "
            "separates the two texts of a pair)"
        )
    length = text_length(model, max_length, prefix=prefix_length(params))
    task = data.TaskData("the input", texts, pairs, np.zeros(len(texts), np.int32), ("",))
    (examples,) = tokenized([task], model, length, keep=False)
    compute = compiled_logits(model, many=len(texts) > _MANY)
    for logits in outputs_of(compute, model, params, examples, batch_size, head=head):
        yield logits[: model.num_labels[head]]


def probabilities(
    classifier: Classifier, texts: list[str], pairs: list[str] | None, batch_size: int
) -> np.ndarray:
    """Return the probability of each class, float64 [N, C]: softmax, or sigmoids if multi-label."""
    logits = np.stack(list(logits_of(classifier, texts, pairs, batch_size)))
    logits = logits.astype(np.float64)
    if is_multi_label(classifier.model):
        return scipy.special.expit(logits)
    return scipy.special.softmax(logits, 1)
