"""The episodes of an evaluation: drawn at random, or published draws (`--splits`)."""

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

_CHUNK = 8  # Number of episodes to assemble and run at once.


class Size(NamedTuple):
    """The size of an episode.

    Attributes:
        ways: number of classes.
        shots: maximum of the support examples of a class.
        queries: maximum of the queries of a class. For published draws, maximum per draw.
    """

    ways: int
    shots: int
    queries: int


class Row(NamedTuple):
    """The result of a method. Accuracies are in 0..1, with 95% intervals.

    Each published draw counts as one episode.

    Attributes:
        tasks: `--tasks`.
        protocol: description of the episodes.
        method: name of the method.
        ways: see `Size`.
        shots: see `Size`.
        queries: see `Size`.
        inner_steps: number of inner steps.
        episodes: number of episodes.
        accuracy: mean accuracy of the episodes.
        ci95: its interval.
        behind: mean lead of the first method over this one, on the same episodes.
        behind_ci95: its interval, which is narrower than the intervals of the two accuracies.
        seconds: wall time.
        accuracies: accuracy of each episode, in the order of the draws. The same tasks, sizes and
            seed give the same episodes, so results of several commands can be compared.
        curve: accuracy after 0, 1, ... inner steps, with `--curve`.
        curve_ci95: its intervals.
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
        description: description of the protocol.
        size: size of an episode.
        examples: the data sets.
        episodes: the episodes, in chunks.
        plan: shapes to which the episodes are packed.
        draw: [E] number of the draw that each episode belongs to. Random episodes are draws too.
    """

    description: str
    size: Size
    examples: Sequence[data.TokenizedTask]
    episodes: Sequence[data.Episodes]
    plan: Sequence[data.Shapes]
    draw: np.ndarray

    def score(self, what: str, score_fn: Callable[[int, Task], jax.Array]) -> np.ndarray:
        """Return the scores of the episodes, [D, ...] with one row per draw.

        Args:
            what: label of the progress bar.
            score_fn: `(number of the first task, tasks) -> [T, ...]`.
        """
        scores: list[np.ndarray] = []
        for episodes in self.progress(what):
            tasks = data.gather(self.examples, episodes, self.plan)
            scores += list(np.asarray(score_fn(len(scores), tasks)))
        return self.by_draw(scores)

    def progress(self, what: str) -> Iterator[data.Episodes]:
        """Iterate over the chunks with a progress bar."""
        return progress(self.episodes, what, "batch")

    def by_draw(self, scores: Sequence[Any]) -> np.ndarray:
        """Return the mean over the queries of each draw, [D, ...], from the means of episodes."""
        queries = np.concatenate([episodes.query_mask.sum(1) for episodes in self.episodes])
        weights = queries / np.bincount(self.draw, queries)[self.draw]
        values = np.asarray(scores, np.float64)
        means = np.zeros((self.draw[-1] + 1, *values.shape[1:]))
        np.add.at(means, self.draw, (weights * values.T).T)
        return means


class Choice(NamedTuple):
    """A checked choice of episodes.

    Attributes:
        ways: maximum of the classes of an episode.
        open: `(model, tokens per text) -> EvalSet`.
    """

    ways: int
    open: Callable[[Transformer, int], EvalSet]


def choose_protocol(settings: EvaluateSettings, tasks: Sequence[data.TaskData]) -> Choice:
    """Choose the episodes from the settings.

    Raises:
        InputError: the episodes cannot be drawn from the tasks, or the draws cannot be used.
    """
    if settings.queries == 0:
        raise InputError("--queries 0: labelled tasks need queries to classify; give 1 or more")
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
    total = sum(len(task.texts) for task in tasks)
    repeated = sum(task.duplicates.repeated for task in tasks)
    if not repeated:
        return ""
    if tasks[0].keep_duplicates:
        return f"; with repeated texts, {repeated} of {total} examples repeat another"
    left_out = total - sum(int(task.duplicates.once.sum()) for task in tasks)
    return f"; each text once, {left_out} of {total} examples are left out"


def _published(settings: EvaluateSettings, tasks: Sequence[data.TaskData]) -> Choice:
    if settings.keep_duplicates:
        raise InputError(f"{flag('keep_duplicates')}: does not apply to --splits; remove it")
    if len(tasks) != 1:
        raise InputError(
            f"--splits: draws belong to one task, but --tasks has {len(tasks)}; give one task"
        )
    [task] = tasks
    if not task.label_names:
        raise InputError(
            f"{task.name}: is a regression task, but draws need classes; give another task"
        )
    directory = Path(str(settings.splits))
    supports = [
        load(settings, split="train", specs=[str(file)])[0] for file in _draw_files(directory)
    ]
    draws = data.join_draws(task, supports)
    ways = len(task.label_names)
    counts_by_setting = {
        "ways": {ways},
        "shots": _per_class(draws.task, draws.support),
        "queries": _per_class(draws.task, draws.query),
        "episodes": {len(supports)},
    }
    for name, counts in counts_by_setting.items():  # --whole-tasks agrees with all draws.
        given = getattr(settings, name)
        if given is not None and {given} != counts:
            raise InputError(
                f"{flag(name)} {given}: the draws of --splits {directory} have {_range(counts)}; "
                "remove it"
            )
    shots = counts_by_setting["shots"]
    description = (
        f"{len(supports)} published draws of {directory}: {ways} ways, {_range(shots)} "
        f"shots, queries all other examples of {task.name}, each classified by itself"
    )
    size = Size(ways, max(shots), max(map(len, draws.query)))
    return Choice(ways, partial(_open_published, draws, description, size))


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
    """Return the numbers of examples per class that occur in the draws."""
    classes = len(task.label_names)
    return {int(n) for rows in draws for n in np.bincount(task.labels[rows], minlength=classes)}


def _range(counts: set[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{most}" if least == most else f"{least} to {most}"


def _open_published(
    draws: data.Draws, description: str, size: Size, model: Transformer, length: int
) -> EvalSet:
    episodes, draw = data.fixed_episodes(draws)
    examples = tokenized([draws.task], model, length)
    return EvalSet(
        description=description,
        size=size,
        examples=examples,
        episodes=episodes,
        plan=data.plan_drawn(examples, episodes, len(episodes)),
        draw=draw,
    )
