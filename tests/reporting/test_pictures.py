"""Pictures show all that they are given."""

from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from metajax.reporting import plots as report
from metajax.training.evaluation import Estimate

MANY = [f"run {number}" for number in range(26)]  # More than there are looks.


def drawn(monkeypatch, *, saved=True):
    """The figures, kept; they need not be saved, which takes most of the time."""
    if not saved:
        monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
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


@pytest.mark.parametrize(("count", "around"), [(12, 0), (13, 1), (79, 1), (80, 2), (200, 5)])
def test_the_running_mean_is_over_a_twentieth_around(count, around):
    values = np.random.default_rng(0).normal(size=count)
    values[count // 2] = np.nan
    wanted = [
        np.nanmean(values[max(0, n - around) : n + around + 1])
        for n in range(count)
        if around or n != count // 2
    ]
    found = report._smoothed(values)
    np.testing.assert_allclose(found[np.isfinite(found)], wanted, rtol=1e-12)


def test_of_many_points_a_thousand_are_drawn_evenly():
    steps = np.arange(1, 5002)
    found, values = report._thinned(steps, 2 * steps)
    assert (len(found), found[0], found[-1]) == (1000, 1, 5001)
    assert set(np.diff(found)) == {5, 6}
    np.testing.assert_array_equal(values, 2 * found)
    few, values = report._thinned(steps[:7], steps[:7])
    assert few.tolist() == values.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_long_curves_are_smoothed_over_what_was_measured(tmp_path, monkeypatch):
    figures = drawn(monkeypatch, saved=False)
    losses = np.random.default_rng(0).normal(size=200)
    losses[7] = np.nan
    report.learning_curves(tmp_path / "picture", {"run": (np.arange(200), losses)})
    faint, smooth, skipped = figures[0].axes[0].lines
    np.testing.assert_array_equal(faint.get_ydata(), losses)
    np.testing.assert_array_equal(smooth.get_ydata(), report._smoothed(losses))
    assert (smooth.get_label(), smooth.get_marker(), faint.get_alpha()) == ("run", "", 0.25)
    assert (skipped.get_xdata().tolist(), skipped.get_label()) == ([7], "run: skipped")


def test_compared_accuracies_have_the_best_on_top_with_its_interval(tmp_path, monkeypatch):
    figures = drawn(monkeypatch, saved=False)
    methods = {"b": Estimate(0.5, 0.125), "a": Estimate(0.75, 0.25), "c": Estimate(0.25, 0.0625)}
    report.compared_accuracies(tmp_path / "picture", methods)
    (axes,) = figures[0].axes
    ((points, _, (bars,)),) = axes.containers
    assert points.get_xdata().tolist() == [25, 50, 75]
    assert points.get_ydata().tolist() == [0, 1, 2]
    ends = [segment[:, 0].tolist() for segment in bars.get_segments()]
    assert ends == [[18.75, 31.25], [37.5, 62.5], [50, 100]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c", "b", "a"]
    assert axes.get_yticks().tolist() == [0, 1, 2]
    assert axes.get_ylim()[0] < axes.get_ylim()[1]
    assert axes.get_xlabel() == "query accuracy (%)"


def test_curves_of_several_runs_look_otherwise(tmp_path, monkeypatch):
    """And the band around each is of its colour."""
    figures = drawn(monkeypatch, saved=False)
    curve = Estimate(np.full(3, 0.5), np.full(3, 0.1))
    report.adaptation_curves(tmp_path / "picture", dict.fromkeys(MANY[:24], curve))
    (axes,) = figures[0].axes
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 24
    for line, band in zip(axes.lines, axes.collections):
        assert band.get_facecolor()[0, :3].tolist() == list(to_rgb(line.get_color()))


def test_long_names_are_cut():
    assert report._short("n" * 28) == "n" * 28
    assert report._short("n" * 29) == "n" * 27 + "…"


def test_a_large_confusion_has_no_numbers(tmp_path, monkeypatch):
    figures = drawn(monkeypatch, saved=False)
    for count in (20, 21):
        report.confusion_matrix(tmp_path / "picture", np.eye(count, dtype=int), ["x"] * count)
    assert [len(figure.axes[0].texts) for figure in figures] == [20, 0]
    assert [len(figure.axes[0].patches) for figure in figures] == [20, 21]
    assert {text.get_color() for text in figures[0].axes[0].texts} == {"white"}


def test_the_loss_of_each_chunk_and_what_the_steps_gain(tmp_path, monkeypatch):
    figures = drawn(monkeypatch, saved=False)
    losses = {"checkpoint": (3.5, 3.0, 2.5), "none": (3.25, 3.5, 4.0), "shorter": (3.0,)}
    report.chunk_losses(tmp_path / "losses", losses)
    report.chunk_gains(tmp_path / "gains", losses, "none")
    lines = [
        {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
        for figure in figures
    ]
    assert lines[0]["checkpoint"] == [[1, 3.5], [2, 3.0], [3, 2.5]]
    assert lines[1]["checkpoint"] == [[1, -0.25], [2, 0.5], [3, 1.5]]
    assert lines[1]["none"] == [[1, 0], [2, 0], [3, 0]]
    assert lines[1]["shorter"] == [[1, 0.25]]
