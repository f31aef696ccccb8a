"""Stage 2: meta-training on episodes of many tasks, or on streams of documents."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax import data
from metajax.algorithms import ALGORITHMS
from metajax.config.inner import RATES_LEARNING_RATE
from metajax.config.settings import MetatrainSettings
from metajax.errors import InputError
from metajax.platforms import is_short
from metajax.runs.best import Validation, summary
from metajax.runs.document_losses import adapted_losses
from metajax.runs.document_tasks import (
    are_documents,
    hold_out,
    load_streams,
    open_windows,
    stream_spec,
)
from metajax.runs.episodes import (
    check_sources,
    episode_sampler,
    episode_sources,
    episode_spec,
)
from metajax.runs.few_shot import LOGIT_SCALE, FewShot, open_few_shot
from metajax.runs.loop import Stage, train
from metajax.runs.memory_plan import choose_plan, device_memory, step_memory, with_plan
from metajax.runs.parts import check_split
from metajax.runs.paths import to_path
from metajax.runs.record import make_record, read_record, recorded
from metajax.runs.similar_classes import with_similar_classes
from metajax.runs.source import describe
from metajax.runs.task_data import fingerprints, load, tokenized
from metajax.runs.validation import (
    VALIDATED_EPISODES,
    describe_validation,
    load_validation,
    record_validation,
    training_and_validation,
)
from metajax.runs.workdir import Run, open_run
from metajax.training import distributed
from metajax.training.evaluation import run_episodes
from metajax.training.outer import default_chunk_size
from metajax.training.parallel import all_devices
from metajax.types import Params, Task

_PROTONET_LOGIT_SCALE = 20.0
_MEASURED_EPISODES = 32
_MEASURED_ON = "new episodes of the training classes (for unseen classes: metajax evaluate)"

Accuracies = Callable[[Params], np.ndarray]  # To [E], of each episode.


class _Tasks(NamedTuple):
    """What a run trains on.

    Attributes:
        few_shot: the network and its inner loop.
        make_tasks: function from a step's number to its local tasks.
        measure: function from `few_shot` and the settings, perhaps with a memory plan, to `measure`
            of a `Stage`.
        measured_on: see `Stage`.
        validate: the same for `accuracies` of a `Validation`, or None without validation.
        sources: see `Stage`.
        valid_sources: see `sources` of `Validation`.
        held_out: for the record: the tasks for validation.
    """

    few_shot: FewShot
    make_tasks: Callable[[int], Task]
    measure: Callable[[FewShot, MetatrainSettings], Callable[[Params], dict[str, float]]]
    measured_on: str
    validate: Callable[[FewShot, MetatrainSettings], Accuracies] | None = None
    sources: Callable[[int], Sequence[str]] | None = None
    valid_sources: Sequence[str] | None = None
    held_out: dict[str, Any] | None = None


def metatrain(settings: MetatrainSettings) -> dict[str, Any]:
    """Train an initialization that adapts to the tasks in a few gradient steps.

    Returns:
        `before` and `after`. Of labelled tasks: mean query `accuracy` and its `ci95` (0..1) on
        episodes of the validation tasks, or without validation on new episodes of the training
        classes. Of documents: `loss` (nats per token) and `bits_per_byte` on held-out documents.
        With validation also `best_step`, `kept_step` (which later stages read; 0 is the start),
        `gain` of the best to the start and `gain_ci95`; see `metajax.runs.best`.

    Raises:
        InputError: the input cannot be used.
    """
    check_split("--meta-batch-size", settings.meta_batch_size, settings.chunk_size)
    documents = are_documents(settings)  # It refuses what only labelled tasks had before.
    settings = _as_begun(settings)
    memory = device_memory(settings)
    tasks = (_documents if documents else _episodes)(settings)
    few_shot = tasks.few_shot
    settings = dataclasses.replace(
        settings, **few_shot.inner_settings(), logit_scale=_logit_scale(few_shot, settings)
    )
    record = make_record(
        "metatrain",
        settings,
        data=fingerprints(settings),
        parent=few_shot.source.record,
        model=describe(few_shot.model),
    )
    record |= {} if tasks.held_out is None else {"held_out": tasks.held_out}
    run = open_run(settings.workdir, record)
    start, plan = few_shot.start, run.record.get("plan", {})

    def memory_of(settings: MetatrainSettings) -> int:
        return step_memory(_stage(run, settings, tasks), start)

    if memory is not None and run.record is record:  # A run that resumes keeps its plan.
        with distributed.explain_host_errors():
            plan = choose_plan(settings, few_shot.inner["algorithm"], memory, memory_of)
        run = run._replace(record=record | {"plan": plan})
    return train(_stage(run, with_plan(settings, plan), tasks), start)


def _stage(run: Run, settings: MetatrainSettings, tasks: _Tasks) -> Stage:
    few_shot = tasks.few_shot
    few_shot = few_shot._replace(
        model=few_shot.model.replace(remat=settings.remat),
        inner=few_shot.inner | {"low_memory": settings.low_memory},
    )
    return Stage(
        run=run,
        settings=settings,
        model=few_shot.model,
        algorithm=few_shot.schedule(settings.steps),
        make_tasks=tasks.make_tasks,
        num_steps=settings.steps,
        measure=tasks.measure(few_shot, settings),
        measured_on=tasks.measured_on,
        chunk_size=settings.chunk_size,
        initialization=few_shot.entry.initialization,
        rates_factor=_rates_factor(settings),
        frozen=few_shot.frozen,
        sources=tasks.sources,
        validation=tasks.validate
        and Validation(
            tasks.validate(few_shot, settings), settings.valid_every, tasks.valid_sources
        ),
        short=is_short(settings.steps * settings.meta_batch_size // len(all_devices())),
    )


def _episodes(settings: MetatrainSettings) -> _Tasks:
    tasks = load(settings, split="train")
    spec = episode_spec(settings)
    check_sources(tasks, spec)
    given = load_validation(settings, tasks, spec)
    classes = spec.ways or max(len(task.label_names) for task in [*tasks, *given])
    few_shot = open_few_shot(settings.model, settings, settings, classes)
    feature_norm = math.sqrt(_logit_scale(few_shot, settings))
    few_shot = few_shot._replace(model=few_shot.model.replace(feature_norm=feature_norm))
    length = few_shot.text_length(settings.max_length)
    # Whole data sets: their tokens do not depend on what is held out.
    examples = tokenized([*tasks, *given], few_shot.model, length)
    names = _names_as_begun(settings)
    examples = [task._replace(name=names.get(task.name, task.name)) for task in examples]
    whole, given_examples = examples[: len(tasks)], examples[len(tasks) :]
    held_out = training_and_validation(settings, whole, given_examples, spec)
    training, validation = held_out.training, held_out.validation
    spec = spec._replace(ways=classes)  # Episodes of all tasks have the same shapes.
    with distributed.explain_host_errors():
        similar = with_similar_classes(
            few_shot.model, few_shot.params, training, settings.similar_classes
        )
    make_tasks = episode_sampler(
        similar,
        spec,
        settings.seed,
        settings.meta_batch_size,
        settings.steps,
        distributed.local_slice(settings.meta_batch_size),
    )
    valid_sources = episode_sources(validation, settings.seed, np.arange(VALIDATED_EPISODES))
    order = distributed.tasks_by_device(settings.meta_batch_size)
    if validation:
        accuracies = functools.partial(_accuracies, validation, spec, VALIDATED_EPISODES, 0)
    else:  # Training never takes the step after the last, so these episodes are new.
        after = settings.steps
        accuracies = functools.partial(_accuracies, training, spec, _MEASURED_EPISODES, after)
    return _Tasks(
        few_shot,
        make_tasks,
        lambda few_shot, settings: _mean(accuracies(few_shot, settings)),
        describe_validation(held_out) if validation else _MEASURED_ON,
        accuracies if validation else None,
        episode_sources(training, settings.seed, order),
        valid_sources and valid_sources(0),
        record_validation(held_out) if validation else None,
    )


def _logit_scale(few_shot: FewShot, settings: MetatrainSettings) -> float:
    """Return how many times a cosine the logits of a prototype are in training.

    Raises:
        InputError: the algorithm takes inner steps, whose rate goes with the usual scale.
    """
    if few_shot.inner["algorithm"] == "protonet":
        return settings.logit_scale or _PROTONET_LOGIT_SCALE
    if settings.logit_scale not in (None, LOGIT_SCALE):
        raise InputError(
            f"--logit-scale {settings.logit_scale:g}: needs --algorithm protonet; omit it"
        )
    return LOGIT_SCALE


def _accuracies(
    examples: list[data.TokenizedTask],
    spec: data.EpisodeSpec,
    count: int,
    step: int,
    few_shot: FewShot,
    settings: MetatrainSettings,
) -> Accuracies:
    """Return `(params) -> [count]`, the query accuracies of the episodes of a step."""
    algorithm, rng = few_shot.algorithm(), jax.random.key(settings.seed)
    # As many at once as fit, because a step takes as many.
    at_once = settings.chunk_size or settings.meta_batch_size // jax.device_count() or 1
    chunk_size = math.gcd(count, default_chunk_size(at_once))

    @functools.cache  # Each validation uses the same episodes.
    def episodes() -> Task:
        all_episodes, twice = slice(0, count), 2  # Before and after.
        sampler = episode_sampler(examples, spec, settings.seed, count, twice, all_episodes)
        return sampler(step)

    def accuracies(params: Params) -> np.ndarray:
        infos = run_episodes(algorithm, params, episodes(), rng, chunk_size=chunk_size)
        return np.asarray(infos.query_aux["accuracy"])

    return accuracies


def _mean(accuracies: Accuracies) -> Callable[[Params], dict[str, float]]:
    return lambda params: summary(accuracies(params))


def _documents(settings: MetatrainSettings) -> _Tasks:
    few_shot = open_few_shot(settings.model, settings, settings, None)
    model = few_shot.model
    spec = stream_spec(few_shot, settings.queries, settings.max_length)
    documents = load_streams(settings, model, spec.length)
    training, held_out = hold_out(settings, documents)
    windows = open_windows(held_out, spec, "the held-out documents")

    def measure_with(
        few_shot: FewShot, _: MetatrainSettings
    ) -> Callable[[Params], dict[str, float]]:
        algorithm = few_shot.algorithm(low_memory=False)
        losses = adapted_losses(few_shot.model, algorithm, few_shot.merge)
        return lambda params: windows.results(losses("held-out documents", windows, params))

    def make_tasks(step: int) -> Task:
        count = settings.meta_batch_size
        local = distributed.local_slice(count)
        return data.sample_streams(training, spec, settings.seed, step, count, local)

    return _Tasks(few_shot, make_tasks, measure_with, f"{len(held_out)} held-out documents")


def _rates_factor(settings: MetatrainSettings) -> float | None:
    """Return the learning rate of the inner rates relative to the parameters', if learned."""
    if not ALGORITHMS[settings.algorithm].learned_rates:
        return None
    return (settings.rates_learning_rate or RATES_LEARNING_RATE) / settings.learning_rate


def _as_begun(settings: MetatrainSettings) -> MetatrainSettings:
    """Return the settings as the run began, if it began before a setting or with another default.

    What is given now stays: if it differs, it is refused as for any other setting.
    """
    known = read_record(to_path(settings.workdir))
    if known is None:
        return settings
    names = (
        setting.name
        for setting in dataclasses.fields(settings)
        if getattr(settings, setting.name) == setting.default
    )
    missing = {name: recorded(known, name) for name in names if name not in known["settings"]}
    begun: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in missing.items()
        if value is not None and not (name == "held_out" and settings.valid)
    }
    if settings.logit_scale is None and settings.algorithm == known["settings"].get("algorithm"):
        begun["logit_scale"] = recorded(known, "logit_scale")
    return dataclasses.replace(settings, **begun)


def _names_as_begun(settings: MetatrainSettings) -> dict[str, str]:
    """Return the names of the data sets when the run began, by their names now.

    Files may have moved since, but the metrics of a run have one name for each.
    """
    known = read_record(to_path(settings.workdir))
    if known is None:
        return {}
    begun = (*(recorded(known, "tasks") or ()), *(recorded(known, "valid") or ()))
    return dict(zip((*settings.tasks, *settings.valid), begun))
