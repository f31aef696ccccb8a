"""The means of a run by source."""

import numpy as np
import pytest

from metajax.runs.by_source import (
    RECENT,
    gains_by_source,
    losses_by_source,
    means_by_source,
    note_of_worst,
    recent_by_source,
    summary_by_source,
    summary_of_gains,
)
from metajax.types import MetaInfo


def row_of(step, **sources):
    """A row, with the number of tasks, the loss and the accuracy of each source."""
    names = ("tasks", "loss", "accuracy")
    return {"step": step, "sources": {name: dict(zip(names, v)) for name, v in sources.items()}}


ROWS = [
    {"step": 0, "before": {"accuracy": 0.5}},
    row_of(1, a=(1, 4.0, 0.2), b=(3, 1.0, 0.9)),
    row_of(2, a=(3, 2.0, 0.6)),
    row_of(3, a=(2, None, 0.0), b=(1, 3.0, 0.5)),
]


def test_each_task_counts_for_its_source():
    values = {"loss": np.array([1.0, 2.0, 4.0]), "accuracy": np.array([0.5, 1.0, 0.0])}
    assert means_by_source(["b", "a", "b"], values) == {
        "a": {"tasks": 1, "loss": 2.0, "accuracy": 1.0},
        "b": {"tasks": 2, "loss": 2.5, "accuracy": 0.25},
    }


def test_the_scalars_of_a_step_are_kept_and_none_stands_for_nan():
    aux = {"accuracy": np.array([0.5, 1.0]), "by_class": np.ones((2, 3)), "more": {}}
    infos = MetaInfo(np.array([1.0, np.nan]), aux, np.ones((2, 1)))
    assert losses_by_source(["a", "b"], infos) == {
        "a": {"tasks": 1, "loss": 1.0, "accuracy": 0.5},
        "b": {"tasks": 1, "loss": None, "accuracy": 1.0},
    }


def test_steps_count_by_their_tasks_and_not_at_all_without_a_loss():
    recent = recent_by_source(ROWS)
    assert recent["a"] == pytest.approx({"tasks": 4, "loss": 10 / 4, "accuracy": 2.0 / 4})
    assert recent["b"] == pytest.approx({"tasks": 4, "loss": 6 / 4, "accuracy": 3.2 / 4})
    assert recent_by_source([*ROWS, *RECENT * ROWS[2:3]])["a"]["tasks"] == 3 * RECENT


def test_the_worst_source_is_named_if_there_are_several():
    assert note_of_worst(ROWS) == "worst a 50.0%"
    assert note_of_worst(ROWS[2:3]) == ""
    long = [row_of(1, **{"/data/sets/" + "x" * 30: (1, 1.0, 0.1), "b": (1, 1.0, 0.2)})]
    assert note_of_worst(long) == f"worst …{'x' * 27} 10.0%"


def test_the_last_steps_are_described_the_highest_loss_first():
    assert summary_by_source(ROWS) == (
        "last 3 steps: a loss 2.5000, accuracy 50.0% (4 tasks); "
        "b loss 1.5000, accuracy 80.0% (4 tasks)"
    )
    assert summary_by_source(ROWS[2:3]) == ""
    many = [row_of(1, **{f"s{n}": (1, float(n), 0.5) for n in range(11)})]
    assert summary_by_source(many).endswith("s3 loss 3.0000, accuracy 50.0% (1 tasks); 3 more")


def test_gains_are_those_of_each_source():
    def validation(step, **accuracies):
        return {"step": step, "valid_sources": {k: {"accuracy": v} for k, v in accuracies.items()}}

    rows = [validation(0, a=0.5, b=0.25), validation(2, a=0.75, b=0.125), validation(4, a=1, b=1)]
    assert gains_by_source(rows, 2) == {"a": (0.5, 0.75), "b": (0.25, 0.125)}
    assert gains_by_source(rows, 3) == {}
    assert summary_of_gains(rows, 2) == "b -12.5; a +25.0 points"
    assert summary_of_gains([validation(0, a=0.5), validation(2, a=0.75)], 2) == ""
