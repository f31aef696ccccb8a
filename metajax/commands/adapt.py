"""Stage 3: adapt to a new task by a few gradient steps on its examples."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax import data
from metajax.config.inner import check_any_labels
from metajax.config.settings import AdaptSettings
from metajax.errors import InputError
from metajax.models import save_config
from metajax.reading import is_number
from metajax.runs.choice import Adapted
from metajax.runs.classifier import Classifier
from metajax.runs.dev_set import judge
from metajax.runs.document_stream import adapt_to_stream, open_stream, steps_on
from metajax.runs.document_tasks import are_documents
from metajax.runs.few_shot import FewShot, open_few_shot
from metajax.runs.label_names import with_label_names
from metajax.runs.method_choice import CANDIDATES, adapt_by
from metajax.runs.methods import with_several_labels
from metajax.runs.metrics import MetricsLog
from metajax.runs.original import prepare_weights
from metajax.runs.record import make_record
from metajax.runs.source import describe
from metajax.runs.task_data import fingerprints, load, relabel, tokenized, warn_of_numbers
from metajax.runs.workdir import Run, begin, locked, open_run, read_results, write_results
from metajax.training.checkpoint import Checkpoints
from metajax.training.outer import OuterState

_log = logging.getLogger("metajax")


def adapt(settings: AdaptSettings) -> dict[str, Any]:
    """Adapt to one task's examples or label names, and write a checkpoint that `predict` reads.

    Returns:
        A dict with these keys:

        - `labels`: names of the task's labels; empty if the labels are numbers.
        - `examples`: number of examples.
        - `inner_lr`: rate of the inner steps. None if the prototypes were kept.
        - `loss`: loss on the examples before each step; with `contrastive` or `finetune`, the
          training loss of each step, as a mean over the networks if several are averaged.
        - `loss_after`: loss on the examples after the steps; with numbers, the mean squared error.
        - `left_out`, if prototypes and steps were compared by cross-validation: number of
          `examples`, and the accuracies of the `prototypes` and of the `steps` at rate `inner_lr`.
        - `choice`, with `--method choose` or `--weights choose`: the method that was `chosen`, the
          numbers of `folds` and of held-out `examples`, for each of the `candidates` its mean
          `log_likelihood` at its `temperature`, and its `accuracy`; and the names of those that the
          time limit `cut`. With `--weights choose` also the `weights` that were chosen, and the
          `verdict` that says why; the names of candidates with the original weights begin with
          `original`.
        - `temperature` and `threshold`, with `--calibrate`: the logits are divided by the first;
          95% of held-out examples then have a largest probability of at least the second. Both are
          None if nothing can be held out.
        - `dev`, with `settings.dev`: number of `examples` of the dev set, `accuracy`, `macro_f1`,
          `balanced_accuracy` and `calibration_error` (all 0..1; the last is the expected
          calibration error), and `confusion` matrix (rows are true labels, columns are predicted
          labels). With several labels per text: `accuracy` (fraction of texts whose labels are all
          right), `macro_f1` and `micro_f1`. With numbers: `pearson`, `spearman` and
          `mean_squared_error`.

        Of documents: number of `documents` and `chunks`; `inner_lr`; `before` and `after` the
        steps, the `loss` (nats per token) and `bits_per_byte` of the `tasks` and of `dev`; the same
        of the `stream`, each chunk before the step on it.

    Raises:
        InputError: the input cannot be used.
    """
    if are_documents(settings):
        for name, default in (("method", "steps"), ("weights", "checkpoint")):
            if (value := getattr(settings, name)) != default:
                raise InputError(f"--{name} {value}: needs labels; give labelled tasks")
        return _adapt_to_documents(settings)
    task = _load_examples(settings)
    dev = _load_dev(settings, task)
    if not task.label_names:
        check_any_labels(settings, "the labels are numbers")
    few_shot = open_few_shot(settings.model, settings, settings, len(task.label_names) or 1)
    if task.labels.ndim == 2:
        few_shot = with_several_labels(few_shot, settings)
    few_shot, model, original = prepare_weights(few_shot, settings, settings, task)
    chooses = False
    if settings.method == "steps":
        settings, chooses = _with_steps(settings, few_shot)
    (examples,) = tokenized([task], model, few_shot.text_length(settings.max_length))
    record = make_record(
        "adapt",
        settings,
        data=fingerprints(settings),
        parent=few_shot.source.record,
        model=describe(model),
        pairs=[task.pairs is not None],
    )
    run = open_run(settings.workdir, record)

    # Keep the choices of a finished run, because another machine might choose differently.
    known = _read_choice(run.path, settings, chooses=chooses)
    _log.info("%s: compiling for %d examples", run.path, len(task.labels))
    adapted = adapt_by(
        few_shot, examples, settings, original=original, chooses=chooses, known=known, donate=True
    )
    _check_finite(adapted, task.name)
    results = _results(adapted, task)
    if settings.method == "steps":
        _warn_if_risen(adapted)
    if dev is not None:
        params = few_shot.merge(adapted.params)
        classifier = Classifier(model, params, 0, settings.max_length, None)
        results["dev"] = judge(classifier, dev)

    # Write checkpoint and results together, because a resumed run may choose differently.
    begin(run, lambda directory: save_config(directory, model))
    _save(run, few_shot, adapted)
    write_results(run, results)
    return results


def _adapt_to_documents(settings: AdaptSettings) -> dict[str, Any]:
    few_shot = open_few_shot(settings.model, settings, settings, None)
    length = few_shot.text_length(settings.max_length)
    stream = open_stream(settings.tasks, few_shot, length)
    dev = None if settings.dev is None else open_stream((settings.dev,), few_shot, length)
    inner = few_shot.inner | {"inner_steps": steps_on(few_shot, settings, stream.chunks)}
    few_shot = few_shot._replace(inner=inner)
    rate = None if few_shot.entry.learned_rates else few_shot.inner["inner_lr"]
    settings = dataclasses.replace(settings, **few_shot.inner_settings() | {"inner_lr": rate})
    record = make_record(
        "adapt",
        settings,
        data=fingerprints(settings),
        parent=few_shot.source.record,
        model=describe(few_shot.model),
    )
    run = open_run(settings.workdir, record)
    streamed = adapt_to_stream(few_shot, stream, dev)
    before, after = (each["tasks"]["loss"] for each in (streamed.before, streamed.after))
    adapted = Adapted(streamed.params, [*streamed.losses, after], rate)
    _check_finite(adapted, settings.tasks[0])
    begin(run, lambda directory: save_config(directory, few_shot.model))
    _save(run, few_shot, adapted, before)
    _warn_if_risen(adapted._replace(losses=[before, after]))
    results = {
        "documents": stream.documents,
        "chunks": stream.chunks,
        "inner_lr": rate,
        "before": streamed.before,
        "after": streamed.after,
        "stream": streamed.stream,
    }
    write_results(run, results)
    return results


def _save(run: Run, few_shot: FewShot, adapted: Adapted, before: float | None = None) -> None:
    """Write the checkpoint, without frozen parameters, and the losses.

    Args:
        run: where to write.
        few_shot: the network and its inner loop.
        adapted: the result of the steps.
        before: loss on all examples before the steps, if steps have examples of their own.
    """
    losses, steps, frozen = adapted.losses, len(adapted.losses) - 1, few_shot.frozen
    params = few_shot.merge(adapted.params) if frozen is None else adapted.params
    before = losses[0] if before is None else before
    at = "" if adapted.rate is None else f" at rate {adapted.rate:g}"
    change = f", loss {before:.3f} -> {losses[-1]:.3f}"
    if run.record["settings"]["method"] != "steps":  # The training loss may be another one.
        change = f"; loss on the examples afterwards: {losses[-1]:.3f}"
    _log.info("%s: %d steps%s%s", run.path, steps, at, change)
    with (
        locked(run),
        Checkpoints(run.checkpoints, keep=1, record=run.record, frozen=frozen) as checkpoints,
    ):
        if checkpoints.latest_step is None:
            state = OuterState(jnp.int32(steps), params, (), jax.random.key(few_shot.seed))
            checkpoints.save(state)
        with MetricsLog(run, 0) as log:
            for step, loss in enumerate(losses[:-1], start=1):
                log.write({"step": step, "loss": loss})


def _results(adapted: Adapted, task: data.TaskData) -> dict[str, Any]:
    results = {
        "labels": list(task.label_names),
        "examples": len(task.labels),
        "inner_lr": adapted.rate,
        "loss": adapted.losses[:-1],
        "loss_after": adapted.losses[-1],
    }
    if adapted.calibration is not None:
        results |= adapted.calibration._asdict()
    added = {name: getattr(adapted, name) for name in ("left_out", "choice")}
    return results | {name: value for name, value in added.items() if value is not None}


def _with_steps(settings: AdaptSettings, few_shot: FewShot) -> tuple[AdaptSettings, bool]:
    """Return the settings with those of the inner loop, and whether to choose the rate."""
    _warn_if_stepless(settings, few_shot)
    entry, inner = few_shot.entry, few_shot.inner_settings()
    chooses = settings.inner_lr is None and few_shot.can_choose_rate
    if chooses or entry.learned_rates:
        inner["inner_lr"] = None  # No setting of the run: adapt chooses it, or it was learned.
    return dataclasses.replace(settings, **inner), chooses


def _warn_if_stepless(settings: AdaptSettings, few_shot: FewShot) -> None:
    """Warn if there are no inner steps because the weights were meta-trained without them."""
    takes_steps = "inner_steps" in few_shot.entry.settings
    if takes_steps and settings.inner_steps is None and not few_shot.inner["inner_steps"]:
        _log.warning(
            "%s: was meta-trained without inner steps, so adapt takes none; to take steps, give "
            "--inner-steps 3 and a new --workdir",
            settings.model,
        )


def _check_finite(adapted: Adapted, task: str) -> None:
    if not np.isfinite(adapted.losses).all():
        smaller = "" if adapted.rate is None else f"a smaller --inner-lr than {adapted.rate:g}, or "
        raise InputError(
            f"{task}: the loss is {adapted.losses[-1]} after the inner steps; give {smaller}other "
            "weights"
        )


def _read_choice(workdir: Path, settings: AdaptSettings, *, chooses: bool) -> dict[str, Any] | None:
    """Read what an earlier run in the workdir has chosen. None: nothing, or it has not finished.

    Raises:
        InputError: the results lack what the run has chosen: a rate of the inner steps or a
            comparison with prototypes, a method, a temperature.
    """
    known = read_results(workdir)
    compares = "choose" in (settings.method, settings.weights)
    if known is None or not (chooses or settings.calibrate or compares):
        return None
    rate, choice = known.get("inner_lr"), known.get("choice")
    calibration = known.get("temperature"), known.get("threshold")
    calibrated = _is_positive(calibration[0]) and is_number(calibration[1])
    if calibration == (None, None):  # Nothing could be held out.
        calibrated = known.keys() >= {"temperature", "threshold"}
    problem = None
    if chooses and not _is_positive(rate) and not (rate is None and known.get("left_out")):
        problem = f"inner_lr is {rate}"
    if settings.calibrate and not calibrated:
        problem = "temperature and threshold are {} and {}".format(*calibration)
    if compares and not _is_choice(choice, settings):
        problem = f"the choice is {choice}"
    if problem is not None:
        raise InputError(f"{workdir / 'results.json'}: {problem}; restore the file from a backup")
    return known


def _is_choice(value: Any, settings: AdaptSettings) -> bool:
    methods = tuple(CANDIDATES) if settings.method == "choose" else (settings.method,)
    weights = ("checkpoint", "original") if settings.weights == "choose" else (None,)
    return (
        isinstance(value, dict)
        and value.get("chosen") in methods
        and value.get("weights") in weights
        and value.keys() >= {"folds", "examples", "candidates", "cut"}
    )


def _is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def _warn_if_risen(adapted: Adapted) -> None:
    if adapted.losses[-1] > adapted.losses[0] and adapted.rate is not None:
        _log.warning(
            "the steps increased the loss on the examples from %.3f to %.3f; give a smaller "
            "--inner-lr than %g, and a new --workdir",
            adapted.losses[0],
            adapted.losses[-1],
            adapted.rate,
        )


def _load_examples(settings: AdaptSettings) -> data.TaskData:
    """Load the one task, and add the names of its labels.

    Raises:
        InputError: there is not one task, nor names instead.
    """
    named = settings.label_names
    if settings.label_separator is not None and not settings.tasks:
        raise InputError("--label-separator: needs --tasks; give them, or remove it")
    if len(settings.tasks) > 1 or not (settings.tasks or named):
        raise InputError(
            f"--tasks: {len(settings.tasks)} tasks given, but adapt takes one; give one task, or "
            "--label-names"
        )
    if not settings.tasks:
        empty = data.TaskData(str(named), [], None, np.zeros(0, np.int32), ())
        return with_label_names(empty, str(named))
    (task,) = load(settings, split="train")
    if named is not None and not task.label_names:
        raise InputError(f"--label-names: {task.name} has numbers, which have no names; remove it")
    if settings.label_separator is None:
        warn_of_numbers(task)
    return task if named is None else with_label_names(task, named)


def _load_dev(settings: AdaptSettings, task: data.TaskData) -> data.TaskData | None:
    """Load the dev set with the label numbers of the task."""
    if settings.dev is None:
        return None
    (dev,) = load(settings, split="validation", specs=[settings.dev])
    return relabel(dev, task)
