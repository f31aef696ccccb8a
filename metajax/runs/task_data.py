"""Load and tokenize the data sets of `--tasks`."""

import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from metajax import data
from metajax.config.fields import flag
from metajax.config.groups import DrawSettings, TaskSettings
from metajax.data.duplicates import are_among, hashes
from metajax.errors import InputError, printable
from metajax.models import Transformer
from metajax.runs.progress import Progress
from metajax.runs.token_cache import TokenCache, tokens_directory

_log = logging.getLogger("metajax")
MANY = 50_000  # Texts that take seconds to tokenize.
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)


def load(
    settings: TaskSettings, *, split: str, specs: Sequence[str] | None = None
) -> list[data.TaskData]:
    """Load the data sets of the settings, or those of `specs` in the same way.

    Log repeated texts and texts with several labels.
    """
    drawn = isinstance(settings, DrawSettings) and not getattr(settings, "splits", None)
    regression = bool(_given(settings, "regression"))
    if regression and settings.classes is not None:
        raise InputError("--classes: does not apply to the numbers of --regression; remove one")
    tasks = data.load_tasks(
        settings.tasks if specs is None else specs,
        glue_dir=settings.glue_dir,
        split=split,
        text_column=settings.text_column,
        pair_column=settings.pair_column,
        label_column=settings.label_column,
        classes=settings.classes,
        label_separator=_given(settings, "label_separator"),
        regression=regression,
        keep_duplicates=isinstance(settings, DrawSettings) and settings.keep_duplicates,
    )
    for task in tasks:
        if regression and task.label_names:
            raise InputError(f"{task.name}: has classes, not numbers; remove --regression")
        _report_duplicates(task, drawn=drawn)
    return tasks


def _report_duplicates(task: data.TaskData, *, drawn: bool) -> None:
    """Log how many texts have several labels, and for episodes also how many are repeated."""
    if not task.label_names or task.labels.ndim == 2:
        return
    duplicates = task.duplicates
    left_out = drawn and not task.keep_duplicates
    if duplicates.conflicting.any():
        row = int(np.argmax(duplicates.conflicting))
        labels = sorted(set(task.labels[duplicates.first == row]))
        _log.warning(
            "%s: %d texts have several labels, such as %r (%s); %s",
            task.name,
            len(set(duplicates.first[duplicates.conflicting])),
            printable(task.texts[row][:60]),
            printable(" and ".join(repr(task.label_names[label]) for label in labels)),
            "no episode uses them" if left_out else "keep one label for each",
        )
    if drawn and duplicates.repeated:
        _log.warning(
            "%s: %d of %d examples have the text of another; %s",
            task.name,
            duplicates.repeated,
            len(task.labels),
            "an episode uses each text once (unless you pass --keep-duplicates)"
            if left_out
            else "episodes may have it in both support and query set, so accuracies are too high",
        )


def warn_of_numbers(task: data.TaskData) -> None:
    """Say that the labels are classes if all are numbers and some are not whole."""
    names = task.label_names
    fractions = [name for name in names if _DECIMAL.fullmatch(name) and float(name) % 1]
    if fractions and all(map(_DECIMAL.fullmatch, names)):
        _log.warning(
            "%s: the labels are numbers, such as %s, but count as classes; to predict numbers, "
            "give --regression",
            *(task.name, fractions[0]),
        )


def fingerprints(settings: TaskSettings) -> dict[str, str]:
    """Return the sha256 of each data set, and of the files of classes and label names."""
    hashes = {
        f"{option} {spec}": data.fingerprint(spec, glue_dir=settings.glue_dir)
        for option, specs in (("--tasks", settings.tasks), ("--valid", _given(settings, "valid")))
        for spec in specs or ()
    }
    for name in ("classes", "valid_classes", "label_names"):
        if (file := _given(settings, name)) is not None:
            hashes[f"{flag(name)} {file}"] = data.fingerprint(file)
    return hashes


def _given(settings: TaskSettings, name: str) -> Any:
    """Return a setting that only some commands have; None if it is not given."""
    return getattr(settings, name, None)


def tokenized(
    tasks: Sequence[data.TaskData], model: Transformer, length: int, *, keep: bool = True
) -> list[data.TokenizedTask]:
    """Tokenize the data sets; log how many texts were too long.

    If the model has a prompt, it is put before each text, and of a pair before the first. A siamese
    network reads each text of a pair by itself.

    Args:
        tasks: the data sets.
        model: a model with its tokenizer.
        length: largest number of tokens of a text.
        keep: whether the tokens of many texts are kept on disk, for later runs. Then they are
            mapped into memory. Those of pairs apart are not kept.
    """
    total = sum(len(task.texts) * (1 + _is_apart(task, model)) for task in tasks)
    if model.prompt:
        _log.info("%s: its prompt %r is put before each text", model.source, model.prompt)
    keep = keep and total >= MANY and not all(_is_apart(task, model) for task in tasks)
    cache = TokenCache(model.tokenizer, length, tokens_directory()) if keep else None
    if cache is not None:
        _log.info("tokens are read from, or kept in, %s", tokens_directory())
    with Progress("tokenize", "text", total, shown=total >= MANY) as bar:

        def count(texts: int) -> None:
            bar.update(count=texts)

        def tokenize(task: data.TaskData) -> data.TokenizedTask:
            task = _with_prompt(task, model) if model.prompt else task
            if _is_apart(task, model):
                return data.tokenize_apart(task, model.tokenizer, length, per_chunk_fn=count)
            if cache is not None:
                return cache.tokenize(task, count)
            return data.tokenize_task(task, model.tokenizer, length, per_chunk_fn=count)

        arrays = list(map(tokenize, tasks))
    truncated = sum(task.tokens.truncated for task in arrays)
    if truncated:
        _log.warning("%d of %d texts were cut to %d tokens", truncated, total, length)
    return arrays


def _is_apart(task: data.TaskData, model: Transformer) -> bool:
    return model.siamese and task.pairs is not None


def _with_prompt(task: data.TaskData, model: Transformer) -> data.TaskData:
    pairs = task.pairs
    if pairs is not None and model.siamese:
        pairs = [model.prompt + text for text in pairs]
    return task._replace(texts=[model.prompt + text for text in task.texts], pairs=pairs)


def relabel(task: data.TaskData, training: data.TaskData) -> data.TaskData:
    """Number the classes of a task as in the training file.

    Log how many of its texts are also in the training file.

    Raises:
        InputError: the training file lacks one of its labels, or only one of the two has scores, or
            pairs of texts.
    """
    names = training.label_names
    if (task.pairs is None) != (training.pairs is None):
        one, other = ("pairs", "single texts") if task.pairs else ("single texts", "pairs")
        raise InputError(
            f"{task.name}: has {one} and the training file {other}; give a file like the training "
            "file"
        )
    if bool(task.label_names) != bool(names):
        scores = "classes and the training file scores" if names == () else "scores and no classes"
        raise InputError(f"{task.name}: has {scores}; give a file like the training file")
    unknown = [name for name in task.label_names if name not in names]
    if unknown:
        raise InputError(
            f"{task.name}: has the label {unknown[0]!r}, but the training file does not; "
            "use the same labels in both"
        )
    _warn_of_shared(task, training)
    if task.label_names == names:
        return task
    order = np.array([names.index(name) for name in task.label_names], np.int32)
    if task.labels.ndim == 1:
        return task._replace(labels=order[task.labels], label_names=names)
    labels = np.zeros((len(task.labels), len(names)), np.int32)
    labels[:, order] = task.labels
    return task._replace(labels=labels, label_names=names)


def _warn_of_shared(task: data.TaskData, training: data.TaskData) -> None:
    own, others = (hashes(each.texts, each.pairs) for each in (task, training))
    shared = int(are_among(own, others).sum())
    if shared:
        _log.warning(
            "%s: %d of %d examples are also in the training file, so measurements on this file are "
            "too good",
            *(task.name, shared, len(task.texts)),
        )
