"""The section of a report that shows the training of runs by source."""

from collections.abc import Callable, Sequence

import numpy as np

from metajax.reporting.data import Run
from metajax.reporting.page import figures, table
from metajax.reporting.plots import Series, learning_curves
from metajax.runs.best import best_of
from metajax.runs.by_source import RECENT, Means, gains_by_source, recent_by_source, short

_MOST_DRAWN = 8  # More curves cannot be told apart.


def by_source(runs: Sequence[Run], draw: Callable[..., str]) -> dict[str, str]:
    """Return the section by its heading; empty if no run has several sources.

    Args:
        runs: the runs.
        draw: function from a name, a painter of `plots` and its values to an SVG.
    """
    parts: list[str] = []
    drawn: dict[str, str] = {}
    for run in runs:
        steps = [row for row in run.metrics if "sources" in row]
        last = recent_by_source(steps)
        if len(last) < 2:
            continue
        worst = sorted(last, key=lambda source: -last[source]["loss"])[:_MOST_DRAWN]
        caption = f"{run.name}: loss of each step by source"
        if len(last) > len(worst):
            caption += f"; the {len(worst)} highest"
        curves = {label: _losses(run, source) for label, source in zip(_labels(worst), worst)}
        drawn[caption] = draw(f"sources-{len(drawn) + 1}", learning_curves, curves)
        parts.append(_table(run, recent_by_source(steps[:RECENT]), last))
    return {"Sources": "\n".join([figures(drawn), *parts])} if drawn else {}


def _labels(sources: Sequence[str]) -> list[str]:
    """Return a short label of each source; with numbers if two would be the same."""
    labels = [short(source) for source in sources]
    if len(set(labels)) == len(labels):
        return labels
    return [f"{number}: {short(source, 25)}" for number, source in enumerate(sources, start=1)]


def _losses(run: Run, source: str) -> Series:
    rows = [row for row in run.metrics if source in row.get("sources", {})]
    losses = [row["sources"][source]["loss"] for row in rows]
    return Series(np.array([row["step"] for row in rows], float), np.array(losses, float))


def _table(run: Run, first: Means, last: Means) -> str:
    best = best_of(run.metrics)
    gains = {} if best is None else gains_by_source(run.metrics, best.best_step)

    def row(source: str) -> tuple[str, ...]:
        measures = [
            _shown(means.get(source, {}).get(name), factor)
            for name, factor in (("loss", 1), ("accuracy", 100))
            for means in (first, last)
        ]
        valid = [_shown(value, 100) for value in gains.get(source, (None, None))]
        tasks = sum(
            each["sources"][source]["tasks"]
            for each in run.metrics
            if source in each.get("sources", {})
        )
        return (source, f"{tasks}", *measures, *valid)

    header = ("source", "tasks", "loss: first", "last", "accuracy (%): first", "last")
    caption = (
        f"{run.name}: first and last {RECENT} steps; validation before the first step and at the "
        "best"
    )
    order = sorted({*first, *last, *gains}, key=lambda source: -last.get(source, {}).get("loss", 0))
    return table((*header, "validation (%): before", "best"), map(row, order), caption)


def _shown(value: float | None, factor: int) -> str:
    return "" if value is None else f"{factor * value:.{1 if factor > 1 else 4}f}"
