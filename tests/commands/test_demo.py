"""The demo's data, from made-up modules, and its settings of each stage."""

import csv
import json
from types import SimpleNamespace

import pytest

from metajax.commands import demo as demo_module
from metajax.commands.demo import demo
from metajax.config.settings import DemoSettings
from metajax.runs import demo_data

MODULES, EXAMPLES = 46, 22


def sentence(module, number):
    return f"Function {number} of module {module} does something."


def function(name, docstring):
    return f'def {name}():\n    """{docstring}"""\n\n\n'


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library and a package, also with docstrings that are not examples."""
    stdlib, packages = tmp_path / "stdlib", tmp_path / "packages"
    for folder in (stdlib / "test", stdlib / "big", packages / "numpy" / "linalg"):
        folder.mkdir(parents=True)

    def module(name, count=EXAMPLES):
        own = [function(f"f{n}", sentence(name, n)) for n in range(count)]
        shared = function("g", "This sentence is in each of the modules.")
        others = function("h", "Too short a sentence.") + function("i", "word " * 41)
        more = function("j", f"A first part\n    of {name} in two lines.\n\n    A second part.")
        return "".join(own) + shared + others + more

    for n in range(MODULES - 2):
        (stdlib / f"module{n}.py").write_text(module(f"module{n}"))
    (stdlib / "big" / "part.py").write_text(module("big"))
    (stdlib / "small.py").write_text(module("small", 18))
    (stdlib / "_private.py").write_text(module("_private"))
    (stdlib / "test" / "inner.py").write_text(module("inner"))
    (packages / "numpy" / "linalg" / "_part.py").write_text(module("linalg"))
    paths = {"stdlib": str(stdlib), "purelib": str(packages)}
    monkeypatch.setattr(demo_data, "sysconfig", SimpleNamespace(get_path=paths.get))


def lines_of(path):
    return path.read_text().splitlines()


@pytest.mark.usefixtures("library")
def test_the_demo_holds_modules_out(tmp_path):
    files = demo_data.write_data(tmp_path / "data", 0)
    rows = [json.loads(line) for line in lines_of(files.tasks)]
    names = {row["label"] for row in rows}
    assert names == {f"module{n}" for n in range(MODULES - 2)} | {"big", "numpy.linalg"}
    for name in names:
        known = name.removeprefix("numpy.")
        expected = {sentence(known, n) for n in range(EXAMPLES)}
        expected.add(f"A first part of {known} in two lines.")
        assert {row["text"] for row in rows if row["label"] == name} == expected
    train, test = lines_of(files.train_classes), lines_of(files.test_classes)
    assert (len(train), len(test)) == (MODULES - 40, 40)
    assert {*train, *test} == names
    # The text has no held-out modules, but it has modules that are too small for a class.
    text = set(lines_of(files.text))
    assert text >= {sentence("small", n) for n in range(18)}
    for name in names:
        own = {row["text"] for row in rows if row["label"] == name}
        assert own <= text if name in train else not own & text
    other = demo_data.write_data(tmp_path / "other", 1)
    assert lines_of(other.test_classes) != test
    # Existing files are kept.
    assert demo_data.write_data(tmp_path / "data", 1) == files
    assert lines_of(files.test_classes) == test


@pytest.mark.usefixtures("library")
def test_the_demos_new_task_is_of_five_modules_held_out(tmp_path):
    files = demo_data.write_data(tmp_path, 0)
    new = demo_data.write_new_task(tmp_path, files, 5)
    rows, others = (
        [(row["text"], row["label"]) for row in csv.DictReader(lines_of(path))]
        for path in (new.tasks, new.dev)
    )
    labels = {label for _, label in rows}
    assert len(labels) == 5
    assert labels <= set(lines_of(files.test_classes))
    assert (len(rows), len(others)) == (25, 5 * (EXAMPLES + 1 - 5))
    assert not set(rows) & set(others)
    known = {(row["text"], row["label"]) for row in map(json.loads, lines_of(files.tasks))}
    assert {*rows, *others} <= known
    assert set(new.questions) <= set(others)
    assert [label for _, label in new.questions] == list(dict.fromkeys(label for _, label in rows))


def test_what_the_demo_asks_of_each_stage(tmp_path, monkeypatch, capsys):
    """Meta-training sees the training modules, and the evaluation those held out."""
    asked = {}

    def stage(name, result=None):
        def run(settings):
            asked[name] = settings
            return result

        monkeypatch.setattr(demo_module, name, run)

    before, after = {"perplexity": 4321.0}, {"perplexity": 123.0}
    stage("pretrain", {"measured_on": "the held-out part", "before": before, "after": after})
    for name in ("metatrain", "adapt", "report"):
        stage(name)
    stage("evaluate", [SimpleNamespace(episodes=56)])
    monkeypatch.setattr(demo_module, "table", lambda rows: "THE TABLE")
    monkeypatch.setattr(demo_module, "_show_predictions", lambda *given: None)
    library = {f"m{n}": [sentence(n, k) for k in range(22)] for n in range(46)}
    monkeypatch.setattr(demo_data, "_docstrings", lambda: library)
    demo(DemoSettings(workdir=str(tmp_path / "demo"), model="weights", seed=3))
    files = demo_data.DemoData.of(tmp_path / "demo" / "data")
    pretrain, metatrain, evaluate, adapt, report = (
        asked[name] for name in ("pretrain", "metatrain", "evaluate", "adapt", "report")
    )
    assert pretrain.model == "weights"
    assert metatrain.model == pretrain.workdir
    assert evaluate.model == adapt.model == metatrain.workdir
    assert pretrain.text == (str(files.text),)
    assert metatrain.tasks == evaluate.tasks == (str(files.tasks),)
    assert metatrain.classes == str(files.train_classes)
    assert evaluate.classes == str(files.test_classes)
    assert adapt.tasks == (str(tmp_path / "demo" / "data" / "new_task.csv"),)
    assert adapt.dev == str(tmp_path / "demo" / "data" / "new_task_dev.csv")
    assert [each.seed for each in (pretrain, metatrain, evaluate)] == [3, 3, 3]
    assert [each.max_length for each in (metatrain, evaluate, adapt)] == [24, 24, 24]
    assert (evaluate.episodes, evaluate.ways, evaluate.shots) == (56, None, None)
    assert metatrain.meta_batch_size % 2 == pretrain.batch_size % 16 == 0
    assert report.runs == (pretrain.workdir, metatrain.workdir, adapt.workdir)
    assert report.evaluations == (evaluate.output,)
    out = capsys.readouterr().out
    assert "perplexity on held-out docstrings: 4,321 -> 123" in out
    assert "the same on 40 modules" in out
    assert "56 episodes:\n\nTHE TABLE\n" in out


@pytest.mark.parametrize(("devices", "size"), [(1, 16), (3, 18), (32, 32)])
def test_the_demos_batches_are_the_same_on_each_device(devices, size, monkeypatch):
    monkeypatch.setattr(demo_module.jax, "local_device_count", lambda: devices)
    assert demo_module._for_all_devices(16) == size


def test_the_demo_shows_each_question_with_its_own_answer(monkeypatch, capsys):
    questions = [("a text", "truth0"), ("another", "truth1")]
    found = [SimpleNamespace(label=f"guess{n}", probability=0.25 + n / 2) for n in range(2)]
    monkeypatch.setattr(demo_module, "open_classifier", lambda model, task: model)
    seen = {}
    monkeypatch.setattr(
        demo_module, "label", lambda model, texts, *more: seen.update({model: texts}) or found
    )
    demo_module._show_predictions(SimpleNamespace(adapt="run"), questions)
    assert seen == {"run": ["a text", "another"]}
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [
        ["guess0", "0.25", "truth0", "a", "text"],
        ["guess1", "0.75", "truth1", "another"],
    ]
