"""Supervised training on one or more tasks: a shared encoder with one head per task."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import numpy as np

from metajax import data
from metajax.algorithms.supervised import supervised
from metajax.config.settings import FinetuneSettings
from metajax.errors import InputError
from metajax.models import classification_loss, with_head
from metajax.models.contracts import Pooling
from metajax.runs.described import pooling_of
from metajax.runs.features import compiled_logits
from metajax.runs.loop import Stage, train
from metajax.runs.parts import with_parts
from metajax.runs.record import make_record
from metajax.runs.source import Source, describe, open_source, text_length
from metajax.runs.task_data import fingerprints, load, relabel, tokenized
from metajax.runs.workdir import open_run
from metajax.training import distributed
from metajax.training.evaluation import correlation
from metajax.types import Params, Task

_log = logging.getLogger("metajax")


def finetune(settings: FinetuneSettings) -> dict[str, Any]:
    """Train on `settings.tasks`, and report the metrics of each task on its dev set.

    GLUE tasks use the metrics of GLUE. Other tasks use accuracy.

    Returns:
        `before` and `after`: the metrics of each task with a dev set, by name.

    Raises:
        InputError: the input cannot be used.
    """
    settings, parts = with_parts(settings)
    train_tasks = load(settings, split="train")
    dev_tasks = _load_dev(settings, train_tasks)
    pooling = settings.pooling or pooling_of(settings.model, "pooler")
    settings = dataclasses.replace(settings, pooling=pooling)
    source = _open_source(settings, train_tasks)
    model = source.model
    length = text_length(model, settings.max_length)
    both = tokenized([*train_tasks, *dev_tasks.values()], model, length)
    examples = both[: len(train_tasks)]
    dev_examples = dict(zip(dev_tasks, both[len(train_tasks) :]))
    dev_names = {head: train_tasks[head].name for head in dev_tasks}
    steps = _num_steps(settings, train_tasks)
    record = _record(settings, source, train_tasks)
    del train_tasks, dev_tasks  # The texts of large data sets take memory.
    plan = data.plan_batches(examples, settings.seed, settings.batch_size, parts, steps)
    logits = compiled_logits(model, many=True)  # Each measurement predicts the dev sets again.

    def make_tasks(step: int) -> Task:
        batch = data.supervised_batch(examples, settings.seed, step, settings.batch_size)
        return Task(None, data.packed_parts(batch, parts, plan, own=distributed.local_slice(parts)))

    def measure(params: Params) -> dict[str, Any]:
        return {
            name: _judge(name, dev_examples[head], head, functools.partial(logits, params))
            for head, name in dev_names.items()
        }

    return train(
        Stage(
            run=open_run(settings.workdir, record),
            settings=settings,
            model=model,
            algorithm=supervised(classification_loss(model)),
            make_tasks=make_tasks,
            num_steps=steps,
            measure=measure,
            measured_on="the tasks' dev sets" if dev_examples else "nothing; give --dev",
        ),
        source.params,
    )


def _open_source(settings: FinetuneSettings, tasks: Sequence[data.TaskData]) -> Source:
    """Open the model with one head per task, which reads the two texts of a pair together."""
    source = open_source(
        settings.model,
        settings,
        head="classification",
        num_labels=tuple(len(task.label_names) or 1 for task in tasks),
        label_names=tuple(task.label_names for task in tasks),
        pooling=cast(Pooling, settings.pooling),
    )
    if not source.model.siamese:
        return source
    _log.warning(
        "%s: its head compares the texts of pairs and is not used; finetune reads them together",
        settings.model,
    )
    params = {name: value for name, value in source.params.items() if name != "classifier"}
    model, params = with_head(
        source.model.replace(siamese=False),
        params,
        head="classification",
        rng=jax.random.key(settings.seed),
    )
    return source._replace(model=model, params=params)


def _num_steps(settings: FinetuneSettings, tasks: Sequence[data.TaskData]) -> int:
    total = sum(len(task.labels) for task in tasks)
    return settings.steps or math.ceil(settings.epochs * total / settings.batch_size)


def _record(
    settings: FinetuneSettings, source: Source, tasks: Sequence[data.TaskData]
) -> dict[str, Any]:
    """Make the record of the run. Its data are the tasks and their dev sets."""
    dev = {
        f"--dev {path}": data.fingerprint(path, glue_dir=settings.glue_dir) for path in settings.dev
    }
    return make_record(
        "finetune",
        settings,
        data=fingerprints(settings) | dev,
        parent=source.record,
        model=describe(source.model),
        pairs=[task.pairs is not None for task in tasks],
    )


def _load_dev(
    settings: FinetuneSettings, train_tasks: Sequence[data.TaskData]
) -> dict[int, data.TaskData]:
    """Load the dev sets by task number, with the label numbers of the tasks."""
    with_dev = [i for i, spec in enumerate(settings.tasks) if _has_dev(spec)]
    files = [i for i in range(len(settings.tasks)) if i not in with_dev]
    if len(settings.dev) not in (0, len(files)):
        raise InputError(
            f"--dev: {len(settings.dev)} files given for {len(files)} tasks without a built-in dev "
            "set; give one file per task, in order, or none"
        )
    if not with_dev and not settings.dev:
        return {}
    specs = {i: settings.tasks[i] for i in with_dev} | dict(zip(files, settings.dev))
    tasks = load(settings, split="validation", specs=list(specs.values()))
    return {i: relabel(task, train_tasks[i]) for i, task in zip(specs, tasks)}


def _has_dev(spec: str) -> bool:
    return spec.startswith("glue:") or (
        spec.startswith("hub:") and data.has_split(spec, "validation")
    )


def _judge(
    name: str,
    task: data.TokenizedTask,
    head: int,
    logits: Callable[[dict[str, np.ndarray]], jax.Array],
) -> dict[str, float]:
    """Compute the metrics of a task."""
    batches = data.supervised_eval_batches(task, 64, head=head)
    scores = np.concatenate([np.asarray(logits(batch)) for batch in batches])
    scores = scores[: len(task.labels)]
    guesses = scores.argmax(1) if task.label_names else scores[:, 0]
    return {
        metric: float(METRICS[metric](task.labels, guesses))
        for metric in GLUE_METRICS.get(name, ("accuracy",))
    }


def _sklearn(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    def metric(labels: np.ndarray, guesses: np.ndarray) -> float:
        import sklearn.metrics

        return getattr(sklearn.metrics, name)(labels, guesses)

    return metric


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _sklearn("accuracy_score"),
    "f1": _sklearn("f1_score"),
    "matthews": _sklearn("matthews_corrcoef"),
    "pearson": functools.partial(correlation, "pearsonr"),
    "spearman": functools.partial(correlation, "spearmanr"),
}
# Wang et al. 2019, table 1. Other tasks use accuracy.
GLUE_METRICS = {
    "glue:cola": ("matthews",),
    "glue:mrpc": ("accuracy", "f1"),
    "glue:qqp": ("accuracy", "f1"),
    "glue:stsb": ("pearson", "spearman"),
}
