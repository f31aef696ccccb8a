"""The report of runs: one page, whatever they hold, and its pictures."""

import importlib.util
import json
import math
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import tiny

SECTIONS = [
    "Runs",
    "Learning curves",
    "Before and after",
    "Adaptation curves",
    "Methods",
    "Confusion",
    "Step time and memory",
    "Lineage",
]
# What would do something in a page, in a terminal, in a formula and in a font that lacks it.
LABELS = {"topic8": "<script>alert(1)</script>", "topic9": "\x1b[31m$\\frac$", "topic10": "日本"}


class Page(HTMLParser):
    """The tags of a page with their attributes, the tables' rows and the text by heading."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.rows, self.text, self._open = [], [], {}, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        inside = self._open[-1] if self._open else ""
        if inside == "h2":
            self.text[data] = ""
        elif self.text:
            self.text[list(self.text)[-1]] += data
        if inside == "td":
            self.rows[-1].append(data)


@pytest.fixture(scope="module")
def made(chain, evaluation, tmp_path_factory):
    """The report of a whole chain and of an evaluation, the labels and a name hostile."""
    root = tmp_path_factory.mktemp("report")
    rows = {
        name: [(text, LABELS[label]) for text, label in tiny.examples(3, 4, seed=seed, first=8)]
        for name, seed in (("new", 5), ("dev", 6))
    }
    files = {name: tiny.write_rows(root / f"{name}.jsonl", rows[name]) for name in rows}
    adapted = root / "<i>mine"
    page = root / "page.html"
    with tiny.one_device():
        tiny.succeed(
            *("adapt", "--model", chain.metatrain, "--tasks", files["new"], "--inner-lr", 0.1),
            *("--dev", files["dev"], "--workdir", adapted),
        )
    runs = (chain.pretrain, chain.finetune, chain.metatrain, adapted)
    command = ("report", "--runs", *runs, "--evaluations", evaluation.path, "--output", page)
    return SimpleNamespace(
        out=json.loads(tiny.succeed(*command)),
        command=command,
        html=page.read_text(),
        page=page,
        adapted=adapted,
    )


def test_the_page_stands_alone(made):
    page = Page(made.html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    for _, attributes in page.tags:
        assert not {"src", "srcset", "data", "action", "onload"} & attributes.keys()
        # Of the same picture.
        assert attributes.get("xlink:href", "#").startswith("#")
        assert "url(" not in attributes.get("style", "")
    names = re.findall(r'xmlns(?::xlink)?="(https?://[^"]+)"', made.html)
    assert len(names) == made.html.count("://")


def test_every_section_is_there(made):
    page = Page(made.html)
    assert list(page.text) == SECTIONS
    assert all(page.text[name].strip() for name in SECTIONS)
    assert "Hugging Face weights" in page.text["Lineage"]
    # That of pretrain and metatrain is part of adapt's; finetune's is another.
    assert page.text["Lineage"].count("Hugging Face weights") == 2
    assert [row[:3] for row in page.rows[1:5]] == [
        ["pretrain", "pretrain", "finished"],
        ["finetune", "finetune", "finished"],
        ["metatrain", "metatrain", "finished"],
        ["<i>mine", "adapt", "finished"],
    ]


def test_the_pictures_are_files_too_and_sound(made):
    folder = made.page.with_suffix("")
    names = {
        *(f"learning-{stage}" for stage in ("pretrain", "finetune", "metatrain", "adapt")),
        *(f"time-{stage}" for stage in ("pretrain", "finetune", "metatrain")),
        *("adaptation-1", "confusion-1"),
    }
    assert {path.stem for path in folder.iterdir()} == names
    assert sorted(map(str, folder.iterdir())) == sorted(made.out["pictures"])
    for name in names:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert ElementTree.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")
    inline = re.findall(r"<svg.*?</svg>", made.html, re.S)
    assert len(inline) == len(names)
    for svg in inline:
        assert ElementTree.fromstring(svg).get("aria-label")


def test_the_table_of_methods_has_the_numbers_of_the_file(made, evaluation):
    rows = json.loads(evaluation.path.read_text())
    expected = [
        [
            row["method"],
            f"{100 * row['accuracy']:.2f} ± {100 * row['ci95']:.2f}",
            *([f"{100 * row['behind']:.2f} ± {100 * row['behind_ci95']:.2f}"] if number else []),
            str(row["inner_steps"]),
            f"{row['seconds']:.1f}",
        ]
        for number, row in enumerate(rows)
    ]
    methods = {row["method"] for row in rows}
    found = [row for row in Page(made.html).rows if row and row[0] in methods and "±" in row[1]]
    assert sorted(found) == sorted(expected)
    accuracies = [float(row[1].split()[0]) for row in found]
    assert accuracies == sorted(accuracies, reverse=True)


def test_what_was_measured_and_what_it_took(made, chain):
    page = Page(made.html)
    results = json.loads((chain.pretrain / "results.json").read_text())
    loss = [f"{results[when]['loss']:.4f}" for when in ("before", "after")]
    assert ["pretrain", "loss", results["measured_on"], *loss] in page.rows
    seconds = [row["seconds"] for row in tiny.rows_of(chain.pretrain)[1:]]
    (cost,) = [row for row in page.rows if row[:2] == ["pretrain", "6"]]
    assert cost[3] == f"{np.median(seconds):.3f}"
    assert re.fullmatch(r"\d+\.\d\d GB", cost[-1])


def test_labels_are_text(made):
    results = json.loads((made.adapted / "results.json").read_text())
    assert sorted(results["labels"]) == sorted(LABELS.values())
    assert "<script" not in made.html
    assert "<i>" not in made.html
    assert "&lt;script&gt;" in made.html
    assert "日本" in made.html
    assert "\x1b" not in made.html
    assert "\\x1b[31m$\\frac$" in made.html
    picture = (made.page.with_suffix("") / "confusion-1.svg").read_text()
    texts = [element.text for element in ElementTree.fromstring(picture).iter()]
    assert LABELS["topic8"] in texts


def test_the_same_again_is_the_same(made):
    files = [made.page, *made.page.with_suffix("").iterdir()]
    before = [path.read_bytes() for path in files]
    tiny.succeed(*made.command)
    assert [path.read_bytes() for path in files] == before


def test_a_run_is_reported_while_it_runs(chain, tmp_path):
    run = shutil.copytree(chain.metatrain, tmp_path / "run")
    (run / "results.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    skipped = json.loads(lines[2]) | {"loss": None, "skipped": True}
    (run / "metrics.jsonl").write_text("".join([*lines[:2], json.dumps(skipped), "\n", '{"st']))
    output = tmp_path / "report.html"
    tiny.succeed("report", "--runs", run, "--output", output)
    html = output.read_text()
    assert "unfinished: step 2 of 4" in html
    assert "run: skipped" in html
    (run / "metrics.jsonl").unlink()
    tiny.succeed("report", "--runs", run, "--output", output)
    page = Page(output.read_text())
    assert "unfinished: step 0 of 4" in output.read_text()
    assert "No loss per step in these runs." in page.text["Learning curves"]
    assert "--evaluations" in page.text["Methods"]


def test_runs_of_one_name_are_told_apart_by_their_paths(chain, tmp_path):
    other = shutil.copytree(chain.metatrain, tmp_path / "metatrain")
    tiny.succeed("report", "--runs", chain.metatrain, other, "--output", tmp_path / "r.html")
    rows = Page((tmp_path / "r.html").read_text()).rows
    assert [row[0] for row in rows[1:3]] == [str(chain.metatrain), str(other)]


def spoil(name, content):
    """A copy of a run, one of whose files holds something else."""

    def make(run):
        (run / name).write_text(content)
        return ("--runs", run)

    return make


def evaluated(content):
    def make(run):
        (run / "rows.json").write_text(content)
        return ("--runs", run, "--evaluations", run / "rows.json")

    return make


def altered(**changes):
    """Two sound rows, the second one changed."""
    row = json.loads(ROW)[0] | {"accuracy": 0.5, "accuracies": [0, 1]}
    return evaluated(json.dumps([row, row | changes]))


PARTS = ("settings", "data", "parent", "model", "versions")
ROW = (
    '[{"tasks": "t", "protocol": "p", "method": "m", "ways": 2, "shots": 1, '
    '"queries": 1, "inner_steps": 0, "episodes": 2, '
    '"accuracy": "half", "ci95": 0, "behind": 0, "behind_ci95": 0, "seconds": 0, '
    '"accuracies": []}]'
)
BAD = {
    "no run": (lambda run: ("--runs", run.parent), "is not the working directory of a run"),
    "a record of something else": (spoil("run.json", "{}"), "run.json: is not the record of a run"),
    "another stage": (
        spoil("run.json", json.dumps({"stage": "../x"} | {name: {} for name in PARTS})),
        "run.json: is not the record of a run",
    ),
    "metrics not JSON": (spoil("metrics.jsonl", "oops\n"), "metrics.jsonl:1: has no metrics"),
    "a step of too many digits": (
        spoil("metrics.jsonl", '{"step": 1' + "0" * 400 + "}\n"),
        "metrics.jsonl:1: has no metrics",
    ),
    "other metrics": (spoil("metrics.jsonl", '{"step": "x"}\n'), "metrics.jsonl:1: has no"),
    "results not JSON": (spoil("results.json", "{"), "results.json: is not JSON"),
    "other results": (spoil("results.json", "[]"), "results.json: has no results of a run"),
    "a ragged confusion": (
        spoil(
            "results.json", '{"labels": ["a"], "dev": {"accuracy": 1, "confusion": [[1], [2, 3]]}}'
        ),
        "results.json: has no results of a run",
    ),
    "a confusion without labels": (
        spoil("results.json", '{"dev": {"accuracy": 1, "confusion": [[1]]}}'),
        "results.json: has no results of a run",
    ),
    "labels that are no text": (
        spoil("results.json", '{"labels": [1], "dev": {"accuracy": 1, "confusion": [[1]]}}'),
        "results.json: has no results of a run",
    ),
    "a measure that is no number": (
        spoil("results.json", '{"after": {"mrpc": {"loss": "low"}}}'),
        "results.json: has no results of a run",
    ),
    "a measure of too many digits": (
        spoil("results.json", '{"after": {"loss": 1' + "0" * 400 + "}}"),
        "results.json: has no results of a run",
    ),
    "an interval that is no number": (
        spoil("results.json", '{"after": {"loss": 1, "ci95": {"mrpc": 1}}}'),
        "results.json: has no results of a run",
    ),
    "an accuracy in words": (
        spoil("results.json", '{"labels": ["a"], "dev": {"accuracy": "1", "confusion": [[1]]}}'),
        "results.json: has no results of a run",
    ),
    "counts in words": (
        spoil("results.json", '{"labels": ["a"], "dev": {"accuracy": 1, "confusion": [["1"]]}}'),
        "results.json: has no results of a run",
    ),
    "none before": (
        spoil("metrics.jsonl", '{"step": 0, "before": {"loss": null}}\n'),
        "metrics.jsonl:1: has no metrics",
    ),
    "a validation in words": (
        spoil("metrics.jsonl", '{"step": 0, "before": {}, "valid_accuracies": "1"}\n'),
        "metrics.jsonl:1: has no metrics",
    ),
    "a validation without a mean": (
        spoil("metrics.jsonl", '{"step": 1, "loss": 1, "valid_accuracies": [1, 0]}\n'),
        "metrics.jsonl:1: has no metrics",
    ),
    "a source without its number of tasks": (
        spoil("metrics.jsonl", '{"step": 1, "loss": 1, "sources": {"a": {"loss": 1}}}\n'),
        "metrics.jsonl:1: has no metrics",
    ),
    "a validation of a source without a number": (
        spoil(
            "metrics.jsonl",
            '{"step": 0, "valid_sources": {"a": {"tasks": 1, "accuracy": 1, "x": "1"}}}\n',
        ),
        "metrics.jsonl:1: has no metrics",
    ),
    "a source without a loss": (
        spoil("metrics.jsonl", '{"step": 1, "loss": 1, "sources": {"a": {"tasks": 1}}}\n'),
        "metrics.jsonl:1: has no metrics",
    ),
    "a validation of a source without an accuracy": (
        spoil("metrics.jsonl", '{"step": 0, "valid_sources": {"a": {"tasks": 1}}}\n'),
        "metrics.jsonl:1: has no metrics",
    ),
    "a validation of a source with no number": (
        spoil(
            "metrics.jsonl", '{"step": 0, "valid_sources": {"a": {"tasks": 1, "accuracy": null}}}\n'
        ),
        "metrics.jsonl:1: has no metrics",
    ),
    "no evaluation": (lambda run: ("--runs", run, "--evaluations", "x.json"), "x.json: no such"),
    "evaluation not JSON": (evaluated("oops"), "rows.json: is not JSON"),
    "another list": (evaluated('[{"a": 1}]'), "rows.json: is not an evaluation"),
    "a number": (evaluated("3"), "rows.json: is not an evaluation"),
    "no rows": (evaluated("[]"), "rows.json: is not an evaluation"),
    "a word for a number": (evaluated(ROW), "rows.json: is not an evaluation"),
    "evaluations of a directory": (
        lambda run: ("--runs", run, "--evaluations", run),
        "run: is a directory; give a file that evaluate --output wrote",
    ),
    "per cent": (altered(accuracy=77), "rows.json: row 2: accuracy: 77 is not from 0 to 1; "),
    "no accuracy": (altered(accuracy=math.nan), "row 2: accuracy: nan is not from 0 to 1"),
    "an episode's too": (altered(accuracies=[0, -1]), "row 2: accuracies: -1 is not"),
    "a step's too": (altered(curve=[2], curve_ci95=[0]), "row 2: curve: 2 is not"),
    "far behind": (altered(behind=-2), "row 2: behind: -2 is not from -1 to 1"),
    "a negative interval": (altered(ci95=-1), "row 2: ci95: -1 is not from 0 to inf"),
    "negative seconds": (altered(seconds=-1), "row 2: seconds: -1 is not"),
    "negative episodes": (altered(episodes=-5), "row 2: has -5 episodes but 2 accuracies"),
    "too many episodes": (altered(episodes=3), "row 2: has 3 episodes but 2 accuracies"),
    "no episodes": (altered(episodes=0, accuracies=[]), "row 2: has 0 episodes but 0 accuracies"),
    "no page": (lambda run: ("--runs", run, "--output", "r.pdf"), "--output r.pdf: .*html"),
    "pictures into a run": (
        lambda run: ("--runs", run, "--output", f"{run}.html"),
        "run.html: its pictures would go into the run .*run; rename it",
    ),
    "no folder": (lambda run: ("--runs", run, "--output", "no/r.html"), "no/r.html: its direc"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(chain, tmp_path, monkeypatch, case):
    make, message = BAD[case]
    run = shutil.copytree(chain.adapt, tmp_path / "run")
    options = make(run)
    monkeypatch.chdir(tmp_path)
    before = tiny.tree_of(tmp_path)
    done = tiny.run("report", *options)
    assert (done.status, done.out) == (2, "")
    assert re.fullmatch("metajax: error: .+\n", done.err), done.err
    assert re.search(message, done.err), done.err
    assert tiny.tree_of(tmp_path) == before


def test_a_mean_of_ones_may_be_rounded_up(chain, tmp_path):
    above = 1 + 2**-52
    options = altered(accuracy=above, accuracies=[1, above])(tmp_path)[2:]
    page = tmp_path / "r.html"
    tiny.succeed("report", "--runs", chain.adapt, *options, "--output", page)
    assert "100.00 ± 0.00" in page.read_text()


def test_without_matplotlib_it_says_what_to_install(chain, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = tiny.run("report", "--runs", chain.adapt, "--output", tmp_path / "r.html")
    assert done.status == 2
    assert "pip install matplotlib" in done.err
