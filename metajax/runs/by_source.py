"""Losses and accuracies by source: the data sets of `--tasks` that the episodes come from."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metajax.types import MetaInfo

RECENT = 100  # Steps; in one alone, most sources have few tasks or none.
_MOST_NAMED = 8
_Row = dict[str, Any]
Means = dict[str, dict[str, float]]  # By source: the number of `tasks`, and means by name.


def means_by_source(sources: Sequence[str], values: Mapping[str, np.ndarray]) -> Means:
    """Return the number of `tasks` of each source, and the means of their values.

    Args:
        sources: T names, in any order.
        values: by name, a number of each task, [T].
    """
    rows = collections.defaultdict[str, list[int]](list)
    for row, source in enumerate(sources):
        rows[source].append(row)
    return {
        source: {"tasks": len(own)} | {name: float(v[own].mean()) for name, v in values.items()}
        for source, own in sorted(rows.items())
    }


def losses_by_source(sources: Sequence[str], infos: MetaInfo) -> _Row:
    """Return the means by source of the losses and other scalars of a step; None for NaN.

    Args:
        sources: the source of each task.
        infos: of each task, NumPy arrays [T, ...].
    """
    values = {"loss": infos.query_loss} | infos.query_aux
    scalars = {name: v for name, v in values.items() if np.ndim(v) == 1}
    return {
        source: {name: mean if np.isfinite(mean) else None for name, mean in means.items()}
        for source, means in means_by_source(sources, scalars).items()
    }


def recent_by_source(rows: Sequence[_Row]) -> Means:
    """Return the means over the tasks of the last steps; those not finite do not count."""
    totals = collections.defaultdict[str, dict[str, float]](lambda: collections.defaultdict(float))
    for row in rows[-RECENT:]:
        for source, means in row.get("sources", {}).items():
            if None not in means.values():
                totals[source]["tasks"] += means["tasks"]
                for name in means.keys() - {"tasks"}:
                    totals[source][name] += means["tasks"] * means[name]
    return {
        source: {
            name: total if name == "tasks" else total / own["tasks"] for name, total in own.items()
        }
        for source, own in sorted(totals.items())
    }


def note_of_worst(rows: Sequence[_Row]) -> str:
    """Name the source with the lowest accuracy in the last steps; empty if there is only one."""
    recent = recent_by_source(rows)
    accuracies = {s: means["accuracy"] for s, means in recent.items() if "accuracy" in means}
    if len(accuracies) < 2:
        return ""
    worst = min(accuracies, key=lambda source: accuracies[source])
    return f"worst {short(worst)} {100 * accuracies[worst]:.1f}%"


def summary_by_source(rows: Sequence[_Row]) -> str:
    """Describe the last steps by source, the highest loss first; empty if there is only one."""
    recent = recent_by_source(rows)
    if len(recent) < 2:
        return ""
    order = sorted(recent, key=lambda source: -recent[source]["loss"])
    shown = [f"{short(source)} {_described(recent[source])}" for source in order[:_MOST_NAMED]]
    steps = min(RECENT, sum(1 for row in rows if row["step"]))
    return f"last {steps} steps: {_joined(shown, len(order))}"


def gains_by_source(rows: Sequence[_Row], step: int) -> dict[str, tuple[float, float]]:
    """Return the validation accuracy of each source, before the first step and after a step.

    It is empty if the validation tasks come from one source.
    """
    by_step = {row["step"]: row["valid_sources"] for row in rows if "valid_sources" in row}
    if 0 not in by_step or step not in by_step:
        return {}
    return {
        source: (means["accuracy"], by_step[step][source]["accuracy"])
        for source, means in by_step[0].items()
        if source in by_step[step]
    }


def summary_of_gains(rows: Sequence[_Row], step: int) -> str:
    """Describe the gains of a step by source, the smallest first; empty if there is only one."""
    gains = {
        source: 100 * (after - before)
        for source, (before, after) in gains_by_source(rows, step).items()
    }
    order = sorted(gains, key=lambda source: gains[source])
    shown = [f"{short(source)} {gains[source]:+.1f}" for source in order[:_MOST_NAMED]]
    return f"{_joined(shown, len(order))} points" if len(shown) > 1 else ""


def _joined(shown: Sequence[str], total: int) -> str:
    return "; ".join([*shown, f"{total - len(shown)} more"] if total > len(shown) else shown)


def _described(means: Mapping[str, float]) -> str:
    accuracy = f", accuracy {100 * means['accuracy']:.1f}%" if "accuracy" in means else ""
    return f"loss {means['loss']:.4f}{accuracy} ({means['tasks']:.0f} tasks)"


def short(source: str, longest: int = 28) -> str:
    """Return the end of a long name, which tells paths apart."""
    return source if len(source) <= longest else f"…{source[1 - longest :]}"
