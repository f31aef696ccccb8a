"""Open a model that can label text."""

from typing import NamedTuple

from metajax.config.groups import ModelSettings
from metajax.errors import InputError
from metajax.models import Transformer
from metajax.models.files import base_of
from metajax.models.metadata import no_classifier
from metajax.runs.source import find, open_source
from metajax.types import Params


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
    names = list(record["settings"]["tasks"]) if record else [spec]
    if task is None and len(names) == 1:
        task = names[0]
    if task not in names:
        problem = "--task: is missing" if task is None else f"--task {task}: unknown task"
        raise InputError(f"{problem}; choose from {', '.join(names)}")
    head, model, params = names.index(task), source.model, source.params
    if record is None:
        return Classifier(model, params, head, ModelSettings.max_length, None)
    run_settings = record["settings"]
    pairs = dict(zip(names, record.get("pairs", ()))).get(task)
    columns = (run_settings.get("text_column"), run_settings.get("pair_column"))
    return Classifier(model, params, head, run_settings["max_length"], pairs, columns)
