"""Predictions of transformers' heads, and the input files of predict."""

import json
from unittest import mock

import jax
import numpy as np
import pytest
import scipy.special
import tiny

from metajax.commands.predict import read_texts
from metajax.errors import InputError
from metajax.models import from_pretrained, save_pretrained
from metajax.runs import classifier as classifying
from metajax.runs import features
from tests.workdirs import write_workdir

TEXTS = [text for text, _ in tiny.examples(3, 3, seed=4)]
NAMES = ("toxic", "obscene\t", "threat")


def write_head(material, directory, **network):
    """A classifier that gives each label to about half of the texts."""
    model, params = from_pretrained(str(material.bert), "classification", num_labels=3)
    model = model.replace(**{"label_names": (NAMES,)} | network)
    kernel = np.random.default_rng(0).normal(size=(1, 16, 3)).astype("f")
    kernel[:, :, 2] = kernel[:, :, 0]  # Two labels that occur together.
    params["classifier"] = {"kernel": 200 * kernel, "bias": np.zeros((1, 3), "f")}
    save_pretrained(directory, model, params)
    params["classifier"]["bias"] = -np.median(logits_of(directory), 0, keepdims=True)
    save_pretrained(directory, model, params)
    return directory


def logits_of(directory):
    model, params = from_pretrained(str(directory), "classification")
    tokens = model.tokenizer(TEXTS, return_tensors="np", padding=True)
    return np.asarray(jax.jit(model)(params, dict(tokens)).logits)


def lines_of(directory, *more):
    stdin = "\n".join(TEXTS).encode()
    command = ("predict", "--model", directory, "--batch-size", 4, *more)
    return tiny.succeed(*command, stdin=stdin).splitlines()


def predicted(directory, *more):
    return [line.split("\t") for line in lines_of(directory, *more)]


def test_each_label_of_a_multi_label_head_has_a_probability_of_its_own(material, tmp_path):
    model = write_head(material, tmp_path, problem_type="multi_label_classification")
    expected = scipy.special.expit(logits_of(model))
    names = ("toxic", r"obscene\t", "threat")
    found = predicted(model)
    for scores, (labels, *each) in zip(expected, found, strict=True):
        assert labels == ", ".join(n for n, s in zip(names, scores) if s > 0.5) or labels == "none"
        assert (labels == "none") == (scores.max() <= 0.5)
        assert [text.rpartition("=")[0] for text in each] == list(names)
        np.testing.assert_allclose([float(t.rpartition("=")[2]) for t in each], scores, atol=1e-4)
    # Each kind occurs.
    assert {(scores > 0.5).sum() for scores in expected} == {0, 1, 2, 3}, expected
    assert not np.allclose(expected.sum(1), 1)


def test_a_regression_of_several_values_has_no_probabilities(material, tmp_path):
    model = write_head(material, tmp_path, problem_type="regression")
    for values, (label, *each) in zip(logits_of(model), predicted(model), strict=True):
        assert label == "value"
        np.testing.assert_allclose([float(t.rpartition("=")[2]) for t in each], values, atol=1e-4)


def test_many_texts_have_a_program_that_is_faster(material, tmp_path, monkeypatch):
    classifier = classifying.open_classifier(str(write_head(material, tmp_path / "saved")), None)
    quick = mock.Mock(wraps=features.quick_jit)
    monkeypatch.setattr(features, "quick_jit", quick)
    features.compiled_logits.cache_clear()
    few = np.stack(list(classifying.logits_of(classifier, TEXTS, None, 4)))
    assert quick.call_count == 1
    monkeypatch.setattr(classifying, "_MANY", len(TEXTS) - 1)
    many = np.stack(list(classifying.logits_of(classifier, TEXTS, None, 4)))
    assert quick.call_count == 1
    np.testing.assert_allclose(many, few, rtol=1e-4, atol=1e-4)


def test_the_most_probable_labels_as_tsv_and_as_json_lines(material, tmp_path):
    """A model with fewer labels gives all of them."""
    model = write_head(material, tmp_path)
    expected = scipy.special.softmax(logits_of(model).astype(float), axis=1)
    names = ("toxic", r"obscene\t", "threat")
    assert len({scores.argmax() for scores in expected}) > 1
    for top, count in ((1, 1), (2, 2), (7, 3)):
        lines = predicted(model, "--top", top)
        rows = map(json.loads, lines_of(model, "--top", top, "--format", "jsonl"))
        for scores, fields, row in zip(expected, lines, rows, strict=True):
            order = sorted(range(3), key=lambda i: -scores[i])[:count]
            assert fields[::2] == [names[i] for i in order]
            shares = [float(text) for text in fields[1::2]]
            np.testing.assert_allclose(shares, scores[order], atol=1e-4)
            assert row.keys() == {"label", "scores"}
            assert row["label"] == row["scores"][0][0]
            assert [label for label, _ in row["scores"]] == [NAMES[i] for i in order]
            shares = [share for _, share in row["scores"]]
            np.testing.assert_allclose(shares, scores[order], atol=1e-5)
    assert predicted(model) == predicted(model, "--top", 1)


def test_texts_below_the_threshold_have_no_label(refused, material, tmp_path):
    """One that is equal to it keeps its label."""
    model = write_head(material, tmp_path / "model")
    shares = [json.loads(line)["scores"][0][1] for line in lines_of(model, "--format", "jsonl")]
    threshold = sorted(shares)[4]
    plain = [line.split("\t") for line in lines_of(model, "--top", 2)]
    given = ("--threshold", repr(threshold), "--none-label", "other")
    found = predicted(model, *given, "--top", 2)
    rows = [json.loads(line) for line in lines_of(model, *given, "--format", "jsonl")]
    for share, old, new, row in zip(shares, plain, found, rows, strict=True):
        label = "other" if share < threshold else old[0]
        assert new == [label, *old[1:]]
        assert row["label"].replace("\t", r"\t") == label
        assert row["scores"][0][1] == share
    assert sum(fields[0] == "other" for fields in found) == 4
    write_head(material, tmp_path / "unnamed", label_names=None)
    for name, none_label, message in (
        ("model", "toxic", "--none-label toxic: model has this label"),
        ("unnamed", "LABEL_0", "--none-label LABEL_0: unnamed has this label"),
        ("model", "", "--none-label: is empty; give a label"),
    ):
        given = ("--threshold", 0.5, "--none-label", none_label)
        refused(message, "predict", "--model", name, *given, stdin=b"w1")


def test_json_lines_of_several_labels_and_of_values_have_all_scores(material, tmp_path):
    for kind in ("multi_label_classification", "regression"):
        model = write_head(material, tmp_path / kind, problem_type=kind)
        logits = logits_of(model)
        expected = logits if kind == "regression" else scipy.special.expit(logits)
        for scores, fields, line in zip(
            expected, predicted(model), lines_of(model, "--format", "jsonl"), strict=True
        ):
            row = json.loads(line)
            found = [score for _, score in row["scores"]]
            if kind == "regression":
                assert row.keys() == {"label", "scores"}
                assert row["label"] == fields[0]
                assert [label for label, _ in row["scores"]] == list(NAMES)
            else:
                assert row.keys() == {"labels", "scores"}
                assert row["labels"] == [n for n, s in zip(NAMES, scores, strict=True) if s > 0.5]
                assert found == sorted(found, reverse=True)
                named = dict(row["scores"])
                found = [named[name] for name in NAMES]
            np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-5)


def test_one_label_per_text_is_needed_to_rank_labels(refused, material, tmp_path):
    message = "--top 2: model does not give one label per text; remove it"
    for kind in ("multi_label_classification", "regression"):
        write_head(material, tmp_path / "model", problem_type=kind)
        refused(message, "predict", "--model", "model", "--top", 2, stdin=b"w1\n")
        other = message.replace("top 2", "threshold 0.5")
        refused(other, "predict", "--model", "model", "--threshold", 0.5, stdin=b"w1\n")
    one = tiny.write_model(tmp_path / "one", head="classification", num_labels=(1,))
    message = message.replace("model", "one", 1)
    refused(message, "predict", "--model", one.name, "--top", 2, stdin=b"w1\n")


def test_transformers_pipeline_says_the_same(material, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    model = write_head(material, tmp_path, problem_type="multi_label_classification")
    pipeline = transformers.pipeline("text-classification", model=str(model), top_k=None)
    for theirs, (_, *each) in zip(pipeline(TEXTS), predicted(model), strict=True):
        scores = {row["label"].replace("\t", r"\t"): row["score"] for row in theirs}
        ours = {text.rpartition("=")[0]: float(text.rpartition("=")[2]) for text in each}
        assert ours == pytest.approx(scores, abs=1e-4)


def test_a_head_for_something_else_labels_no_texts(refused, material, tmp_path):
    """Its tensors may look like a classifier's, with a pooler and a head of three."""
    model = write_head(material, tmp_path / "model")
    values = json.loads((model / "config.json").read_text())
    values["architectures"] = ["BertForTokenClassification"]
    (model / "config.json").write_text(json.dumps(values))
    message = r"model: is a token classifier, which labels words \(BertForTokenClassification\), "
    refused(message + ".*; run finetune or adapt", "predict", "--model", "model", stdin=b"w1\n")


ROWS = [("w1, w2", "a"), ("w3", "b")]


def write_table(path, rows):
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]}), path)
    elif path.suffix == ".csv":
        lines = [",".join(f'"{value}"' for value in row.values()) for row in rows]
        path.write_text("\n".join([",".join(rows[0]), *lines]) + "\n")
    elif path.suffix == ".tsv":
        lines = ["\t".join(row.values()) for row in rows]
        path.write_text("\n".join(["\t".join(rows[0]), *lines]) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl", ".parquet", ".CSV"])
def test_the_texts_of_a_table_are_those_of_its_column(tmp_path, extension):
    """Labels are not read, if there are any, so they may have any value."""
    texts = [text for text, _ in ROWS]
    path = tmp_path / f"texts{extension}"
    kind = path.with_suffix(extension.lower())
    for rows in (
        [{"label": "only one", "text": text} for text in texts],
        [{"sentence": text} for text in texts],
    ):
        write_table(kind, rows).rename(path)
        assert read_texts(str(path)) == (texts, None)
    write_table(kind, [{"text": a, "text_pair": b} for a, b in ROWS]).rename(path)
    assert read_texts(str(path)) == (texts, ["a", "b"])
    write_table(kind, [{"review": a, "title": b} for a, b in ROWS]).rename(path)
    assert read_texts(str(path), "review", "title") == (texts, ["a", "b"])
    with pytest.raises(InputError, match="has no column 'text' or 'sentence', only 'review'") as e:
        read_texts(str(path))
    assert str(e.value).endswith("or give plain text (.txt), one text per line")


def test_the_columns_are_those_that_the_run_read(material, tmp_path):
    network = {"head": "classification", "num_labels": (2,), "label_names": (("a", "b"),)}
    run = tmp_path / "run"
    write_workdir(run, material.bert, "adapt", network=network, text_column="review")
    table = write_table(tmp_path / "in.csv", [{"label": b, "review": a} for a, b in ROWS])
    plain = "\n".join(text for text, _ in ROWS).encode()
    expected = tiny.succeed("predict", "--model", run, stdin=plain)
    assert tiny.succeed("predict", "--model", run, "--input", table) == expected
    assert expected.count("\n") == 2
