"""The tasks on which metatrain chooses its best checkpoint."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from metajax import data
from metajax.config.settings import MetatrainSettings
from metajax.data.duplicates import are_among, hashes
from metajax.errors import InputError
from metajax.runs.task_data import load

_log = logging.getLogger("metajax")

VALIDATED_EPISODES = 64
_MORE = "give others with --valid"


def load_validation(
    settings: MetatrainSettings, tasks: Sequence[data.TaskData], spec: data.EpisodeSpec
) -> list[data.TaskData]:
    """Load the tasks of `--valid`.

    Raises:
        InputError: they cannot be used, or some are training tasks.
    """
    if not settings.valid:
        return []
    own = dataclasses.replace(
        settings, tasks=settings.valid, classes=settings.valid_classes, source_weights=()
    )
    validation = load(own, split="train")
    data.check_episodes(validation, spec)
    _check_apart(settings, tasks, validation)
    return validation


def training_and_validation(
    settings: MetatrainSettings,
    tasks: Sequence[data.TokenizedTask],
    given: Sequence[data.TokenizedTask],
    spec: data.EpisodeSpec,
) -> data.HeldOut:
    """Return the tasks to train on, with their weights, and those for validation without weights.

    Args:
        settings: the settings.
        tasks: the data sets of `--tasks`.
        given: those of `--valid`. Without any, some of the tasks are held out, as `--held-out` says
            and is logged.
        spec: the size of an episode.

    Raises:
        InputError: only tasks of weight 0 are left to train on.
    """
    if settings.source_weights:
        tasks = [
            task._replace(weight=weight) for task, weight in zip(tasks, settings.source_weights)
        ]
    if given:
        return data.HeldOut(list(tasks), list(given), "--valid")
    if not settings.held_out:
        return data.HeldOut(list(tasks), [], "")
    held_out = data.hold_out_tasks(tasks, spec, settings.seed, settings.held_out)
    _report(held_out)
    if all(task.weight == 0 for task in held_out.training):
        raise InputError(
            f"--source-weights: {_named(held_out)} is held out for validation, and the others have "
            "the weight 0; give another a weight above 0, or --valid"
        )
    validation = [task._replace(weight=None) for task in held_out.validation]
    return held_out._replace(validation=validation)


def _report(held_out: data.HeldOut) -> None:
    """Log what is held out."""
    if not held_out.validation:
        _log.warning(
            "nothing can be held out for validation, because an episode needs all classes and "
            "examples: later stages read the last checkpoint, however good it is; %s",
            _MORE,
        )
    elif held_out.kind == "examples":
        _log.warning(
            "there are too few classes to hold out: validation is on other examples of the "
            "training classes, which says little about new classes; %s",
            _MORE,
        )
    else:
        _log.info("held out for validation: %s; %s", _named(held_out), _MORE)


def describe_validation(held_out: data.HeldOut) -> str:
    """Return what is measured, for `measured_on`."""
    return f"{VALIDATED_EPISODES} episodes of validation tasks: {_named(held_out)}"


def record_validation(held_out: data.HeldOut) -> dict[str, Any]:
    """Return what is held out, for the record of a run."""
    rows = [
        {"task": task.name, "classes": list(task.label_names), "examples": task.num_examples}
        for task in held_out.validation
    ]
    return {"kind": held_out.kind, "tasks": rows}


def _named(held_out: data.HeldOut) -> str:
    names = ", ".join(task.name for task in held_out.validation)
    if held_out.kind == "classes":
        return f"{sum(len(task.label_names) for task in held_out.validation)} classes of {names}"
    return f"examples of {names}" if held_out.kind == "examples" else names


def _check_apart(
    settings: MetatrainSettings, tasks: Sequence[data.TaskData], validation: Sequence[data.TaskData]
) -> None:
    """Refuse validation on a class of the same data that is trained on. Warn of equal texts."""
    contents, valid_contents = (
        [data.fingerprint(spec, glue_dir=settings.glue_dir) for spec in specs]
        for specs in (settings.tasks, settings.valid)
    )
    trained_on = np.concatenate([hashes(task.texts, task.pairs) for task in tasks])
    for task, content in zip(validation, valid_contents, strict=True):
        same = [each for each, other in zip(tasks, contents, strict=True) if other == content]
        trained = {name for each in same for name in each.label_names}
        both = sorted(trained & set(task.label_names))
        if both:
            raise InputError(
                f"{task.name}: --valid and --tasks share the label {both[0]!r}; choose different "
                "labels of the file with --classes and --valid-classes, or give other files"
            )
        repeated = int(are_among(hashes(task.texts, task.pairs), trained_on).sum())
        if repeated:
            _log.warning(
                "%s: %d of %d validation texts are also training texts, so the gain is too high; "
                "remove them",
                *(task.name, repeated, len(task.texts)),
            )
