"""Which episodes an evaluation judges: drawn at random, or published draws (`--splits`)."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax import data
from metajax.config.fields import flag
from metajax.config.groups import EpisodeSettings
from metajax.config.settings import EPISODES, EvaluateSettings
from metajax.errors import InputError
from metajax.models import Transformer
from metajax.runs.episodes import episode_spec
from metajax.runs.progress import progress
from metajax.runs.task_data import load, tokenized
from metajax.types import Task

_CHUNK = 8  # Episodes assembled and run at once.


class Size(NamedTuple):
    """Of an episode; shots and queries are the most of any class, or of any draw altogether."""

    ways: int
    shots: int
    queries: int


class Row(NamedTuple):
    """A method's result; accuracies and their intervals are in 0..1, seconds of wall time.

    `behind` is how far the first method is ahead of this one, the mean of the differences on the
    same episodes: its interval is narrower than those of the two accuracies. `accuracies` are those
    of the episodes in the order drawn: results of several commands can be compared too, for with
    the same tasks, sizes and seed the episodes are the same. `curve` and its intervals are the
    accuracies after 0, 1, ... inner steps, where they were asked for. `protocol` says in words
    which episodes these are; of published draws each counts as one episode, `shots` is the most of
    a class and `queries` the most of a draw.
    """

    tasks: str
    protocol: str
    method: str
    ways: int
    shots: int
    queries: int
    inner_steps: int
    episodes: int
    accuracy: float
    ci95: float
    behind: float
    behind_ci95: float
    seconds: float
    accuracies: tuple[float, ...]
    curve: tuple[float, ...] = ()
    curve_ci95: tuple[float, ...] = ()


class EvalSet(NamedTuple):
    """The episodes of an evaluation.

    Attributes:
        description: which protocol it is, in words.
        size: of an episode.
        examples: the data sets.
        episodes: the episodes, in chunks.
        plan: the shapes that they are packed to.
        draw: [E] which result each episode counts for; each its own where they are random.
    """

    description: str
    size: Size
    examples: Sequence[data.TokenizedTask]
    episodes: Sequence[data.Episodes]
    plan: Sequence[data.Shapes]
    draw: np.ndarray

    def score(self, what: str, judge: Callable[[int, Task], jax.Array]) -> np.ndarray:
        """What `(number of the first, tasks) -> [T, ...]` says of the episodes, a row a draw."""
        scores: list[np.ndarray] = []
        for episodes in self.progress(what):
            tasks = data.gather(self.examples, episodes, self.plan)
            scores += list(np.asarray(judge(len(scores), tasks)))
        return self.by_draw(scores)

    def progress(self, what: str) -> Iterator[data.Episodes]:
        """The chunks, counted as they are done."""
        return progress(self.episodes, what, "batch")

    def by_draw(self, scores: Sequence[Any]) -> np.ndarray:
        """The mean [D, ...] of each draw's queries, from the means of its episodes."""
        queries = np.concatenate([episodes.query_mask.sum(1) for episodes in self.episodes])
        weights = queries / np.bincount(self.draw, queries)[self.draw]
        values = np.asarray(scores, np.float64)
        means = np.zeros((self.draw[-1] + 1, *values.shape[1:]))
        np.add.at(means, self.draw, (weights * values.T).T)
        return means


class Choice(NamedTuple):
    """The episodes that were asked for, and can be drawn.

    Attributes:
        ways: the most classes of an episode.
        open: `(model, tokens of a text) -> EvalSet`.
    """

    ways: int
    open: Callable[[Transformer, int], EvalSet]


def choose_protocol(settings: EvaluateSettings, tasks: Sequence[data.TaskData]) -> Choice:
    """The episodes that the settings ask for of the tasks.

    Raises:
        InputError: they cannot be drawn from the tasks, or the draws cannot be used.
    """
    if settings.splits is not None:
        return _published(settings, tasks)
    given = {name: getattr(settings, name) for name in ("ways", "shots", "queries")}
    given = {name: value for name, value in given.items() if value is not None}
    spec = episode_spec(EpisodeSettings(whole_tasks=settings.whole_tasks, **given))
    data.check_episodes(tasks, spec)
    ways = spec.ways or max(len(task.label_names) for task in tasks)
    return Choice(ways, partial(_open_random, settings, tasks, spec, ways))


def _open_random(
    settings: EvaluateSettings,
    tasks: Sequence[data.TaskData],
    spec: data.EpisodeSpec,
    ways: int,
    model: Transformer,
    length: int,
) -> EvalSet:
    examples = tokenized(tasks, model, length)
    count = settings.episodes or EPISODES
    drawn = [
        data.sample_episodes(
            examples, spec, settings.seed, 0, min(_CHUNK, count - first), first=first
        )
        for first in range(0, count, _CHUNK)
    ]
    classes = "all classes of a data set" if settings.whole_tasks else f"{ways} ways"
    return EvalSet(
        description=f"{count} episodes drawn at random with seed {settings.seed}: {classes}, "
        f"{spec.shots} shots, {spec.queries} queries per class, each classified by itself"
        + _of_duplicates(tasks),
        size=Size(ways, spec.shots, spec.queries),
        examples=examples,
        episodes=drawn,
        plan=data.plan_episodes(examples, spec, settings.seed, _CHUNK, len(drawn)),
        draw=np.arange(count),
    )


def _of_duplicates(tasks: Sequence[data.TaskData]) -> str:
    """Describe how episodes use repeated texts; empty if there are none."""
    duplicates = [data.find_duplicates(task.texts, task.pairs, task.labels) for task in tasks]
    every = sum(len(task.texts) for task in tasks)
    repeated = sum(each.repeated for each in duplicates)
    if not repeated:
        return ""
    if tasks[0].keep_duplicates:
        return f"; equal texts are drawn too, {repeated} of {every} examples have that of another"
    left_out = every - sum(int(each.once.sum()) for each in duplicates)
    return f"; each text once, {left_out} of {every} examples are left out"


def _published(settings: EvaluateSettings, tasks: Sequence[data.TaskData]) -> Choice:
    if settings.keep_duplicates:
        raise InputError(
            f"{flag('keep_duplicates')}: of --splits no draw has a text of its own to classify; "
            "remove it"
        )
    if len(tasks) != 1:
        raise InputError(
            f"--splits: draws belong to one task, but --tasks has {len(tasks)}; give one"
        )
    [task] = tasks
    if not task.label_names:
        raise InputError(f"{task.name}: is a regression, but draws need classes; give another task")
    directory = Path(str(settings.splits))
    supports = [
        load(settings, split="train", specs=[str(file)])[0] for file in _draw_files(directory)
    ]
    draws = data.join_draws(task, supports)
    ways = len(task.label_names)
    held = {
        "ways": {ways},
        "shots": _per_class(draws.task, draws.support),
        "queries": _per_class(draws.task, draws.query),
        "episodes": {len(supports)},
    }
    for name, counts in held.items():  # And --whole-tasks is what draws are.
        given = getattr(settings, name)
        if given is not None and {given} != counts:
            raise InputError(
                f"{flag(name)} {given}: the draws of --splits {directory} have {_range(counts)}; "
                "remove it"
            )
    said = (
        f"{len(supports)} published draws of {directory}: {ways} ways, {_range(held['shots'])} "
        f"shots, queries all other examples of {task.name}, each classified by itself"
    )
    size = Size(ways, max(held["shots"]), max(map(len, draws.query)))
    return Choice(ways, partial(_open_published, draws, said, size))


def _draw_files(directory: Path) -> list[Path]:
    where = f"--splits {directory}"
    if not directory.is_dir():
        raise InputError(f"{where}: is not a directory; give the directory with the draws")
    files = sorted(
        file for file in directory.iterdir() if file.is_file() and file.name[:1] not in "._"
    )
    if len(files) < 2:
        raise InputError(
            f"{where}: has {len(files)} files; give two draws or more, one file per support set, "
            "in the format of --tasks"
        )
    return files


def _per_class(task: data.TaskData, draws: Sequence[np.ndarray]) -> set[int]:
    """How many examples of a class there are, of each class in each draw."""
    classes = len(task.label_names)
    return {int(n) for rows in draws for n in np.bincount(task.labels[rows], minlength=classes)}


def _range(counts: set[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{most}" if least == most else f"{least} to {most}"


def _open_published(
    draws: data.Draws, said: str, size: Size, model: Transformer, length: int
) -> EvalSet:
    episodes, draw = data.fixed_episodes(draws)
    examples = tokenized([draws.task], model, length)
    return EvalSet(
        description=said,
        size=size,
        examples=examples,
        episodes=episodes,
        plan=data.plan_drawn(examples, episodes, len(episodes)),
        draw=draw,
    )
