"""Pictures show all that they are given."""

from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from metajax import report
from metajax.evaluate import Estimate

MANY = [f"run {number}" for number in range(26)]  # More than there are looks.


def drawn(monkeypatch):
    """The figures, kept."""
    kept = []
    init = Figure.__init__

    def keep(self, *arguments, **settings):
        init(self, *arguments, **settings)
        kept.append(self)

    monkeypatch.setattr(Figure, "__init__", keep)
    return kept


def series():
    return np.arange(8), np.linspace(2.0, 1.0, 8)


@pytest.mark.parametrize(
    ("draw", "value"),
    [
        (report.learning_curves, series()),
        (report.step_times, series()),
        (report.adaptation_curves, Estimate(np.full(4, 0.5), np.full(4, 0.1))),
        (report.compared_accuracies, Estimate(0.5, 0.1)),
    ],
)
def test_every_label_is_in_the_picture(tmp_path, monkeypatch, draw, value):
    figures = drawn(monkeypatch)
    draw(tmp_path / "picture", dict.fromkeys(MANY, value))
    texts = {node.text for node in ElementTree.parse(tmp_path / "picture.svg").iter()}
    assert set(MANY) <= texts
    for legend in figures[0].legends:
        box = legend.get_window_extent()
        assert min(box.x0, box.y0) >= 0
        assert box.y1 <= figures[0].axes[0].get_window_extent().y0
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_running_mean_leaves_gaps_out():
    values = np.ones(200)
    values[50:60] = np.nan
    np.testing.assert_allclose(report._smoothed(values), 1.0)
    assert np.isnan(report._smoothed(np.full(200, np.nan))).all()
