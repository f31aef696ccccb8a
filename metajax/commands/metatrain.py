"""Stage 2: meta-training on episodes of many tasks."""

import dataclasses
from typing import Any

import jax
import numpy as np

from metajax import data
from metajax.algorithms import ALGORITHMS
from metajax.config.inner import RATES_LEARNING_RATE
from metajax.config.settings import MetatrainSettings
from metajax.runs.episodes import episode_sampler, episode_spec
from metajax.runs.few_shot import open_few_shot
from metajax.runs.loop import Stage, train
from metajax.runs.parts import check_split
from metajax.runs.paths import to_path
from metajax.runs.record import make_record, read_record, recorded
from metajax.runs.source import describe
from metajax.runs.task_data import fingerprints, load, tokenized
from metajax.runs.workdir import open_run
from metajax.training import distributed
from metajax.training.evaluation import estimate, run_episodes
from metajax.types import Params

_MEASURED_EPISODES = 32
_MEASURED_ON = "new episodes of the training classes (for unseen classes: metajax evaluate)"


def metatrain(settings: MetatrainSettings) -> dict[str, Any]:
    """Train an initialization that adapts to the tasks' episodes in a few gradient steps.

    Returns:
        `before` and `after`: mean query `accuracy` and its `ci95` (0..1) on new episodes of the
        training classes. No step trains on these episodes.

    Raises:
        InputError: the input cannot be used.
    """
    check_split("--meta-batch-size", settings.meta_batch_size, settings.chunk_size)
    settings = _with_draws(settings)
    tasks = load(settings, split="train")
    spec = episode_spec(settings)
    data.check_episodes(tasks, spec)
    classes = spec.ways or max(len(task.label_names) for task in tasks)
    few_shot = open_few_shot(settings.model, settings, settings, classes)
    model = few_shot.model
    settings = dataclasses.replace(settings, **few_shot.inner_settings())
    examples = tokenized(tasks, model, few_shot.text_length(settings.max_length))
    record = make_record(
        "metatrain",
        settings,
        data=fingerprints(settings),
        parent=few_shot.source.record,
        model=describe(model),
    )
    algorithm = few_shot.algorithm(low_memory=settings.low_memory)

    def measure(params: Params) -> dict[str, float]:
        all_episodes = slice(0, _MEASURED_EPISODES)
        count, twice = _MEASURED_EPISODES, 2  # Before and after.
        sampler = episode_sampler(examples, spec, settings.seed, count, twice, all_episodes)
        # Training never takes the step after the last, so these episodes are new.
        tasks = sampler(settings.steps)
        infos = run_episodes(algorithm, params, tasks, jax.random.key(settings.seed))
        accuracy = estimate(np.asarray(infos.query_aux["accuracy"]))
        return {"accuracy": float(accuracy.mean), "ci95": float(accuracy.ci95)}

    return train(
        Stage(
            run=open_run(settings.workdir, record),
            settings=settings,
            model=model,
            algorithm=few_shot.schedule(settings.steps, low_memory=settings.low_memory),
            make_tasks=episode_sampler(
                examples,
                spec,
                settings.seed,
                settings.meta_batch_size,
                settings.steps,
                distributed.local_slice(settings.meta_batch_size),
            ),
            num_steps=settings.steps,
            measure=measure,
            measured_on=_MEASURED_ON,
            chunk_size=settings.chunk_size,
            initialization=few_shot.entry.initialization,
            rates_factor=_rates_factor(settings),
            frozen=few_shot.frozen,
        ),
        few_shot.start,
    )


def _rates_factor(settings: MetatrainSettings) -> float | None:
    """Return the learning rate of the inner rates relative to the parameters', if learned."""
    if not ALGORITHMS[settings.algorithm].learned_rates:
        return None
    return (settings.rates_learning_rate or RATES_LEARNING_RATE) / settings.learning_rate


def _with_draws(settings: MetatrainSettings) -> MetatrainSettings:
    """Return the settings, with duplicates if the run began before `keep_duplicates` existed."""
    known = read_record(to_path(settings.workdir))
    if known is None or "keep_duplicates" in known["settings"]:
        return settings
    return dataclasses.replace(settings, keep_duplicates=recorded(known, "keep_duplicates"))
