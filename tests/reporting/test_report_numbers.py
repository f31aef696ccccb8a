"""The numbers of a report: each table's and each picture's, against the files that it is of."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from metajax.commands.report import report
from metajax.config.results import ReportSettings
from metajax.reporting.by_source import by_source
from metajax.reporting.data import Run, read_evaluation, read_runs
from tests.reporting.test_report import Page

pytestmark = pytest.mark.xdist_group("report numbers")  # They share what they look at.

LOSSES = {"one": [4.0, 2.0, None, 1.0], "two": [3.0, 2.5], "words": [9.0]}
SECONDS = {"one": [8.0, 1.0, 3.0, 2.0], "two": [6.0, 5.0], "words": [1500.0]}
WAITED = {"one": [0.5, 0.0, 0.25, 1.0], "two": [0.0, 0.0], "words": [0.125]}
STAGES = {"one": "metatrain", "two": "metatrain", "words": "pretrain", "new": "adapt"}
BEFORE = {
    "one": {"accuracy": 0.25, "ci95": 0.125},
    "two": {"accuracy": 0.5, "ci95": 0.0625},
    "words": {"x": {"loss": 123456.78}, "y": {"loss": 99.5}},
}
AFTER = {"one": {"accuracy": 0.75, "ci95": 0.03125}, "words": {"x": {"loss": 3.5}}}
CONFUSION = [[6, 0, 2], [1, 7, 0], [0, 3, 1]]


def write_run(root, name):
    """A workdir, by hand."""
    workdir = root / name
    workdir.mkdir()
    settings = {"seed": len(name), "max_length": 8, "tasks": ["t"], "steps": 5}
    record = {"data": {}, "parent": {"path": f"weights of {name}"}, "model": {}, "versions": {}}
    record |= {"stage": STAGES[name], "settings": settings}
    (workdir / "run.json").write_text(json.dumps(record))
    rows = [{"step": 0, "before": BEFORE[name]}] if name in BEFORE else []
    for step, loss in enumerate(LOSSES.get(name, ()), start=1):
        row = {"step": step, "loss": loss, "seconds": SECONDS[name][step - 1]}
        row |= {"data_wait": WAITED[name][step - 1], "peak_memory_bytes": 10**9 * (7 - step)}
        if name == "two":
            row["peak_device_memory_bytes"] = 10**9 * step
        rows.append(row)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (workdir / "metrics.jsonl").write_text(lines)
    results = {"after": AFTER[name]} if name in AFTER else {}
    if name == "new":
        results = {"labels": ["a", "b", "c"], "dev": {"accuracy": 0.7, "confusion": CONFUSION}}
    if results:
        (workdir / "results.json").write_text(json.dumps(results))
    return workdir


def row_of(method, accuracy, protocol="first", **more):
    """A row of an evaluation, by hand."""
    return {
        **{"tasks": "t", "protocol": protocol, "method": method, "ways": 3, "shots": 1},
        **{"queries": 2, "inner_steps": 0, "episodes": 2, "accuracy": accuracy},
        **{"ci95": accuracy / 8, "behind": 0.5 - accuracy, "behind_ci95": accuracy / 4},
        **{"seconds": 100 * accuracy, "accuracies": [accuracy, accuracy]},
    } | more


ROWS = [
    row_of("maml", 0.5, inner_steps=2, curve=[0.25, 0.375, 0.5], curve_ci95=[0.1, 0.05, 0.01]),
    row_of("knn", 0.75),
    row_of("finetune", 0.25, "second", curve=[0.125, 0.25], curve_ci95=[0.02, 0.03]),
    row_of("linear", 0.625),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page of three runs and an adaptation, and its pictures as matplotlib has them."""
    root = tmp_path_factory.mktemp("report")
    runs = [str(write_run(root, name)) for name in STAGES]
    (root / "rows.json").write_text(json.dumps(ROWS))
    pictures = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep_in(pictures))
        evaluations = (str(root / "rows.json"),)
        page = root / "page.html"
        report(ReportSettings(runs=tuple(runs), evaluations=evaluations, output=str(page)))
    html = page.read_text()
    return SimpleNamespace(page=Page(html), html=html, pictures=pictures, root=root, runs=runs)


def lines_of(figure):
    """For each line its label, and where its points are."""
    (axes,) = figure.axes
    return [
        (line.get_label(), [float(x) for x in line.get_xdata()], list(line.get_ydata()))
        for line in axes.lines
    ]


def test_a_stages_learning_curves_are_its_runs_losses(made):
    shown = [line for line in lines_of(made.pictures["learning-metatrain"]) if line[0][0] != "_"]
    one = [4.0, 2.0, np.nan, 1.0]
    assert [(label, steps) for label, steps, _ in shown] == [
        ("one", [1, 2, 3, 4]),
        ("one: skipped", [3]),
        ("two", [1, 2]),
    ]
    np.testing.assert_array_equal(shown[0][2], one)  # So few are not smoothed.
    np.testing.assert_array_equal(shown[2][2], LOSSES["two"])
    faint = [line for line in lines_of(made.pictures["learning-metatrain"]) if line[0][0] == "_"]
    np.testing.assert_array_equal(faint[0][2], one)
    np.testing.assert_array_equal(faint[1][2], LOSSES["two"])
    assert [line[2] for line in lines_of(made.pictures["learning-pretrain"])] == [[9.0], [9.0]]
    axes = made.pictures["learning-metatrain"].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "loss")


def test_the_times_are_those_of_the_runs_steps(made):
    figure = made.pictures["time-metatrain"]
    assert lines_of(figure) == [
        ("one", [1, 2, 3, 4], SECONDS["one"]),
        ("two", [1, 2], SECONDS["two"]),
    ]
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("step", "seconds", "log")


def test_the_adaptation_curves_are_those_of_a_groups_rows(made):
    for name, row in (("adaptation-1", ROWS[0]), ("adaptation-2", ROWS[2])):
        ((label, steps, values),) = lines_of(made.pictures[name])
        assert (label, steps) == (row["method"], list(range(len(row["curve"]))))
        np.testing.assert_allclose(values, 100 * np.array(row["curve"]))
        (band,) = made.pictures[name].axes[0].collections
        corners = band.get_paths()[0].vertices
        for step, (mean, half) in enumerate(zip(row["curve"], row["curve_ci95"])):
            heights = corners[corners[:, 0] == step, 1]
            bounds = [heights.min(), heights.max()]
            np.testing.assert_allclose(bounds, [100 * (mean - half), 100 * (mean + half)])
        axes = made.pictures[name].axes[0]
        assert (axes.get_xlabel(), axes.get_ylabel()) == (
            "inner gradient steps",
            "query accuracy (%)",
        )
    assert len([name for name in made.pictures if name.startswith("adaptation")]) == 2


def test_the_confusion_has_true_rows_and_predicted_columns(made):
    axes = made.pictures["confusion-1"].axes[0]
    cells = {(text.get_position(), int(text.get_text())) for text in axes.texts}
    counts = np.array(CONFUSION)
    assert cells == {((j + 0.5, i + 0.5), counts[i, j]) for i, j in np.argwhere(counts)}
    shares = {}
    for patch in axes.patches:
        j, i = (int(at) for at in patch.get_xy())
        shares.setdefault(counts[i, j] / counts[i].sum(), set()).add(to_hex(patch.get_facecolor()))
    assert all(len(colours) == 1 for colours in shares.values())  # Of a share of its row.
    brightness = [int(colours.pop()[1:3], 16) for _, colours in sorted(shares.items())]
    assert brightness == sorted(brightness, reverse=True)
    assert len(set(brightness)) == len(brightness)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert axes.get_ylim() == (3, 0)
    assert "new: 70.00% of 20 other examples labelled right" in made.html


def test_the_tables_have_each_runs_numbers(made):
    rows = made.page.rows
    assert [row[:3] for row in rows[1:5]] == [
        ["one", "metatrain", "finished"],
        ["two", "metatrain", "unfinished: step 2 of 5"],
        ["words", "pretrain", "finished"],
        ["new", "adapt", "finished"],
    ]
    assert [row[3] for row in rows[1:5]] == made.runs
    begin = rows.index(["one", "accuracy", "0.2500 ± 0.1250", "0.7500 ± 0.0312"])
    # The page's parser has nothing of an empty cell.
    assert rows[begin + 1 : begin + 4] == [
        ["two", "accuracy", "0.5000 ± 0.0625"],
        ["words", "x loss", "123,456.8", "3.5000"],
        ["words", "y loss", "99.5000"],
    ]
    begin = rows.index(["c", "b", "3"])
    assert rows[begin - 1] == []  # The header: right ones are not among them.
    assert rows[begin + 1 : begin + 3] == [["a", "c", "2"], ["b", "a", "1"]]
    costs = [row for row in rows if row and row[-1].startswith("6.00 GB")]
    assert costs == [
        ["one", "4", "8.00", "2.500", "14", f"{100 * 6.75 / 14:.1f}", "6.00 GB"],
        ["two", "2", "6.00", "5.500", "11", "0.0", "6.00 GB, of a device 2.00 GB"],
        ["words", "1", "1500.00", "1500.000", "1,500", "12.5", "6.00 GB"],
    ]


def test_methods_are_compared_within_their_protocol_best_first(made):
    path = made.root / "rows.json"
    found = [row for row in made.page.rows if row and row[0] in {each["method"] for each in ROWS}]
    assert found == [
        ["knn", "75.00 ± 9.38", "-25.00 ± 18.75", "0", "75.0"],
        ["linear", "62.50 ± 7.81", "-12.50 ± 15.62", "0", "62.5"],
        ["maml", "50.00 ± 6.25", "2", "50.0"],
        ["finetune", "25.00 ± 3.12", "0", "25.0"],
    ]
    groups = read_evaluation(path)
    assert [group.caption for group in groups] == [f"{path}: t: first", f"{path}: t: second"]
    assert [[row.method for row in group.episodes] for group in groups] == [
        ["maml", "knn", "linear"],
        ["finetune"],
    ]
    assert made.html.index("behind maml (%)") < made.html.index("behind finetune (%)")


def test_the_lineage_is_each_runs_own(made):
    text = made.page.text["Lineage"]
    for name, path in zip(STAGES, made.runs):
        _, rest = text.split(f"{STAGES[name]}  {path}", 1)
        assert rest.split("Hugging Face weights  ", 1)[1].startswith(f"weights of {name}")
        assert rest.split("seed", 1)[1].startswith(str(len(name)))


def test_each_run_is_read_once(made):
    runs = read_runs([made.runs[1], made.runs[0], made.runs[1]])
    assert [run.name for run in runs] == ["two", "one"]
    assert runs[0].series("seconds").values.tolist() == SECONDS["two"]
    assert runs[1].series("loss").steps.tolist() == [1, 2, 3, 4]
    assert runs[0].most("peak_device_memory_bytes") == 2 * 10**9
    assert runs[1].most("peak_device_memory_bytes") == 0


def test_each_picture_is_under_its_caption(made):
    """In the page's own colour, and with what is read out in its place."""
    path = made.root / "rows.json"
    wanted = {
        "learning-metatrain": "metatrain: loss of each step",
        "learning-pretrain": "pretrain: loss of each step",
        "adaptation-1": f"{path}: t: first; 95% intervals",
        "adaptation-2": f"{path}: t: second; 95% intervals",
        "confusion-1": "new: 70.00% of 20 other examples labelled right",
        "time-metatrain": "metatrain: seconds of each step",
        "time-pretrain": "pretrain: seconds of each step",
    }
    found = re.findall(r"<figure.*?</figure>", made.html, re.S)
    for figure, (name, caption) in zip(found, wanted.items(), strict=True):
        assert f'aria-label="{caption}"' in figure
        assert f"<figcaption>{caption}</figcaption>" in figure
        drawn = (made.root / "page" / f"{name}.svg").read_text()
        assert "#24292f" in drawn
        assert "#24292f" not in figure
        paths = re.findall(r' d="[^"]+"', drawn)
        assert paths == re.findall(r' d="[^"]+"', figure)


def validated(accuracies, start, name="valid"):
    values = np.array(start) + np.array(accuracies)
    summary = {"accuracy": values.mean(), "ci95": 0.01}
    return {name: summary, "valid_accuracies": values.tolist()}


def test_the_validations_are_drawn_and_the_best_is_compared_with_the_start(tmp_path, monkeypatch):
    """A run that gains and one that does not; one without validation is left out."""
    start = np.linspace(0.2, 0.8, 8)
    runs = []
    for name, gains in (("good", (0.1, 0.2)), ("bad", (-0.1, -0.2)), ("none", ())):
        monkeypatch.setitem(STAGES, name, "metatrain")
        run = write_run(tmp_path, name)
        runs.append(str(run))
        rows = [{"step": 0, **validated(0 * start, start, "before")}] if gains else []
        for step, gain in enumerate(gains, start=1):
            noise = np.linspace(-0.01, 0.01, 8)
            row = {"step": 20 * step, "loss": 1.0, **validated(gain + noise, start)}
            rows += [{"step": 20 * step - 1, "loss": 2.0}, row]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pictures = {}
    monkeypatch.setattr(Figure, "savefig", keep_in(pictures))
    report(ReportSettings(runs=tuple(runs), output=str(tmp_path / "page.html")))
    (axes,) = pictures["validation"].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "accuracy on validation tasks (%)")
    bars = {each.get_label(): each for each in axes.containers}
    assert list(bars) == ["good", "bad"]
    line, _, (spread,) = bars["good"].lines
    assert line.get_xdata().tolist() == [0, 20, 40]
    assert line.get_ydata() == pytest.approx([50, 60, 70])
    ends = [segment[:, 1] for segment in spread.get_segments()]
    assert ends == [pytest.approx([mean - 1, mean + 1]) for mean in (50, 60, 70)]
    interval = scipy.stats.t.ppf(1 - 0.0125, 7) * np.linspace(-1, 1, 8).std(ddof=1) / 8**0.5
    shown = Page((tmp_path / "page.html").read_text()).rows
    assert ["good", "40", f"20.00 ± {interval:.2f}", "step 40"] in shown
    assert ["bad", "20", f"-10.00 ± {interval:.2f}", "the start"] in shown
    assert not [row for row in shown if row[:1] == ["none"] and "start" in row[-1]]


def test_sources_have_a_picture_and_a_table(tmp_path, monkeypatch):
    """Of a run with several: losses by step, the first and the last steps, and validations."""
    monkeypatch.setitem(STAGES, "many", "metatrain")
    runs = [write_run(tmp_path, name) for name in ("many", "one")]
    start = np.linspace(0.2, 0.8, 8)
    rows = [{"step": 0, **validated(0 * start, start, "before")}]
    for step in range(1, 121):
        means = {"easy": {"tasks": 2, "loss": 1.0 / step, "accuracy": 0.75}}
        if step % 2:
            means["hard"] = {"tasks": 1, "loss": 2.0 if step <= 100 else 4.0, "accuracy": 0.25}
        rows.append({"step": step, "loss": 1.0, "sources": means})
    rows[-1] |= validated(0.1 + 0 * start, start)
    for row, (easy, hard) in ((rows[0], (0.5, 0.125)), (rows[-1], (0.625, 0.25))):
        measured = {"easy": easy, "hard": hard}
        row["valid_sources"] = {k: {"tasks": 4, "accuracy": v} for k, v in measured.items()}
    (runs[0] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pictures = {}
    monkeypatch.setattr(Figure, "savefig", keep_in(pictures))
    report(ReportSettings(runs=tuple(map(str, runs)), output=str(tmp_path / "page.html")))
    (axes,) = pictures["sources-1"].axes
    assert "sources-2" not in pictures
    faint = axes.lines[0]  # The highest loss comes first.
    assert faint.get_xdata().tolist() == list(range(1, 121, 2))
    assert faint.get_ydata().tolist() == [2.0] * 50 + [4.0] * 10
    shown = Page((tmp_path / "page.html").read_text()).rows
    hard = ["hard", "60", "2.0000", "2.4000", "25.0", "25.0", "12.5", "25.0"]
    first, last = (np.mean([1 / n for n in range(*ends)]) for ends in ((1, 101), (21, 121)))
    easy = ["easy", "240", f"{first:.4f}", f"{last:.4f}", "75.0", "75.0", "50.0", "62.5"]
    at = shown.index(hard)
    assert shown[at : at + 2] == [hard, easy]


@pytest.mark.parametrize(
    ("files", "labels"),
    [
        (
            ("topics.csv", "intents.csv"),
            ["…f/the/data/sets/intents.csv", "…of/the/data/sets/topics.csv"],
        ),
        (
            ("1/of/many/texts/of/a/kind.csv", "2/of/many/texts/of/a/kind.csv"),
            ["1: …many/texts/of/a/kind.csv", "2: …many/texts/of/a/kind.csv"],
        ),
    ],
)
def test_each_source_has_a_label_of_its_own(files, labels):
    """It has the end of a path, and is short enough for the legend."""
    sources = [f"/the/directory/of/the/data/sets/{file}" for file in files]
    losses = {source: {"tasks": 1, "loss": loss} for loss, source in enumerate(sources)}
    run = Run("run", "run", {}, [{"step": 1, "loss": 1.0, "sources": losses}], None)
    drawn = []
    by_source([run], lambda name, painter, curves: drawn.append(curves) or "")
    assert list(drawn[0]) == labels
    assert [curve.values.tolist() for curve in drawn[0].values()] == [[1.0], [0.0]]
    assert max(map(len, labels)) <= 28


def keep_in(pictures):
    save = Figure.savefig

    def keep(figure, path, **settings):
        pictures[path.stem] = figure
        save(figure, path, **settings)

    return keep
