"""Pictures."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from metajax.errors import InputError
from metajax.evaluate import Estimate


def check_drawable() -> None:
    """Checks that pictures can be drawn.

    Raises:
        InputError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "matplotlib: is not installed, and the picture needs it: pip install 'metajax[demo]'"
        )


def adaptation_curves(path: Path, curves: Mapping[str, Estimate], title: str) -> None:
    """Draws accuracy against inner steps, with 95% intervals.

    Args:
        path: the PNG to write.
        curves: for each label, means and intervals [K + 1] in 0..1 after 0, 1, ..., K steps.
        title: above the picture.

    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for label, curve in curves.items():
        steps = range(len(curve.mean))
        (line,) = axes.plot(steps, 100 * curve.mean, marker="o", label=label)
        low, high = 100 * (curve.mean - curve.ci95), 100 * (curve.mean + curve.ci95)
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="inner gradient steps", ylabel="query accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
