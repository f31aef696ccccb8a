"""Draw pictures as PNG and SVG."""

import contextlib
import importlib.util
import itertools
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.errors import InputError, printable
from metajax.training.evaluation import Estimate

_INK = "#24292f"
_PAPER = "#ffffff"
# The colours of Okabe and Ito, which colour-blind people can distinguish, without the faint ones.
_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
_LOOKS = [
    {"color": colour, "marker": marker, "markersize": 5, "linestyle": line}
    for line in ("-", "--", ":", "-.")
    for colour, marker in zip(_COLOURS, "os^DvP")
]
_FEW_LABELS = 8  # A larger legend would hide the curves.
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "grid.color"), _INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "axes.facecolor": "none",
    "axes.grid": True,
    "grid.alpha": 0.15,
    "font.size": 11,
    "axes.titlesize": 11,
    "svg.fonttype": "none",  # Keep text as text, so that it can be searched, copied and read out.
    "svg.hashsalt": "metajax",  # The same picture gives the same file.
    "text.parse_math": False,  # A label may contain a dollar sign.
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_SIZE = (5.2, 3.4)
_MOST_POINTS = 1000
_FEW = 12  # Up to so many steps get markers.
_MOST_NUMBERED = 20  # With more classes, cells have no room for numbers.


class Series(NamedTuple):
    """Values of some steps; NaN if they were not finite.

    Attributes:
        steps: [N].
        values: [N].
    """

    steps: np.ndarray
    values: np.ndarray


def check_drawable() -> None:
    """Check that pictures can be drawn.

    Raises:
        InputError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "matplotlib: is not installed, but pictures need it; install it with "
            "`pip install matplotlib`"
        )


def inline_svg(path: Path) -> str:
    """Return one of these SVGs for use in an HTML page, with the colours of the page."""
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    # Remove the ids of parts: several pictures on a page would share them.
    svg = re.sub(r' id="[a-z0-9]+_[0-9]+"', "", svg)
    # The first white is the background.
    return svg.replace(_INK, "currentColor").replace(f"fill: {_PAPER}", "fill: none", 1)


@contextlib.contextmanager
def _picture(path: Path, size: tuple[float, float] = _SIZE) -> Iterator[Any]:
    """Yield axes to draw on, then write both files."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The PNG shows boxes for missing glyphs. For the SVG, a browser has other fonts.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=size, facecolor=_PAPER, layout="constrained")
        yield figure.add_subplot()
        figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})
        figure.savefig(path.with_suffix(".svg"), metadata=_NO_METADATA)


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(6, integer=True))


def _legend(axes: Any) -> None:
    """Draw the legend among the curves. If it is long, enlarge the picture and draw it below."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) <= _FEW_LABELS:
        axes.legend()
        return
    figure = axes.figure
    figure.set_figheight(figure.get_figheight() + 0.2 * len(labels))
    figure.legend(handles, labels, loc="outside lower left", fontsize="small")


def learning_curves(path: Path, runs: Mapping[str, Series]) -> None:
    """Draw the loss by step, faint, and over it a running mean.

    Args:
        path: path of both files; its suffix is replaced.
        runs: losses by label. Skipped steps have NaN and are marked.
    """
    with _picture(path) as axes:
        for look, (label, (steps, losses)) in zip(itertools.cycle(_LOOKS), runs.items()):
            axes.plot(*_thinned(steps, losses), color=look["color"], alpha=0.25, linewidth=1)
            axes.plot(
                *_thinned(steps, _smoothed(losses)), **_sparse(look, steps), label=_short(label)
            )
            skipped = steps[np.isnan(losses)]
            if skipped.size:
                axes.plot(
                    skipped,
                    np.full(skipped.size, 0.02),
                    **{"color": look["color"], "marker": "x", "linestyle": "none"},
                    transform=axes.get_xaxis_transform(),
                    label=f"{_short(label)}: skipped",
                )
        _whole_numbers(axes.xaxis)
        axes.set(xlabel="step", ylabel="loss")
        _legend(axes)


def step_times(path: Path, runs: Mapping[str, Series]) -> None:
    """Draw the seconds of each step. The scale is logarithmic because some steps compile."""
    from matplotlib.ticker import LogLocator

    with _picture(path) as axes:
        for look, (label, (steps, seconds)) in zip(itertools.cycle(_LOOKS), runs.items()):
            look = _sparse(look, steps) | {"linewidth": 1}
            axes.plot(*_thinned(steps, seconds), **look, label=_short(label))
        _whole_numbers(axes.xaxis)
        axes.set(xlabel="step", ylabel="seconds", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        _legend(axes)


def adaptation_curves(path: Path, curves: Mapping[str, Estimate]) -> None:
    """Draw accuracy by inner step, with 95% intervals.

    Args:
        path: path of both files; its suffix is replaced.
        curves: means and intervals [K + 1] in 0..1 after 0, 1, ..., K steps, by label.
    """
    with _picture(path) as axes:
        for look, (label, curve) in zip(itertools.cycle(_LOOKS), curves.items()):
            steps = range(len(curve.mean))
            axes.plot(steps, 100 * curve.mean, **look, label=_short(label))
            low, high = 100 * (curve.mean - curve.ci95), 100 * (curve.mean + curve.ci95)
            axes.fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)
        _whole_numbers(axes.xaxis)
        axes.set(xlabel="inner gradient steps", ylabel="query accuracy (%)")
        _legend(axes)


def chunk_losses(path: Path, curves: Mapping[str, Sequence[float]]) -> None:
    """Draw the loss by position of the chunk in a document.

    Args:
        path: path of both files; its suffix is replaced.
        curves: losses of the first chunks, by label.
    """
    _by_chunk(path, curves, "loss (nats per token)")


def chunk_gains(path: Path, curves: Mapping[str, Sequence[float]], without: str) -> None:
    """Draw how much lower the loss is than without adaptation, by position of the chunk.

    Args:
        path: path of both files; its suffix is replaced.
        curves: losses of the first chunks, by label.
        without: label of the losses without adaptation.
    """
    base = curves[without]
    gains = {
        label: [before - after for before, after in zip(base, losses)]
        for label, losses in curves.items()
    }
    _by_chunk(path, gains, f"gain over {without} (nats per token)")


def _by_chunk(path: Path, curves: Mapping[str, Any], quantity: str) -> None:
    with _picture(path) as axes:
        for look, (label, values) in zip(itertools.cycle(_LOOKS), curves.items()):
            chunks = np.arange(1, len(values) + 1)
            axes.plot(chunks, values, **_sparse(look, chunks), label=_short(label))
        _whole_numbers(axes.xaxis)
        axes.set(xlabel="chunk of the document", ylabel=quantity)
        _legend(axes)


def validation_curves(path: Path, runs: Mapping[str, Mapping[int, Mapping[str, float]]]) -> None:
    """Draw the accuracy on validation episodes by step, with 95% intervals.

    Args:
        path: path of both files; its suffix is replaced.
        runs: by label, the `accuracy` and `ci95` (0..1) by step.
    """
    with _picture(path) as axes:
        for look, (label, validations) in zip(itertools.cycle(_LOOKS), runs.items()):
            means = [100 * each["accuracy"] for each in validations.values()]
            intervals = [100 * each["ci95"] for each in validations.values()]
            axes.errorbar(list(validations), means, intervals, **look, label=_short(label))
        _whole_numbers(axes.xaxis)
        axes.set(xlabel="step", ylabel="accuracy on validation tasks (%)")
        _legend(axes)


def compared_accuracies(path: Path, methods: Mapping[str, Estimate]) -> None:
    """Draw the accuracies of methods with 95% intervals, the best on top.

    Args:
        path: path of both files; its suffix is replaced.
        methods: mean and interval in 0..1, by label.
    """
    ranked = sorted(methods.items(), key=lambda item: item[1].mean)
    places = np.arange(len(ranked))
    means = 100 * np.array([estimate.mean for _, estimate in ranked])
    intervals = 100 * np.array([estimate.ci95 for _, estimate in ranked])
    with _picture(path, (_SIZE[0], 0.9 + 0.32 * len(ranked))) as axes:
        axes.errorbar(means, places, xerr=intervals, fmt="o", color=_COLOURS[0], capsize=3)
        axes.set(xlabel="query accuracy (%)", ylim=(-0.6, len(ranked) - 0.4))
        axes.set_yticks(places, [_short(label) for label, _ in ranked])
        axes.grid(visible=False, axis="y")


def confusion_matrix(path: Path, counts: np.ndarray, labels: Sequence[str]) -> None:
    """Draw a confusion matrix, coloured by the share of each true class.

    Args:
        path: path of both files; its suffix is replaced.
        counts: [C, C], one row per true label and one column per predicted label.
        labels: the classes' names.
    """
    names = [_short(label) for label in labels]
    count, places = len(names), np.arange(len(names)) + 0.5
    cell = min(0.45, 10 / count)  # inches
    size = min(11, 0.8 * 72 * cell)
    side = 0.7 + cell * count + max(map(len, names)) * size * 0.6 / 72
    with _picture(path, (side, side)) as axes:
        axes.set(
            xlabel="predicted", ylabel="true", aspect="equal", xlim=(0, count), ylim=(count, 0)
        )
        axes.set_xticks(places, names, rotation=90, fontsize=size)
        axes.set_yticks(places, names, fontsize=size)
        axes.tick_params(length=0)
        axes.grid(False)
        for row, column in np.argwhere(counts):
            _draw_cell(axes, row, column, counts, numbered=count <= _MOST_NUMBERED)


def _draw_cell(axes: Any, row: int, column: int, counts: np.ndarray, numbered: bool) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    share = counts[row, column] / counts[row].sum()
    ground = colormaps["Blues"](0.1 + 0.8 * share)
    axes.add_patch(Rectangle((column, row), 1, 1, facecolor=ground))
    if numbered:
        # On this background, independent of the page's colours.
        ink = "white" if share > 0.5 else "black"
        axes.text(column + 0.5, row + 0.5, counts[row, column], color=ink, ha="center", va="center")


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Return a running mean of the finite values, over a twentieth of all values."""
    window = np.ones(2 * max(len(values) // 40, len(values) > _FEW) + 1)
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0), window, "same")
    count = np.convolve(known, window, "same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0.5)


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return at most as many points as a picture can show, evenly spaced."""
    kept = np.unique(np.linspace(0, len(steps) - 1, _MOST_POINTS).round().astype(int))
    return steps[kept], values[kept]


def _sparse(look: dict[str, Any], steps: np.ndarray) -> dict[str, Any]:
    """Keep the markers only if there are few points; one point makes no line."""
    return look if len(steps) <= _FEW else look | {"marker": ""}


def _short(label: str) -> str:
    label = printable(label)
    return label if len(label) <= 28 else label[:27] + "…"
