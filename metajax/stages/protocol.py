"""Which episodes an evaluation judges: drawn at random, or published draws (`--splits`)."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax import data
from metajax.errors import InputError
from metajax.models import Bert
from metajax.stages.metatrain import episode_spec
from metajax.stages.option import flag
from metajax.stages.progress import progress
from metajax.stages.settings import EvaluateSettings
from metajax.stages.tasks import load, tokenized
from metajax.types import Task

_CHUNK = 8  # Episodes assembled and run at once.
_AT_RANDOM = ("ways", "shots", "queries", "episodes", "whole_tasks")  # Not of --splits.


class Size(NamedTuple):
    """Of an episode; shots and queries are the most of any class, or of any draw altogether."""

    ways: int
    shots: int
    queries: int


class Protocol(NamedTuple):
    """The episodes of an evaluation.

    Attributes:
        said: which protocol it is, in words.
        size: of an episode.
        examples: the data sets.
        drawn: the episodes, in chunks.
        plan: the shapes that they are packed to.
        draw: [E] which result each episode counts for; each its own where they are random.
    """

    said: str
    size: Size
    examples: Sequence[data.TokenizedTask]
    drawn: Sequence[data.Episodes]
    plan: Sequence[data.Shapes]
    draw: np.ndarray

    def judged(self, what: str, judge: Callable[[int, Task], jax.Array]) -> np.ndarray:
        """What `(number of the first, tasks) -> [T, ...]` says of the episodes, a row a draw."""
        found: list[np.ndarray] = []
        for episodes in self.progress(what):
            tasks = data.gather(self.examples, episodes, self.plan)
            found += list(np.asarray(judge(len(found), tasks)))
        return self.by_draw(found)

    def progress(self, what: str) -> Iterator[data.Episodes]:
        """The chunks, counted as they are done."""
        return progress(self.drawn, what, "batch")

    def by_draw(self, found: Sequence[Any]) -> np.ndarray:
        """The mean [D, ...] of each draw's queries, from the means of its episodes."""
        queries = np.concatenate([episodes.query_mask.sum(1) for episodes in self.drawn])
        weights = queries / np.bincount(self.draw, queries)[self.draw]
        values = np.asarray(found, np.float64)
        means = np.zeros((self.draw[-1] + 1, *values.shape[1:]))
        np.add.at(means, self.draw, (weights * values.T).T)
        return means


def num_classes(settings: EvaluateSettings, tasks: Sequence[data.TaskData]) -> int:
    """The most classes of an episode.

    Raises:
        InputError: the episodes that the settings ask for cannot be drawn from the tasks.
    """
    if settings.splits is None:
        spec = episode_spec(settings)
        data.check_episodes(tasks, spec)
        return spec.ways or max(len(task.label_names) for task in tasks)
    for name in _AT_RANDOM:
        given = getattr(settings, name)
        if given != getattr(EvaluateSettings, name):
            raise InputError(
                f"{flag(name)} {given}: the draws of --splits say what an episode holds: "
                "leave it out"
            )
    if len(tasks) != 1:
        raise InputError(f"--splits: draws are of one task, and --tasks has {len(tasks)}: give one")
    if not tasks[0].label_names:
        raise InputError(f"{tasks[0].name}: is a regression; draws need classes, give another task")
    return len(tasks[0].label_names)


def open_protocol(
    settings: EvaluateSettings, tasks: Sequence[data.TaskData], model: Bert, length: int
) -> Protocol:
    """The episodes that the settings ask for of tasks that `num_classes` has passed, tokenised.

    Raises:
        InputError: the draws cannot be used.
    """
    if settings.splits is None:
        return _at_random(settings, tasks, model, length)
    return _published(settings, tasks, model, length)


def _at_random(
    settings: EvaluateSettings, tasks: Sequence[data.TaskData], model: Bert, length: int
) -> Protocol:
    spec = episode_spec(settings)
    examples = tokenized(tasks, model, length)
    drawn = [
        data.sample_episodes(
            examples, spec, settings.seed, 0, min(_CHUNK, settings.episodes - first), first=first
        )
        for first in range(0, settings.episodes, _CHUNK)
    ]
    ways = num_classes(settings, tasks)
    classes = "all classes of a data set" if settings.whole_tasks else f"{ways} ways"
    return Protocol(
        said=f"{settings.episodes} episodes drawn at random with seed {settings.seed}: {classes}, "
        f"{settings.shots} shots, {settings.queries} queries a class, each classified by itself",
        size=Size(ways, settings.shots, settings.queries),
        examples=examples,
        drawn=drawn,
        plan=data.plan_episodes(examples, spec, settings.seed, _CHUNK, len(drawn)),
        draw=np.arange(settings.episodes),
    )


def _published(
    settings: EvaluateSettings, tasks: Sequence[data.TaskData], model: Bert, length: int
) -> Protocol:
    directory = Path(str(settings.splits))
    where = f"--splits {directory}"
    if not directory.is_dir():
        raise InputError(f"{where}: is no directory: name the one that holds the draws")
    files = sorted(
        file for file in directory.iterdir() if file.is_file() and file.name[:1] not in "._"
    )
    if len(files) < 2:
        raise InputError(
            f"{where}: holds {len(files)} files: put there two draws or more, each the support "
            "examples of one in a file like --tasks"
        )
    supports = [load(settings, split="train", specs=[str(file)])[0] for file in files]
    draws = data.join_draws(tasks[0], supports)
    episodes, draw = data.fixed_episodes(draws)
    examples = tokenized([draws.task], model, length)
    counts = [np.bincount(draws.task.labels[rows]) for rows in draws.support]
    least, most = min(count.min() for count in counts), max(count.max() for count in counts)
    shots = f"{most}" if least == most else f"{least} to {most}"
    ways = num_classes(settings, tasks)
    return Protocol(
        said=f"{len(files)} published draws of {directory}: {ways} ways, {shots} shots, queries "
        f"all other examples of {tasks[0].name}, each classified by itself",
        size=Size(ways, int(most), max(map(len, draws.query))),
        examples=examples,
        drawn=episodes,
        plan=data.plan_drawn(examples, episodes, len(episodes)),
        draw=draw,
    )
