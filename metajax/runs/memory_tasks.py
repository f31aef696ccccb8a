"""Meta-training on labelled texts in memory, by a stage that reads and writes files."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from metajax.config.groups import ModelSettings
from metajax.config.inner import InnerSettings
from metajax.errors import InputError
from metajax.runs.few_shot import FewShot, describe_few_shot
from metajax.runs.labels import read_labels, read_texts

Tasks = Mapping[str, tuple[Any, Any]] | Iterable[tuple[str, tuple[Any, Any]]]


class MetaFitSettings(TypedDict, total=False):
    """Further settings of `FewShotClassifier.meta_fit`; see `metajax metatrain --help-all`."""

    ways: int
    shots: int
    queries: int
    whole_tasks: bool
    meta_batch_size: int
    chunk_size: int
    inner_steps: int
    inner_lr: float
    logit_scale: float
    similar_classes: int
    held_out: float
    valid_every: int


def write_tasks(folder: Path, tasks: Tasks) -> tuple[str, ...]:
    """Write data sets as JSON Lines, and return the paths of their files.

    Args:
        folder: an empty directory.
        tasks: `(texts, labels)` of each data set by its name, or a list of `(name, (texts,
            labels))`. Texts and labels are as for `FewShotClassifier.fit`, with one label each.

    Raises:
        InputError: they are something else, or two have the same name.
    """
    try:
        given = list(tasks.items() if isinstance(tasks, Mapping) else tasks)
        names = [str(name) for name in dict(given)]
    except (TypeError, ValueError):
        given, names = [], []
    if not given:
        raise InputError("tasks: have no data sets; give a dict of names and (texts, labels)")
    if len(set(names)) < len(given):
        raise InputError(
            "tasks: two data sets have the same name; give each data set a name of its own"
        )
    return tuple(_write(folder, str(name), task) for name, task in given)


def _write(folder: Path, name: str, task: Any) -> str:
    where, file = f"tasks: {name}", folder / f"{name}.jsonl"
    if file.parent != folder:
        raise InputError(f"{where}: is not the name of a file; give a name without a slash")
    if not isinstance(task, tuple | list) or len(task) != 2:
        raise InputError(f"{where}: is no pair of texts and labels; give (texts, labels)")
    try:
        texts, pairs = read_texts(task[0])
        kind, classes, numbers = read_labels(task[1])
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if kind != "single":
        raise InputError(f"{where}: has several labels per text; give one for each text")
    if len(numbers) != len(texts):
        raise InputError(f"{where}: {len(texts)} texts have {len(numbers)} labels; give one each")
    columns = {"text": texts, "label": [str(classes[number]) for number in numbers]}
    columns |= {} if pairs is None else {"text_pair": pairs}
    rows = (dict(zip(columns, row)) for row in zip(*columns.values()))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def without_run(few_shot: FewShot, model: str) -> FewShot:
    """Return the network without need of its run's files, so that they can be deleted.

    Args:
        few_shot: the weights of a run.
        model: what the run started from, which has the same tokenizer.
    """
    begun = describe_few_shot(model, ModelSettings(model=model), InnerSettings(), 2)
    adapters = dict(few_shot.source.adapter_settings)  # A mapping that can be pickled.
    return few_shot._replace(
        model=few_shot.model.replace(source=begun.model.source),
        source=few_shot.source._replace(adapter_settings=adapters),
    )
