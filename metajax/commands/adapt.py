"""Stage 3: a few gradient steps on a new task's few examples."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import data
from metajax.commands.predict import label
from metajax.config.settings import AdaptSettings, PredictSettings
from metajax.errors import InputError
from metajax.models import save_config
from metajax.reading import is_number
from metajax.runs.descent import Descent, fold
from metajax.runs.few_shot import FewShot, open_few_shot
from metajax.runs.metrics import MetricsLog
from metajax.runs.record import make_record
from metajax.runs.source import Classifier, describe, text_length
from metajax.runs.task_data import fingerprints, load, relabel, tokenized
from metajax.runs.workdir import begin, locked, open_run, read_results, write_results
from metajax.training.checkpoint import Checkpoints
from metajax.training.outer import OuterState
from metajax.types import Params

_log = logging.getLogger("metajax")
# Tried if the settings name no rate. A sentence encoder tolerates the first from one example per
# class; a plain pretrained BERT hardly tolerates the last but one.
_RATES = (0.3, 0.1, 0.03, 0.01, 0.003)
_LORA_RATES = (3.0, 1.0)  # Before these: adapters begin at zero and move little.


class _Found(NamedTuple):
    """The adapted parameters and how they came about.

    Attributes:
        params: reparametrized, as `Descent` has them.
        losses: on the examples before each step and after the last.
        rate: of the steps; None where none were kept.
        left_out: the cross-validation that decided, if there was one.
    """

    params: Params
    losses: list[float]
    rate: float | None
    left_out: dict[str, Any] | None = None


def adapt(settings: AdaptSettings) -> dict[str, Any]:
    """Adapts to the one task of `settings.tasks` and writes a checkpoint that `predict` reads.

    Returns:
        `labels`, the task's label names; `examples`, how many; `inner_lr`, the rate of the steps,
        None where the prototypes were kept; `loss`, on the examples before each step;
        `loss_after`, after the last; where prototypes and steps were compared, `left_out`: how many
        `examples` were left out, each once, and what share of them the `prototypes` and the `steps`
        at `inner_lr` label right; with `settings.dev`, `dev`: of other examples, how many, the
        `accuracy` (0..1) and the `confusion` matrix, a row a true label and a column a predicted
        one.

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
    _warn_if_stepless(settings, few_shot)
    # A rate that is looked for is not one of the run's settings.
    looked_for = settings.inner_lr is None
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
    run = open_run(settings.workdir, record)

    chooses = looked_for and inner["inner_steps"]
    # A run that has ended has chosen: another machine might not choose the same again.
    known = _read_choice(run.path) if chooses else None
    _log.info("%s: compiling for %d examples", run.path, len(task.labels))
    descent = Descent(few_shot, *fold(examples))
    if known is not None:
        found = _repeat(descent, known)
    else:
        found = _choose(few_shot, descent) if chooses else _take(few_shot, descent)
    reduced, losses, rate, left_out = found
    _check_finite(found, settings.tasks[0])
    begin(run, lambda directory: save_config(directory, model))
    steps = len(losses) - 1
    at = "" if rate is None else f" at rate {rate:g}"
    _log.info("%s: %d steps%s, loss %.3f -> %.3f", run.path, steps, at, losses[0], losses[-1])
    params, rng = descent.undo(reduced), jax.random.key(settings.seed)
    with (
        locked(run),
        Checkpoints(run.checkpoints, keep=1, record=run.record) as checkpoints,
    ):
        if checkpoints.latest_step is None:
            checkpoints.save(OuterState(jnp.int32(steps), params, (), rng))
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
    if left_out is not None:
        results["left_out"] = left_out
    _warn_if_risen(losses, rate)
    if dev is not None:
        results["dev"] = _judge(Classifier(model, params, 0, settings.max_length, None), dev)
    write_results(run, results)
    return results


def _warn_if_stepless(settings: AdaptSettings, few_shot: FewShot) -> None:
    """Says so where the weights' own run has set that there are no steps."""
    if settings.inner_steps is None and not few_shot.inner["inner_steps"]:
        _log.warning(
            "%s: was meta-trained with --inner-steps 0, so that no steps are taken; to take them "
            "give --inner-steps 3 and a new --workdir",
            settings.model,
        )


def _check_finite(found: _Found, task: str) -> None:
    if not np.isfinite(found.losses).all():
        raise InputError(
            f"{task}: its loss is {found.losses[-1]} after the inner steps; give a smaller "
            f"--inner-lr than {found.rate:g}, or other weights"
        )


def _read_choice(workdir: Path) -> dict[str, Any] | None:
    """The results of an earlier run in the workdir, if it has ended.

    Raises:
        InputError: they have neither a rate nor the comparison that kept the prototypes.
    """
    known = read_results(workdir)
    if known is None:
        return None
    rate: Any = known.get("inner_lr")
    if not (is_number(rate) and rate > 0) and not (rate is None and known.get("left_out")):
        raise InputError(
            f"{workdir / 'results.json'}: its inner_lr is {rate}; restore it from a backup"
        )
    return known


def _repeat(descent: Descent, known: dict[str, Any]) -> _Found:
    """What an earlier run has chosen."""
    rate, left_out = known["inner_lr"], known.get("left_out")
    if rate is None:
        return _stay(descent, None, left_out)
    return _search(descent, (float(rate),))._replace(left_out=left_out)


def _take(few_shot: FewShot, descent: Descent) -> _Found:
    """The steps at the rate that is set."""
    rate = few_shot.inner["inner_lr"]
    if not few_shot.inner["inner_steps"]:
        return _stay(descent, rate, None)
    return _search(descent, (rate,))


def _stay(descent: Descent, rate: float | None, left_out: dict[str, Any] | None) -> _Found:
    """No steps."""
    params = descent.start(descent.parts)
    loss = descent.loss(params, descent.parts)
    _check_start(loss)
    return _Found(params, [loss], rate, left_out)


def _check_start(loss: float) -> None:
    if not np.isfinite(loss):
        raise InputError(f"--model: the loss on the examples is {loss}; give other weights")


def _choose(few_shot: FewShot, descent: Descent) -> _Found:
    """The steps at the rate that `_search` finds, or the prototypes that they start from.

    The steps are kept where they label more of the examples right that are left out, and where
    none can be left out: no class has a second example, or the start is another.
    """
    found = _search(descent, _rates(few_shot))
    if few_shot.inner["head"] != "prototypes":
        return found
    right, judged = descent.left_out(None)
    if not judged:
        return found
    _log.info("rate %g: checking the steps on examples left out", found.rate)
    more, _ = descent.left_out(found.rate)
    said = f"of {judged} examples left out, {more} are labelled right by the steps, {right} by the "
    said += (
        f"prototypes that they start from: the {'steps' if more > right else 'prototypes'} are kept"
    )
    left_out: dict[str, Any] = {
        "examples": judged,
        "prototypes": right / judged,
        "steps": more / judged,
    }
    left_out |= {"inner_lr": found.rate}
    if more > right:
        _log.info("%s", said)
        return found._replace(left_out=left_out)
    _log.info("%s (--inner-lr %g and a new --workdir take the steps)", said, found.rate)
    return _stay(descent, None, left_out)


def _rates(few_shot: FewShot) -> tuple[float, ...]:
    """Those to try, the largest first; of weights that were meta-trained, their own first."""
    rates = (*_LORA_RATES, *_RATES) if few_shot.inner["lora"] else _RATES
    if not few_shot.is_meta_trained:
        return rates
    own = few_shot.inner["inner_lr"]
    return (own, *(rate for rate in rates if rate < own))


def _search(descent: Descent, rates: Sequence[float]) -> _Found:
    """The steps at the first rate at which none raises the loss, or else at the last."""
    begin = descent.begin(descent.parts)
    _check_start(begin.loss)
    for rate in rates:
        params, losses = descent.descend(begin, rate, stop=rate != rates[-1])
        if np.all(np.diff(losses) <= 0):
            break
        if rate != rates[-1]:
            _log.info(
                "rate %g: step %d raises the loss, trying a smaller rate", rate, len(losses) - 1
            )
    return _Found(params, losses, rate)


def _warn_if_risen(losses: Sequence[float], rate: float | None) -> None:
    if losses[-1] > losses[0]:
        _log.warning(
            "the steps raised the loss on the examples from %.3f to %.3f; give a smaller "
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
