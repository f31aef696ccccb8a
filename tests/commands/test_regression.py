"""Adapt to numbers on the command line, and predict, export and report them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import tiny

from metajax import data
from metajax.models import from_pretrained
from metajax.runs.classifier import logits_of, open_classifier
from metajax.runs.record import read_record
from metajax.runs.task_data import warn_of_numbers

TEXTS = ["w1 w9", "w2 w1", "w3", "w2 w3 w9", "w9", "w4 w4"]
NUMBERS = [0.5, 2.0, 1.0, 4.5, 3.0, -1.0]


def write(path, pairs=None, numbers=NUMBERS):
    columns = [TEXTS, *([pairs] if pairs else []), map(str, numbers)]
    names = ["text", "text_pair", "label"] if pairs else ["text", "label"]
    path.write_text("\n".join(map(",".join, [names, *zip(*columns)])) + "\n")
    return path


def adapt(material, folder, *given, method="linear", tasks=None):
    tasks = tasks or write(folder / "examples.csv")
    where = ("--tasks", tasks, "--workdir", folder / "run", "--method", method)
    return tiny.run("adapt", "--model", material.bert, *where, *given)


def test_numbers_as_classes_are_reported(material, tmp_path, caplog):
    """Whole numbers, and numbers next to words, are usual labels."""
    assert "--regression" in adapt(material, tmp_path, method="prototypes").err
    caplog.clear()
    for names in (("1", "2.0"), ("1.5", "a"), ("1.5", "2", "-.5")):
        warn_of_numbers(data.TaskData("a.csv", [], None, np.zeros(0, int), names))
    said = "such as 1.5, but count as classes; to predict numbers, give --regression"
    assert caplog.messages == [f"a.csv: the labels are numbers, {said}"]


@pytest.mark.parametrize("method", ["linear", "finetune"])
@pytest.mark.parametrize("pairs", [None, TEXTS[::-1]])
def test_numbers_are_learned_measured_and_predicted(material, tmp_path, method, pairs):
    tasks = write(tmp_path / "examples.csv", pairs)
    dev = write(tmp_path / "dev.csv", pairs, [0.1, 2.5, 1.0, 4.0, 3.5, 2.0])
    done = adapt(material, tmp_path, "--regression", "--dev", dev, method=method, tasks=tasks)
    assert done.status == 0, done.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["labels"] == []
    classifier = open_classifier(str(tmp_path / "run"), None)
    numbers = np.stack(list(logits_of(classifier, TEXTS, pairs, 64)))[:, 0]
    truth = [0.1, 2.5, 1.0, 4.0, 3.5, 2.0]
    expected = {
        "examples": 6,
        "pearson": scipy.stats.pearsonr(truth, numbers).statistic,
        "spearman": scipy.stats.spearmanr(truth, numbers).statistic,
        "mean_squared_error": np.square(numbers - truth).mean(),
    }
    assert results["dev"] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(
        results["loss_after"], np.square(numbers - NUMBERS).mean(), rtol=1e-4
    )
    rows = zip(TEXTS, pairs) if pairs else zip(TEXTS)
    (tmp_path / "new.txt").write_text("".join("\t".join(row) + "\n" for row in rows))
    given = ("--input", tmp_path / "new.txt")
    out = tiny.succeed("predict", "--model", tmp_path / "run", *given)
    assert out.splitlines() == [f"value\t{number:.4f}" for number in numbers]
    tiny.succeed("export", "--model", tmp_path / "run", "--output", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["problem_type"], config["metajax"]["num_labels"]) == ("regression", [1])
    assert tiny.succeed("predict", "--model", tmp_path / "out", *given) == out


def test_the_card_of_an_exported_encoder_says_how_to_predict_a_number(material, tmp_path):
    assert adapt(material, tmp_path, "--regression").status == 0
    where = ("--model", tmp_path / "run", "--output", tmp_path / "out")
    tiny.succeed("export", *where, "--format", "sentence-transformers")
    card = (tmp_path / "out" / "README.md").read_text()
    code = card.split("metajax reads both:\n\n```python\n")[1].split("```")[0]
    run = code.replace('"out"', repr(str(tmp_path / "out"))).replace("print(", "found.append(")
    found = []
    exec(run.replace("Where is my parcel?", TEXTS[3]), {"found": found})
    (expected,) = logits_of(open_classifier(str(tmp_path / "run"), None), [TEXTS[3]], None, 64)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert from_pretrained(str(tmp_path / "out"), "classification")[0].num_labels == (1,)


def test_a_report_takes_a_run_with_numbers(material, tmp_path):
    dev = write(tmp_path / "dev.csv")
    assert adapt(material, tmp_path, "--regression", "--dev", dev).status == 0
    command = ("report", "--runs", tmp_path / "run", "--output", tmp_path / "page.html")
    tiny.succeed(*command)
    results = tmp_path / "run" / "results.json"
    results.write_text(results.read_text().replace('"spearman": ', '"spearman": "", "other": '))
    assert tiny.run(*command).status == 2


def test_stsb_has_numbers_without_being_told(material, tmp_path):
    folder = tmp_path / "STS-B"
    folder.mkdir()
    rows = [
        f"{i}\t{text}\t{text}\t{number}" for i, (text, number) in enumerate(zip(TEXTS, NUMBERS))
    ]
    lines = ["index\tsentence1\tsentence2\tscore", *rows]
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")
    done = adapt(material, tmp_path, "--glue-dir", tmp_path, tasks="glue:stsb")
    assert done.status == 0, done.err
    assert read_record(tmp_path / "run")["model"]["num_labels"] == [1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("--regression", "--classes", "new"),
            "--classes: does not apply to the numbers of --regr",
        ),
        (("--regression", "--label-names", "n.json"), "has numbers, which have no names; remove"),
        (("--regression", "--label-separator", ";"), "one label for each text; remove --label-sep"),
    ],
)
def test_what_needs_classes_is_refused(material, tmp_path, given, message):
    (tmp_path / "names.json").write_text('{"a": "w1"}')
    (tmp_path / "new.txt").write_text("0.5\n")
    paths = {"new": tmp_path / "new.txt", "n.json": tmp_path / "names.json"}
    done = adapt(material, tmp_path, *(paths.get(each, each) for each in given))
    assert (done.status, message in done.err) == (2, True), done.err


def test_inner_steps_need_classes(material, tmp_path):
    done = adapt(material, tmp_path, "--regression", method="steps")
    assert (done.status, "--method steps: needs one class for each text, but" in done.err) == (
        2,
        True,
    )


def test_what_needs_classes_is_refused_before_the_model_is_opened(tmp_path):
    nowhere = SimpleNamespace(bert=tmp_path / "nowhere")
    done = adapt(nowhere, tmp_path, "--regression", method="steps")
    assert (done.status, "--method steps: needs one class" in done.err) == (2, True), done.err
    topics = tiny.write_rows(tmp_path / "topics.csv", tiny.examples(1, 3))
    done = adapt(nowhere, tmp_path, tasks=topics)
    assert (done.status, "has examples of only 1 of the chosen" in done.err) == (2, True), done.err


def test_a_number_that_float32_does_not_hold_is_refused(material, tmp_path):
    tasks = write(tmp_path / "examples.csv", numbers=[*NUMBERS[:-1], 1e39])
    done = adapt(material, tmp_path, "--regression", tasks=tasks)
    said = "examples.csv:7: 'label' is '1e+39'; give numbers up to 3.4e38"
    assert (done.status, said in done.err) == (2, True), done.err


def test_classes_are_no_numbers(material, tmp_path):
    given = ("--regression", "--glue-dir", material.glue)
    done = adapt(material, tmp_path, *given, tasks="glue:mrpc")
    assert (done.status, "mrpc: has classes, not numbers; remove --regr" in done.err) == (2, True)
    topics = tiny.write_rows(tmp_path / "topics.csv", tiny.examples(2, 2))
    done = adapt(material, tmp_path, *given, tasks=topics)
    assert (done.status, "topics.csv:2: 'label' is 'topic" in done.err) == (2, True)
