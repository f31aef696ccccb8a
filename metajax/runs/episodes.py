"""Sample the episodes of a step, as the settings define them."""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from metajax import data
from metajax.config.groups import EpisodeSettings
from metajax.types import Task

_log = logging.getLogger("metajax")


def check_sources(tasks: Sequence[data.TaskData], spec: data.EpisodeSpec) -> None:
    """Check that episodes can be drawn to train on, and log which tasks have too few classes.

    Raises:
        InputError: see `data.check_episodes`, with `mixed`.
    """
    data.check_episodes(tasks, spec, mixed=True)
    for task in tasks:
        if spec.ways is not None and len(task.label_names) < spec.ways:
            _log.warning(
                "%s: has %d classes, fewer than %d ways; its episodes have all of them",
                *(task.name, len(task.label_names), spec.ways),
            )


def episode_sampler(
    examples: list[data.TokenizedTask],
    spec: data.EpisodeSpec,
    seed: int,
    count: int,
    steps: int,
    local: slice,
) -> Callable[[int], Task]:
    """Return a function from a step to its local episodes, with the shapes of all `count`."""
    plan = data.plan_episodes(examples, spec, seed, count, steps)

    def episodes(step: int) -> Task:
        drawn = data.sample_episodes(examples, spec, seed, step, count)
        local_episodes = data.Episodes(*(field[local] for field in drawn))
        return data.gather(examples, local_episodes, [data.fit_episodes(examples, drawn, plan)])

    return episodes


def episode_sources(
    examples: list[data.TokenizedTask], seed: int, order: np.ndarray
) -> Callable[[int], list[str]] | None:
    """Return a function from a step to the source of each of its episodes; None for one source.

    Args:
        examples: the data sets.
        seed: the run's seed.
        order: the numbers of all episodes of a step, in the order in which they are measured.
    """
    if len({task.name for task in examples}) < 2:
        return None

    def sources(step: int) -> list[str]:
        drawn = data.draw_sources(examples, seed, step, len(order))
        return [examples[number].name for number in drawn[order]]

    return sources


def episode_spec(settings: EpisodeSettings) -> data.EpisodeSpec:
    """Return the size of an episode."""
    ways = None if settings.whole_tasks else settings.ways
    return data.EpisodeSpec(ways, settings.shots, settings.queries)
