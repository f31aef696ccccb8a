"""The checkpoint that later stages read: the best on the validation tasks, or the start.

All of it is a function of the rows of `metrics.jsonl`. So a run that resumes chooses as if it had
never been killed, and a later stage can choose from a run that has not finished.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.errors import InputError
from metajax.runs.by_source import (
    means_by_source,
    note_of_worst,
    summary_by_source,
    summary_of_gains,
)
from metajax.runs.metrics import read_metrics
from metajax.runs.workdir import read_results
from metajax.training.evaluation import estimate
from metajax.types import Params

_log = logging.getLogger("metajax")
_ACCURACIES = "valid_accuracies"
_Row = dict[str, Any]


class Validation(NamedTuple):
    """How a run is validated.

    Attributes:
        accuracies: `(params) -> [E]`, the accuracy of each episode; always of the same episodes.
        every: number of steps between two validations. The last step is validated too.
        sources: the source of each episode, or None if there is only one.
    """

    accuracies: Callable[[Params], np.ndarray]
    every: int
    sources: Sequence[str] | None = None

    def is_due(self, step: int, num_steps: int) -> bool:
        """Return whether to validate after this step."""
        return step % self.every == 0 or step == num_steps


def validated(name: str, accuracies: np.ndarray, sources: Sequence[str] | None = None) -> _Row:
    """Return the part of a row that has a validation: its summary by a name, and each episode.

    With the source of each episode, it also has the mean of each source.
    """
    row = {name: summary(accuracies), _ACCURACIES: np.asarray(accuracies, float).tolist()}
    if sources is not None:
        row["valid_sources"] = means_by_source(sources, {"accuracy": np.asarray(accuracies)})
    return row


def summary(accuracies: np.ndarray) -> dict[str, float]:
    """Return the mean accuracy over episodes, and its interval."""
    accuracy = estimate(accuracies)
    return {"accuracy": float(accuracy.mean), "ci95": float(accuracy.ci95)}


class Best(NamedTuple):
    """The best validated checkpoint, and the one that later stages read.

    Attributes:
        best_step: step of the highest mean accuracy, the first one if there are several.
        kept_step: step of the checkpoint that later stages read; 0 is the start.
        gain: mean difference of the best to the start over the validation episodes, in -1..1.
        gain_ci95: half the width of its 95% interval.
    """

    best_step: int
    kept_step: int
    gain: float
    gain_ci95: float


def best_of(rows: Sequence[_Row]) -> Best | None:
    """Choose among the validations of a run; None before the first one after a step.

    The best of several checkpoints looks better than it is, because noise helps to choose it. So
    the interval of its gain is one that holds for all of them together, and it is kept only if the
    interval is above zero. Otherwise the start is kept: that costs a small gain at most, but a
    checkpoint that is worse on new data harms everyone who uses it.

    Raises:
        InputError: the validations have different numbers of episodes.
    """
    measured = [row for row in rows if row.get(_ACCURACIES)]
    if len(measured) < 2 or measured[0]["step"] != 0:
        return None
    start, *later = measured
    if any(len(row[_ACCURACIES]) != len(start[_ACCURACIES]) for row in later):
        raise InputError(
            "metrics.jsonl: its validations differ in their numbers of episodes; restore it from a "
            "backup"
        )
    best = max(later, key=lambda row: row["valid"]["accuracy"])
    paired = np.subtract(best[_ACCURACIES], start[_ACCURACIES])
    gain, interval = map(float, estimate(paired, comparisons=len(later)))
    return Best(best["step"], best["step"] if gain > interval else 0, gain, interval)


def chosen_steps(best: Best | None) -> tuple[int, ...]:
    """Return the steps of the checkpoints that a run needs, however old they are."""
    return (0,) if best is None else (0, best.best_step)


def step_to_read(workdir: Path) -> int | None:
    """Return the step that a later stage reads from a run; None is the newest checkpoint.

    Raises:
        InputError: the results or metrics of the run are damaged.
    """
    results = read_results(workdir)
    if results is not None:
        step = results.get("kept_step")
        if step is not None and type(step) is not int:
            raise InputError(
                f"{workdir / 'results.json'}: has no results of a run; restore it from a backup"
            )
        return step
    from metajax.training.checkpoint import saved_steps  # Slow to import, because of Orbax.

    newest = max(saved_steps(workdir / "checkpoints"), default=0)
    # What was validated later may not be saved.
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if row["step"] <= newest]
    best = best_of(rows)
    return None if best is None else best.kept_step


def progress_note(rows: Sequence[_Row], best: Best | None) -> str:
    """Describe the last step for the progress line, with the last validation and the best."""
    note = "skipped" if "skipped" in rows[-1] else f"loss {rows[-1]['loss']:.4f}"
    note = ", ".join(filter(None, (note, note_of_worst(rows))))
    if best is None:
        return note
    last = next(row["valid"]["accuracy"] for row in reversed(rows) if "valid" in row)
    points = f"{100 * best.gain:+.1f} points at step {best.best_step}"
    return f"{note}, valid {100 * last:.1f}% (best {points})"


def log_by_source(path: Path, rows: Sequence[_Row], best: Best | None) -> None:
    """Log the last losses and the gains on the validation tasks by source, if there are several."""
    if losses := summary_by_source(rows):
        _log.info("%s: by source, %s", path, losses)
    if best is not None and (gains := summary_of_gains(rows, best.best_step)):
        _log.info("%s: by source, gains at step %d: %s", path, best.best_step, gains)


def verdict(best: Best) -> str:
    """Say by how much the best checkpoint is ahead of the start, and which of them is kept."""
    side = "ahead of" if best.gain >= 0 else "behind"
    gain = f"{100 * abs(best.gain):.2f} ± {100 * best.gain_ci95:.2f} points {side} the start"
    which = f"the best checkpoint, of step {best.best_step}, is {gain} on the validation tasks"
    if best.kept_step:
        return f"{which}; later stages read it"
    if best.gain < -best.gain_ci95:
        which = f"{which}: meta-training lowered the accuracy on the validation tasks"
    else:
        which = f"{which}, which does not show a gain"
    return f"{which}; later stages read the weights from before meta-training"
