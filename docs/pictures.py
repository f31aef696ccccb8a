"""Draw the pictures of the site, from recorded results and from two networks trained here.

    python -m docs.pictures                  # all of them, some minutes on one core
    python -m docs.pictures --names speed    # pictures of recorded results take seconds

Requires `pip install -e '.[report]'`. The same results give the same files.
"""

import argparse
import math
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure

import metajax
from experiments.sinusoid import Learner, Points, loss_fn, train
from metajax import Estimate
from metajax.reporting.plots import compared_accuracies

ROOT = Path(__file__).parents[1]
STYLE = {
    "svg.fonttype": "none",  # Keep text as text.
    "svg.hashsalt": "metajax",  # The same picture gives the same file.
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "legend.frameon": False,
}
# The colours of Okabe and Ito, which colour-blind people can distinguish.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#8c959f"

DOCUMENTS = "python -m experiments.documents --seeds 0"


def printed(log: Path, command: str) -> list[str]:
    """Return the lines that a command printed, from its log.

    Args:
        log: the file.
        command: its first words.
    """
    (block,) = re.findall(rf"\$ {re.escape(command)}.*?(?=\n\$ |```)", log.read_text(), re.S)
    return block.splitlines()[1:]


def stages(path: Path) -> None:
    """Draw the accuracy after each stage, with intervals."""
    rows = [
        re.fullmatch(r"(\S.*?)  +([\d.]+) ± ([\d.]+)  .*", line)
        for line in printed(ROOT / "experiments/logs/stages.md", "python -m experiments.stages")
    ]
    shares = {
        row[1]: Estimate(np.array(float(row[2]) / 100), np.array(float(row[3]) / 100))
        for row in rows
        if row
    }
    with tempfile.TemporaryDirectory() as folder:
        compared_accuracies(Path(folder, path.name), shares)
        Path(folder, path.name).replace(path)


def documents(path: Path) -> None:
    """Draw how much lower the loss is than without adaptation, by number of steps before it."""
    log = ROOT / "experiments/logs/documents.md"
    lines = (
        re.fullmatch(r"(\S.*?)((?: +\d\.\d{3}){8,})", line) for line in printed(log, DOCUMENTS)
    )
    losses = {line[1].strip(): np.array(line[2].split(), float) for line in lines if line}
    unadapted = losses.pop("pretrained longer")
    styles = {
        "second order": (BLUE, "meta-trained (second order)"),
        "first order": (GREEN, "meta-trained (first order)"),
        "pretrained longer, dynamic evaluation": (ORANGE, "without meta-training, the same steps"),
    }
    figure = Figure(figsize=(6.2, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=GREY)
    axes.annotate(
        "no adaptation", (len(unadapted) - 1, 0), (0, 4), textcoords="offset points", ha="right"
    )
    for name, (colour, label) in styles.items():
        axes.plot(unadapted - losses[name], "o-", color=colour, label=label, markersize=4)
    axes.set_xlabel("gradient steps on the text before")
    axes.set_ylabel("gain (nats per token)")
    axes.legend(loc="upper left")
    save(figure, path)


def speed(path: Path) -> None:
    """Draw the seconds of a second-order meta-gradient, next to PyTorch's libraries."""
    cases: dict[str, dict[str, float]] = {}
    log = ROOT / "benchmarks/logs/peers.md"
    for line in printed(log, "python -m benchmarks.peers --peer-python PEERS --case minilm"):
        case, order, contender, seconds, *_ = [*line.split(), "", ""]
        if order == "second":
            cases.setdefault(case, {})[contender] = float(seconds)
    figure = Figure(figsize=(6.4, 2.6), layout="constrained")
    for axes, (case, seconds) in zip(figure.subplots(1, len(cases)), cases.items()):
        names = list(seconds)[::-1]
        colours = [BLUE if name == "metajax" else GREY for name in names]
        axes.barh(names, [seconds[name] for name in names], color=colours)
        axes.set(xlabel="seconds a meta-gradient", title=case)
    save(figure, path)


def few_shot(path: Path) -> None:
    """Draw how far methods are ahead of SetFit, with their seconds to adapt."""
    log = (ROOT / "benchmarks/logs/few_shot.md").read_text()
    log = log.split("## On one core")[1].split("\n## ")[0]
    number = r"(-?[\d.]+)"
    columns = rf"(\S.*?) +{number} ± {number} +{number} ± {number} +{number} +{number} +{number}"
    panels: dict[str, list[re.Match[str]]] = {}
    for line in log.splitlines():
        if title := re.match(r"\w+, \d+ per class(?=  )", line):
            rows = panels.setdefault(title[0], [])
        elif row := re.fullmatch(columns, line):
            rows.append(row)
    height = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(8.8, 2 * height), layout="constrained")
    grid = figure.subplots(height, 2).flat
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, (title, (setfit, *rows)) in zip(grid, panels.items()):
        places = range(len(rows))[::-1]
        leads, intervals = (np.array([float(row[column]) for row in rows]) for column in (4, 5))
        axes.axvline(0, color=GREY)
        axes.errorbar(leads, places, xerr=intervals, fmt="o", color=BLUE, capsize=3)
        axes.set_yticks(places, [f"{row[1]} ({float(row[6]):.0f} s)" for row in rows])
        axes.set_title(f"{title} (SetFit: {float(setfit[6]):.0f} s)", loc="right")
        axes.set_xlabel("points ahead")
        axes.margins(y=0.15)
    save(figure, path)


def memory(path: Path) -> None:
    """Draw the memory of a meta-gradient by number of inner steps."""
    log = ROOT / "benchmarks/logs/steps.md"
    rows = [line.split() for line in printed(log, "python -m benchmarks.steps")[1:]]
    figure = Figure(figsize=(4.6, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.plot([int(row[1]) for row in rows], [float(row[3]) for row in rows], "o-", color=BLUE)
    axes.set(xlabel="inner steps", ylabel="temporary memory (GB)", ylim=(0, None), xlim=(0, None))
    save(figure, path)


def waves(path: Path) -> None:
    """Draw a new sine wave that two networks learn from five points."""
    learners = {
        "meta-trained on many waves": lambda k, rate: metajax.maml(loss_fn, optax.sgd(rate), k),
        "trained on the same waves": lambda k, rate: metajax.supervised(loss_fn),
    }
    x = jnp.linspace(-5, 5, 201)[:, None]
    seen = jnp.array([-4.2, -2.6, -0.7, 0.9, 1.9])[:, None]
    wave = lambda x: 3.5 * jnp.sin(x - 0.8)  # noqa: E731
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    for axes, (title, make) in zip(figure.subplots(1, 2, sharey=True), learners.items()):
        params = train(Learner(make), seed=0, num_steps=70_000)
        axes.plot(x, wave(x), color=GREY, linewidth=4, alpha=0.5, label="the wave")
        for steps, look in {0: ":", 1: "--", 10: "-"}.items():
            rate = optax.schedules.piecewise_constant_schedule(0.01, {1: 0.5})
            adapt = metajax.maml(loss_fn, optax.sgd(rate), steps).adapt
            adapted, _ = adapt(params, Points(seen, wave(seen)), None)
            colour = {0: GREEN, 1: ORANGE, 10: BLUE}[steps]
            label = f"after {steps} step{'s' * (steps != 1)}"
            axes.plot(x, predict(adapted, x), look, color=colour, label=label)
        axes.plot(seen, wave(seen), "ko", label="the five points")
        axes.set(title=title, xlabel="x", ylim=(-5, 5))
    figure.axes[0].legend(loc="lower right", fontsize=8)
    save(figure, path)


def predict(params: list, x: jax.Array) -> jax.Array:
    """Evaluate the network of the sinusoid experiment at x [P, 1]."""
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ last["kernel"] + last["bias"]


def save(figure: Figure, path: Path) -> None:
    """Write an SVG without a date."""
    figure.savefig(path, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))


PICTURES = {
    "waves": waves,
    "documents": documents,
    "stages": stages,
    "speed": speed,
    "memory": memory,
    "few_shot": few_shot,
}


def main(arguments: list[str] | None = None) -> None:
    """Draw the named pictures into docs/pictures/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", choices=PICTURES, default=list(PICTURES))
    folder = Path(__file__).parent / "pictures"
    folder.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name in parser.parse_args(arguments).names:
            PICTURES[name](folder / f"{name}.svg")


if __name__ == "__main__":
    main()
