"""Adapt to a file whose texts have any number of labels, on the command line as in memory."""

import json

import numpy as np
import pytest

import metajax
from metajax.cli.main import main
from metajax.commands import adapt
from metajax.config.settings import AdaptSettings
from metajax.data.tasks import load_tasks
from metajax.errors import InputError
from metajax.runs.classifier import open_classifier, probabilities
from metajax.runs.task_data import relabel

TEXTS = ["w1 w9", "w2 w1", "w3", "w2 w3 w9", "w9"]
LABELS = [["a"], ["b", "a"], ["c"], ["b", "c"], []]
NEW = ["w1 w2", "w3 w4"]


def write(folder, name="examples.csv", texts=TEXTS, labels=LABELS):
    rows = [f"{text},{'; '.join(own)}" for text, own in zip(texts, labels)]
    (folder / name).write_text("\n".join(["text,label", *rows]) + "\n")
    return str(folder / name)


def settings_of(material, folder, **changes):
    given = {"method": "linear", "label_separator": ";", "tasks": (write(folder),)}
    where = {"model": str(material.bert), "workdir": str(folder / "run")}
    return AdaptSettings(**where, **given | changes)


def test_a_column_with_several_labels(tmp_path):
    [task] = load_tasks([write(tmp_path)], label_separator=";")
    assert task.label_names == ("a", "b", "c")
    assert task.labels.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0]]
    assert task.labels.dtype == np.int32
    assert task.texts == TEXTS
    rows = [{"text": text, "label": own} for text, own in zip(TEXTS, LABELS)]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [same] = load_tasks([str(lines)], label_separator=";")
    np.testing.assert_array_equal(same.labels, task.labels)
    with pytest.raises(InputError, match=r"is list, not text; .* adapt --label-separator"):
        load_tasks([str(lines)])
    with pytest.raises(InputError, match=r"csv:6: no 'label'; .* adapt --label-separator"):
        load_tasks([write(tmp_path)])
    with pytest.raises(InputError, match=r"'label' is float, not text; .* adapt --regression"):
        load_tasks([write_values(tmp_path, 1.5)])


def test_a_dev_set_has_the_label_numbers_of_the_training_file(tmp_path):
    [task] = load_tasks([write(tmp_path)], label_separator=";")
    dev = write(tmp_path, "dev.csv", ["w5", "w6"], [["c"], ["a", "c"]])
    [dev] = load_tasks([dev], label_separator=";", split="validation")
    assert relabel(dev, task).labels.tolist() == [[0, 0, 1], [1, 0, 1]]


@pytest.mark.parametrize("names", [None, {"b": "w7", "aa": "w8 w9"}])
@pytest.mark.parametrize("method", ["linear", "finetune"])
def test_adapt_agrees_with_the_estimator(material, tmp_path, capsys, names, method):
    file = tmp_path / "names.json"
    file.write_text(json.dumps(names))
    dev = write(tmp_path, "dev.csv", NEW, [["a"], ["a", "c"]])
    named = None if names is None else str(file)
    settings = settings_of(material, tmp_path, method=method, dev=dev, label_names=named)
    results = adapt.adapt(settings)
    own = metajax.FewShotClassifier(str(material.bert), method=method, label_names=names)
    own.fit(TEXTS, LABELS)
    assert results["labels"] == own.classes_.tolist()
    shares = own.predict_proba(NEW)
    found = probabilities(open_classifier(settings.workdir, None), NEW, None, 64)
    np.testing.assert_allclose(found, shares, rtol=2e-4)
    truth = np.zeros(shares.shape, int)
    truth[0, 0] = truth[1, 0] = truth[1, results["labels"].index("c")] = 1
    assert results["dev"]["accuracy"] == (truth == (shares > 0.5)).all(1).mean()
    texts = tmp_path / "new.txt"
    texts.write_text("\n".join(NEW) + "\n")
    capsys.readouterr()
    assert main(["predict", "--model", settings.workdir, "--input", str(texts)]) == 0
    lines = capsys.readouterr().out.splitlines()
    above = [", ".join(own) or "none" for own in own.predict(NEW)]
    assert [line.split("\t")[0] for line in lines] == above
    assert lines[0].split("\t")[1] == f"a={shares[0, 0]:.4f}"


def test_a_report_has_no_confusion_of_several_labels(material, tmp_path):
    dev = write(tmp_path, "dev.csv", NEW, [["a"], ["a", "c"]])
    settings = settings_of(material, tmp_path, dev=dev)
    adapt.adapt(settings)
    page = tmp_path / "page.html"
    command = ["report", "--runs", settings.workdir, "--output", str(page)]
    assert main(command) == 0
    assert "None: adapt counts with --dev" in page.read_text()
    results = tmp_path / "run" / "results.json"
    known = json.loads(results.read_text())
    known["dev"].pop("micro_f1")
    results.write_text(json.dumps(known))
    assert main(command) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "steps"}, "^--method steps: needs one class for each text, but a text can"),
        ({"method": "contrastive"}, "a text can have several; use linear or finetune"),
        ({"class_weight": "balanced"}, "^--class-weight: needs one class for each text"),
        (
            {"calibrate": True},
            "^--calibrate: needs one class for each text, but a text can have several; remove it",
        ),
        ({"classes": "names.txt"}, "--classes: needs one label for each text; remove it"),
        ({"tasks": ("glue:sst2",)}, "glue:sst2: has one label for each text; remove --label-sep"),
    ],
)
def test_what_needs_one_label_is_refused(material, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        adapt.adapt(settings_of(material, tmp_path, **changes))


def test_an_empty_separator_is_refused(material, tmp_path):
    with pytest.raises(InputError, match=r"^--label-separator: is empty; give what .* as ';'$"):
        settings_of(material, tmp_path, label_separator="")


def test_a_separator_without_tasks_is_refused(material, tmp_path):
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"a": "w1", "b": "w2"}))
    with pytest.raises(InputError, match="--label-separator: needs --tasks; give them, or remove"):
        adapt.adapt(settings_of(material, tmp_path, tasks=(), label_names=str(file)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["a"], ["b", "", "a"]], r"examples.csv:3: has an empty label; remove a separator"),
        ([["a"], ["b", ""]], r"examples.csv:3: has an empty label; remove a separator"),
        ([["a"], ["b", "NaN"]], r"examples.csv:3: 'label' is 'NaN', which means a missing value"),
        ([["#N/A"], ["b"]], r"examples.csv:2: 'label' is '#N/A', which means a missing value"),
        ([[], []], "examples.csv: no text has a label; check --label-column and --label-sep"),
        ([["a"], ["b", "a", "b"]], r"examples.csv:3: has the label 'b' twice; give it once"),
        ([["a"], [], ["a"]], "has examples of only 1 of the chosen classes"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path, labels, message):
    with pytest.raises(InputError, match=message):
        load_tasks(
            [write(tmp_path, texts=TEXTS[: len(labels)], labels=labels)], label_separator=";"
        )


def write_values(folder, *values):
    rows = [{"text": f"w{row}", "label": value} for row, value in enumerate(values)]
    (folder / "values.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "values.jsonl")


def test_whole_numbers_are_labels_alone_and_in_lists(tmp_path):
    [task] = load_tasks([write_values(tmp_path, 1, [1, 2], "2;10", None)], label_separator=";")
    assert task.label_names == ("1", "2", "10")
    assert task.labels.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "values.jsonl:2: no 'label'"),
        ([None], "values.jsonl:2: no 'label'"),
        ({"a": 1}, "values.jsonl:2: 'label' is dict, not text"),
        (1.5, "values.jsonl:2: 'label' is float, not text"),
        (["a", " "], "values.jsonl:2: has an empty label; remove it"),
        (["a", "nan"], "values.jsonl:2: 'label' is 'nan', which means a missing value"),
    ],
)
def test_values_that_are_no_labels(tmp_path, value, message):
    with pytest.raises(InputError, match=message):
        load_tasks([write_values(tmp_path, "a;b", value)], label_separator=";")


def test_a_label_that_may_be_a_missing_value_is_named(tmp_path, caplog):
    load_tasks([write(tmp_path, labels=[["a"], ["b"], ["none"], ["b"], []])], label_separator=";")
    assert "examples.csv:4: 'label' is 'none' (1 rows like this)" in caplog.text


def test_a_separator_in_no_label_is_reported(tmp_path, caplog):
    load_tasks([write(tmp_path)], label_separator=";")
    load_tasks([write_values(tmp_path, "a", ["b", "c"])], label_separator="|")
    assert not caplog.messages
    file = write(tmp_path)
    load_tasks([file], label_separator="|")
    assert caplog.messages == [
        f"{file}: the --label-separator '|' is in no label, but ';' is; check it"
    ]


def test_a_later_stage_begins_with_its_own_head(material, tmp_path):
    """The head for several labels is not used for one label per text."""
    adapt.adapt(settings_of(material, tmp_path))
    file = write(tmp_path, "one.csv", ["w1 w2", "w3", "w4"], [["x"], ["y"], ["z"]])
    again = {"model": str(tmp_path / "run"), "workdir": str(tmp_path / "again")}
    adapt.adapt(AdaptSettings(**again, tasks=(file,), method="linear"))
    shares = probabilities(open_classifier(again["workdir"], None), NEW, None, 64)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    exported = str(tmp_path / "exported")
    assert main(["export", "--model", str(tmp_path / "run"), "--output", exported]) == 0
    found = [
        probabilities(open_classifier(each, None), NEW, None, 64)
        for each in (exported, str(tmp_path / "run"))
    ]
    np.testing.assert_allclose(*found, rtol=1e-5)
