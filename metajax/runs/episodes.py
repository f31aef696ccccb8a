"""Sample the episodes of a step, as the settings define them."""

from collections.abc import Callable

from metajax import data
from metajax.config.groups import EpisodeSettings
from metajax.types import Task


def episode_sampler(
    examples: list[data.TokenizedTask],
    spec: data.EpisodeSpec,
    seed: int,
    count: int,
    steps: int,
    own: slice,
) -> Callable[[int], Task]:
    """Return a function from a step to the episodes `own`, with the shapes of all `count`."""
    plan = data.plan_episodes(examples, spec, seed, count, steps)

    def episodes(step: int) -> Task:
        every = data.sample_episodes(examples, spec, seed, step, count)
        mine = data.Episodes(*(field[own] for field in every))
        return data.gather(examples, mine, [data.fit_episodes(examples, every, plan)])

    return episodes


def episode_spec(settings: EpisodeSettings) -> data.EpisodeSpec:
    """Return the size of an episode."""
    ways = None if settings.whole_tasks else settings.ways
    return data.EpisodeSpec(ways, settings.shots, settings.queries)
