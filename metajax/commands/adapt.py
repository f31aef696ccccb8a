"""Stage 3: a few gradient steps on a new task's few examples."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax import data
from metajax.commands.predict import label
from metajax.config.settings import AdaptSettings, PredictSettings
from metajax.errors import InputError
from metajax.models import classification_loss, save_config
from metajax.reading import is_number
from metajax.runs.few_shot import FewShot, open_few_shot
from metajax.runs.metrics import MetricsLog
from metajax.runs.record import make_record
from metajax.runs.source import Classifier, describe, text_length
from metajax.runs.task_data import batch_of, fingerprints, load, relabel, tokenized
from metajax.runs.workdir import begin, locked, open_run, read_results, write_results
from metajax.training.checkpoint import Checkpoints
from metajax.training.outer import OuterState
from metajax.types import Batch, Key, Params

_log = logging.getLogger("metajax")
# What is tried where neither the settings nor the weights say: a sentence encoder bears the first
# from one example a class, a BERT as it was pretrained hardly the last but one.
_RATES = (0.3, 0.1, 0.03, 0.01, 0.003)


def adapt(settings: AdaptSettings) -> dict[str, Any]:
    """Adapts to the one task of `settings.tasks` and writes a checkpoint that `predict` reads.

    Returns:
        `labels`, the task's label names; `examples`, how many; `inner_lr`, the rate of the steps;
        `loss`, on the examples before each of them; `loss_after`, after the last; with
        `settings.dev`, `dev`: of other examples, how many, the `accuracy` (0..1) and the
        `confusion` matrix, a row a true label and a column a predicted one.

    Raises:
        InputError: the input cannot be used.
    """
    if len(settings.tasks) != 1:
        raise InputError(f"--tasks names {len(settings.tasks)} tasks: adapt to one at a time")
    (task,) = load(settings, split="train")
    if not task.label_names:
        raise InputError(f"{task.name}: is a regression: adapt needs classes")
    dev = _load_dev(settings, task)
    few_shot = open_few_shot(settings.model, settings, settings, len(task.label_names))
    inner = few_shot.inner_settings()
    # A rate that is looked for is not one of the run's settings.
    looked_for = settings.inner_lr is None and not few_shot.is_meta_trained
    settings = dataclasses.replace(settings, **inner | ({"inner_lr": None} if looked_for else {}))
    model = few_shot.model.replace(label_names=(task.label_names,))
    (examples,) = tokenized([task], model, text_length(model, settings.max_length))
    record = make_record(
        "adapt",
        settings,
        data=fingerprints(settings),
        parent=few_shot.source.record,
        model=describe(model),
        pairs=[task.pairs is not None],
    )
    run = open_run(settings.workdir, record, settings)

    rates: Sequence[float] = (inner["inner_lr"],)
    if looked_for:
        # A run that has ended has its rate, which another machine may not find again.
        known = read_results(run.path)
        rates = (_rate_of(known, run.path),) if known else _RATES
    rng = jax.random.key(settings.seed)
    params, losses, rate = _descend(few_shot, batch_of(examples), rng, rates)
    if not np.isfinite(losses).all():
        raise InputError(
            f"{settings.tasks[0]}: its loss is {losses[-1]} after the inner steps: give a smaller "
            f"--inner-lr than {rate:g}, or other weights"
        )
    begin(run, lambda directory: save_config(directory, model))
    how = (len(losses) - 1, rate, losses[0], losses[-1])
    _log.info("%s: %d steps at rate %g, loss %.3f -> %.3f", run.path, *how)
    with (
        locked(run),
        Checkpoints(run.checkpoints, keep=1, record=run.record) as checkpoints,
    ):
        if checkpoints.latest_step is None:
            checkpoints.save(OuterState(jnp.int32(inner["inner_steps"]), params, (), rng))
        with MetricsLog(run, 0) as log:
            for step, loss in enumerate(losses[:-1], start=1):
                log.write({"step": step, "loss": loss})
    results: dict[str, Any] = {
        "labels": list(task.label_names),
        "examples": len(task.labels),
        "inner_lr": rate,
        "loss": losses[:-1],
        "loss_after": losses[-1],
    }
    _warn_if_risen(losses, rate)
    if dev is not None:
        results["dev"] = _judge(Classifier(model, params, 0, settings.max_length, None), dev)
    write_results(run, results)
    return results


def _rate_of(results: dict[str, Any], workdir: Path) -> float:
    rate: Any = results.get("inner_lr")
    if not (is_number(rate) and rate > 0):
        raise InputError(
            f"{workdir / 'results.json'}: its inner_lr is {rate}: restore it from a backup"
        )
    return float(rate)


def _descend(
    few_shot: FewShot, batch: Batch, rng: Key, rates: Sequence[float]
) -> tuple[Params, list[float], float]:
    """Adapts at the first rate at which no step raises the loss, or else at the last.

    Returns:
        The adapted parameters, the loss before each step and after the last, and the rate.
    """

    # All of it arguments: what is compiled serves other examples of the same shapes too.
    @jax.jit
    def run(params: Params, batch: Batch, rng: Key, rate: float) -> tuple[Params, jax.Array]:
        adapted, info = few_shot.algorithm(inner_lr=rate).adapt(params, batch, rng)
        after, _ = classification_loss(few_shot.model)(adapted, batch, None)
        return adapted, jnp.append(info.support_loss, after)

    for rate in rates:
        params, losses = run(few_shot.params, batch, rng, rate)
        if np.all(np.diff(losses) <= 0):
            break
    return params, losses.tolist(), rate


def _warn_if_risen(losses: Sequence[float], rate: float) -> None:
    if losses[-1] > losses[0]:
        _log.warning(
            "the steps raised the loss on the examples from %.3f to %.3f: give a smaller "
            "--inner-lr than %g, and a new --workdir",
            losses[0],
            losses[-1],
            rate,
        )


def _load_dev(settings: AdaptSettings, task: data.TaskData) -> data.TaskData | None:
    """The dev set, labelled like the task."""
    if settings.dev is None:
        return None
    (dev,) = load(settings, split="validation", specs=[settings.dev])
    return relabel(dev, task)


def _judge(classifier: Classifier, dev: data.TaskData) -> dict[str, Any]:
    """How the examples of a dev set are labelled."""
    number = {name: i for i, name in enumerate(dev.label_names)}
    found = label(classifier, dev.texts, dev.pairs, PredictSettings.batch_size)
    guesses = np.array([number[guess.label] for guess in found])
    confusion = np.zeros((len(number), len(number)), int)
    np.add.at(confusion, (dev.labels, guesses), 1)
    return {
        "examples": len(dev.texts),
        "accuracy": float(confusion.trace() / confusion.sum()),
        "confusion": confusion.tolist(),
    }
