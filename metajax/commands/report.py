"""One HTML page on runs: curves, tables and lineage, and the pictures next to it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metajax.commands.lineage import entries, lineage
from metajax.config.results import LineageSettings, ReportSettings
from metajax.errors import InputError
from metajax.reporting.by_source import by_source
from metajax.reporting.data import Comparison, Run, read_evaluation, read_runs
from metajax.reporting.page import figures, lists, note, page, table
from metajax.reporting.plots import (
    Series,
    adaptation_curves,
    check_drawable,
    chunk_gains,
    chunk_losses,
    confusion_matrix,
    inline_svg,
    learning_curves,
    step_times,
    validation_curves,
)
from metajax.runs.best import best_of
from metajax.runs.workdir import check_writable, writable, write_atomically
from metajax.training.evaluation import Estimate

_Draw = Callable[..., str]  # (name of the picture, painter, values of the painter) -> SVG.

_WORST = 10  # Number of the most confused pairs of classes to list.


def report(settings: ReportSettings) -> dict[str, Any]:
    """Write the page, and each picture as PNG and SVG into a directory named after the page.

    Returns:
        `output`: path of the page. `pictures`: paths of the pictures.

    Raises:
        InputError: the input cannot be used, or matplotlib is not installed.
    """
    output = writable(settings.output)
    if output.suffix != ".html":
        raise InputError(f"--output {output}: is not an HTML file; give a name that ends in .html")
    folder = output.with_suffix("")
    check_writable(folder)
    if (folder / "run.json").exists():
        raise InputError(
            f"--output {output}: its pictures would go into the run {folder}; rename it"
        )
    check_drawable()
    runs = read_runs(settings.runs)
    groups = [group for file in settings.evaluations for group in read_evaluation(Path(file))]
    folder.mkdir(exist_ok=True)
    pictures: list[str] = []

    def draw(name: str, painter: Callable[..., None], *values: Any) -> str:
        painter(folder / name, *values)
        pictures.extend(str(folder / f"{name}{suffix}") for suffix in (".png", ".svg"))
        return inline_svg(folder / f"{name}.svg")

    sections = {
        "Runs": _overview(runs),
        "Learning curves": _by_stage(runs, "loss", "learning", learning_curves, draw),
        "Before and after": _before_and_after(runs),
        **_validation(runs, draw),
        **by_source(runs, draw),
        "Adaptation curves": _adaptation(groups, draw),
        **_by_chunk(groups, draw),
        "Methods": _methods(groups),
        "Confusion": _confusion(runs, draw),
        "Step time and memory": _by_stage(runs, "seconds", "time", step_times, draw) + _cost(runs),
        "Lineage": _lineage(runs),
    }
    write_atomically(output, page(f"metajax: {', '.join(run.name for run in runs)}", sections))
    return {"output": str(output), "pictures": pictures}


def _overview(runs: Sequence[Run]) -> str:
    return table(
        ("run", "stage", "state", "workdir"),
        [(run.name, run.record["stage"], _state(run), run.path) for run in runs],
        words=4,
    )


def _state(run: Run) -> str:
    if run.results is not None:
        return "finished"
    step = run.metrics[-1]["step"] if run.metrics else 0
    total = run.record["settings"].get("steps")
    return f"unfinished: step {step}" + (f" of {total}" if total else "")


def _by_stage(
    runs: Sequence[Run], name: str, kind: str, painter: Callable[..., None], draw: _Draw
) -> str:
    """Draw one picture per stage, with the measurements of its runs by step."""
    stages: dict[str, dict[str, Series]] = {}
    for run in runs:
        series = run.series(name)
        if series.steps.size:
            stages.setdefault(run.record["stage"], {})[run.name] = series
    if not stages:
        return note(f"No {name} per step in these runs.")
    return figures(
        {
            f"{stage}: {name} of each step": draw(f"{kind}-{stage}", painter, curves)
            for stage, curves in stages.items()
        }
    )


def _before_and_after(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        before = _measures(run.metrics[0].get("before", {}) if run.metrics else {})
        after = _measures((run.results or {}).get("after", {}))
        data = (run.results or {}).get("measured_on", "")
        rows += [(run.name, name, data, before[name], after.get(name, "")) for name in before]
    if not rows:
        return note("No measurements before and after training in these runs.")
    return table(("run", "measure", "measured on", "before", "after"), rows, words=3)


def _validation(runs: Sequence[Run], draw: _Draw) -> dict[str, str]:
    """Draw the validations by step and compare the best, if there are any."""
    curves = {run.name: run.validations for run in runs if len(run.validations) > 1}
    if not curves:
        return {}
    svg = draw("validation", validation_curves, curves)
    rows = [
        (run.name, best.best_step, f"{100 * best.gain:.2f} ± {100 * best.gain_ci95:.2f}", kept)
        for run in runs
        if (best := best_of(run.metrics)) is not None
        for kept in [f"step {best.kept_step}" if best.kept_step else "the start"]
    ]
    header = ("run", "best step", "gain over the start (points)", "later stages read")
    caption = "The interval holds for all validations of the run together."
    section = figures({"Validation tasks: accuracy by step; 95% intervals": svg})
    return {"Validation": section + table(header, rows, caption)}


def _measures(measured: dict[str, Any]) -> dict[str, str]:
    """Format measurements by name. The name of a task precedes the names of its measurements."""
    shown: dict[str, str] = {}
    for name, value in measured.items():
        if isinstance(value, dict):
            shown |= {f"{name} {measure}": text for measure, text in _measures(value).items()}
        elif name != "ci95":
            interval = f" ± {measured['ci95']:.4f}" if "ci95" in measured else ""
            shown[name] = (f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}") + interval
    return shown


def _adaptation(groups: Sequence[Comparison], draw: _Draw) -> str:
    drawn: dict[str, str] = {}
    for group in groups:
        curves = {
            row.method: Estimate(np.array(row.curve), np.array(row.curve_ci95))
            for row in group.episodes
            if row.curve
        }
        if curves:
            name = f"adaptation-{len(drawn) + 1}"
            drawn[f"{group.caption}; 95% intervals"] = draw(name, adaptation_curves, curves)
    return figures(drawn) if drawn else note("None: evaluate draws them with --curve STEPS.")


def _by_chunk(groups: Sequence[Comparison], draw: _Draw) -> dict[str, str]:
    """Draw the losses on documents by chunk, in a section of their own, if there are any."""
    drawn: dict[str, str] = {}
    for group in groups:
        if group.documents:
            losses = {row.method: row.chunks for row in group.documents}
            number = len(drawn) + 1
            drawn[group.caption] = draw(f"chunks-{number}", chunk_losses, losses)
            if "none" in losses:
                caption = f"{group.caption}; gain over no adaptation"
                drawn[caption] = draw(f"gains-{number}", chunk_gains, losses, "none")
    return {"Loss by chunk": figures(drawn)} if drawn else {}


def _methods(groups: Sequence[Comparison]) -> str:
    if not groups:
        return note("None: compare them with evaluate --output FILE; report --evaluations FILE.")
    return "\n".join(map(_method_table, groups))


def _method_table(group: Comparison) -> str:
    return _document_table(group) if group.documents else _episode_table(group)


def _document_table(group: Comparison) -> str:
    first = group.documents[0]
    return table(
        ("method", "nats/token", f"behind {first.method}", "bits/byte", "inner steps", "seconds"),
        [
            (
                row.method,
                f"{row.loss:.4f} ± {row.ci95:.4f}",
                "" if row is first else f"{row.behind:.4f} ± {row.behind_ci95:.4f}",
                f"{row.bits_per_byte:.4f}",
                row.inner_steps,
                f"{row.seconds:.1f}",
            )
            for row in sorted(group.documents, key=lambda row: row.loss)
        ],
        f"{group.caption}; mean and 95% interval, of the difference document by document",
    )


def _episode_table(group: Comparison) -> str:
    first = group.episodes[0]
    return table(
        ("method", "accuracy (%)", f"behind {first.method} (%)", "inner steps", "seconds"),
        [
            (
                row.method,
                f"{100 * row.accuracy:.2f} ± {100 * row.ci95:.2f}",
                "" if row is first else f"{100 * row.behind:.2f} ± {100 * row.behind_ci95:.2f}",
                row.inner_steps,
                f"{row.seconds:.1f}",
            )
            for row in sorted(group.episodes, key=lambda row: -row.accuracy)
        ],
        f"{group.caption}; mean and 95% interval, of the difference episode by episode",
    )


def _confusion(runs: Sequence[Run], draw: _Draw) -> str:
    judged = {
        run.name: run.results
        for run in runs
        if run.results and "confusion" in run.results.get("dev", {})
    }
    if not judged:
        return note("None: adapt counts with --dev, labelled examples that it does not adapt to.")
    parts = []
    for number, (name, results) in enumerate(judged.items(), start=1):
        counts, labels = np.array(results["dev"]["confusion"]), results["labels"]
        caption = (
            f"{name}: {100 * results['dev']['accuracy']:.2f}% of {counts.sum()} other examples "
            "labelled right"
        )
        svg = draw(f"confusion-{number}", confusion_matrix, counts, labels)
        parts.append(figures({caption: svg}, wide=True) + _worst(counts, labels))
    return "\n".join(parts)


def _worst(counts: np.ndarray, labels: Sequence[str]) -> str:
    """List the pairs of classes that are confused most often."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_WORST]
    pairs = [divmod(int(place), len(labels)) for place in order]
    rows = [(labels[i], labels[j], wrong[i, j]) for i, j in pairs if wrong[i, j]]
    header = ("true", "predicted", "examples")
    return table(header, rows, "Most often confused", words=2) if rows else ""


def _cost(runs: Sequence[Run]) -> str:
    header = ("run", "steps", "first (s)", "median (s)", "all (s)", "waiting for data (%)")
    rows = [_cost_of(run) for run in runs if run.series("seconds").steps.size]
    return (
        table((*header, "peak memory"), rows, "A step of a new shape, as the first one, compiles.")
        if rows
        else ""
    )


def _cost_of(run: Run) -> tuple[Any, ...]:
    seconds = run.series("seconds").values
    waited = sum(row.get("seconds", 0) * row.get("data_wait", 0) for row in run.metrics)
    device = run.most("peak_device_memory_bytes")
    return (
        run.name,
        len(seconds),
        f"{seconds[0]:.2f}",
        f"{np.median(seconds):.3f}",
        f"{seconds.sum():,.0f}",
        f"{100 * waited / seconds.sum():.1f}",
        f"{run.most('peak_memory_bytes') / 1e9:.2f} GB"
        + (f", of a device {device / 1e9:.2f} GB" if device else ""),
    )


def _lineage(runs: Sequence[Run]) -> str:
    """List the lineages of the runs, except for runs that are part of another lineage."""
    lineages = [lineage(LineageSettings(model=run.path)) for run in runs]
    ancestors = {row["path"] for rows in lineages for row in rows[1:-1]}
    return lists(entries(rows) for rows in lineages if rows[0]["path"] not in ancestors)
