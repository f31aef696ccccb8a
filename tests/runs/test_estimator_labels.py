"""`FewShotClassifier` for texts with several labels, against scikit-learn and transformers."""

import json

import numpy as np
import pandas
import pytest
import safetensors.numpy
import scipy.special
import tiny
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

import metajax
from metajax import data
from metajax.config.groups import ModelSettings
from metajax.config.inner import InnerSettings
from metajax.errors import InputError
from metajax.models import from_pretrained, save_pretrained, with_head
from metajax.runs.classifier import open_classifier, probabilities
from metajax.runs.features import features_of
from metajax.runs.few_shot import FEATURE_NORM, open_few_shot
from metajax.runs.labels import read_labels

BALANCED = LogisticRegression(class_weight="balanced", max_iter=1000)
LISTS = [["b"], ["a", "b"], [], ["c"], ("c", "a"), {"b"}, ["a"], ["b", "c"]]
TEXTS = [" ".join(f"w{' abc'.index(label)}" for label in own) or "w9" for own in LISTS]
TEXTS = [f"{text} w{20 + number}" for number, text in enumerate(TEXTS)]
INDICATOR = np.array([[label in own for label in "abc"] for own in LISTS], int)
NEW = ["w1 w2 w50", "w3 w51", "w9 w52"]


def classifier_of(material, method="linear"):
    return metajax.FewShotClassifier(str(material.bert), method=method, max_length=20)


@pytest.fixture(scope="module")
def fitted(material):
    return classifier_of(material).fit(TEXTS, LISTS)


def test_linear_is_one_vs_rest_of_scikit_learn(fitted, material):
    spec = str(material.bert)
    few_shot = open_few_shot(spec, ModelSettings(model=spec), InnerSettings(), 3)
    old, new = (
        data.tokenize(texts, None, few_shot.model.tokenizer, max_length=20)
        for texts in (TEXTS, NEW)
    )
    old, new = (
        features_of(
            few_shot.model,
            few_shot.params,
            data.TokenizedTask("", tokens, np.zeros(len(tokens.lengths), int), (), ()),
        )
        for tokens in (old, new)
    )
    expected = OneVsRestClassifier(BALANCED).fit(old, INDICATOR)
    shares = fitted.predict_proba(NEW)
    np.testing.assert_allclose(shares, expected.predict_proba(new), atol=2e-5)
    assert abs(shares.sum(1) - 1).max() > 0.01


def test_predictions_have_the_form_of_the_labels(fitted, material):
    assert fitted.classes_.tolist() == ["a", "b", "c"]
    predicted = fitted.predict(TEXTS)
    assert {type(own) for own in predicted} == {tuple}
    share = np.mean([set(own) == set(found) for own, found in zip(LISTS, predicted)])
    assert fitted.score(TEXTS, LISTS) == share
    frame = pandas.DataFrame(INDICATOR, columns=list("xyz"))
    for given in (INDICATOR, INDICATOR.astype(bool), frame):
        matrix = classifier_of(material).fit(TEXTS, given)
        assert matrix.classes_.tolist() == [0, 1, 2]
        np.testing.assert_array_equal(matrix.predict_proba(NEW), fitted.predict_proba(NEW))
    guesses = matrix.predict(TEXTS)
    assert [tuple(fitted.classes_[row == 1]) for row in guesses] == predicted
    assert matrix.score(TEXTS, INDICATOR) == share
    with pytest.raises(InputError, match="score: give a list of labels for each of 8 texts"):
        fitted.score(TEXTS, INDICATOR)


@pytest.mark.parametrize("method", ["linear", "finetune"])
def test_saved_models_are_read_back_and_have_sigmoids_elsewhere(material, tmp_path, method):
    own = classifier_of(material, method).fit(TEXTS, LISTS)
    own.save(tmp_path / "saved")
    shares = own.predict_proba(NEW)
    again = metajax.FewShotClassifier.load(tmp_path / "saved")
    np.testing.assert_array_equal(again.predict_proba(NEW), shares)
    assert again.predict(NEW) == own.predict(NEW)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"

    file = tmp_path / "new.txt"
    file.write_text("\n".join(NEW) + "\n")
    lines = tiny.succeed("predict", "--model", tmp_path / "saved", "--input", file).splitlines()
    rows = [[float(score.split("=")[1]) for score in line.split("\t")[1:]] for line in lines]
    np.testing.assert_allclose(rows, shares, atol=6e-5)

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    encoder = transformers.AutoModel.from_pretrained(tmp_path / "saved").eval()
    head = safetensors.numpy.load_file(tmp_path / "saved" / "classifier.safetensors")
    for text, expected in zip(NEW, shares):
        with torch.no_grad():
            hidden = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state
        feature = hidden[0].mean(0).numpy()
        feature *= FEATURE_NORM / np.linalg.norm(feature)
        logits = feature @ head["classifier.0.weight"].T + head["classifier.0.bias"]
        np.testing.assert_allclose(scipy.special.expit(logits), expected, atol=2e-5)


def test_heads_on_the_pooler_have_the_sigmoids_of_transformers(material, tmp_path):
    model, params = from_pretrained(str(material.bert))
    changes = {"head": "classification", "num_labels": 3, "pooling": "pooler"}
    model, params = with_head(model.replace(feature_norm=None), params, **changes)
    model = model.replace(problem_type="multi_label_classification")
    params["classifier"]["kernel"] = 20 * params["classifier"]["kernel"]
    save_pretrained(tmp_path / "saved", model, params)
    shares = probabilities(open_classifier(str(tmp_path / "saved"), None), NEW, None, 2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    other = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert other.config.problem_type == "multi_label_classification"
    for text, expected in zip(NEW, shares):
        with torch.no_grad():
            logits = other.eval()(**tokenizer(text, return_tensors="pt")).logits[0]
        np.testing.assert_allclose(torch.sigmoid(logits).numpy(), expected, atol=2e-5)


def test_label_names_are_examples(material):
    own = classifier_of(material).set_params(label_names={"a": "w1", "d": "w4"})
    again = classifier_of(material).fit([*TEXTS, "w1", "w4"], [*LISTS, ["a"], ["d"]])
    expected = again.predict_proba(NEW)
    np.testing.assert_array_equal(own.fit(TEXTS, LISTS).predict_proba(NEW), expected)
    assert read_labels(INDICATOR, [1]).numbers[-1].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([["a"], "b"], "labels: number 1 is 'b', but others are lists; give a list for every text"),
        ([["a", "a"], ["b"]], "labels: number 0 has 'a' twice; give each label once"),
        ([["a"], [1]], "some are strings and some are not"),
        ([["a"], [None]], "labels: number 1 is None"),
        ([["a"], []], "only 1 class"),
        ([[], []], "only 0 class"),
        ([["a"], ["b"], []], "2 texts have 3 labels"),
        ([[1, 0, 0], [0, 1]], "labels: number 0 has 0 twice; .*has to be a NumPy array"),
        ([np.array([0, 1]), np.array([1])], "labels: number 0 is array.*; give a matrix"),
        (np.array([[0, 2], [1, 0]]), "a matrix with the value 2; give 0 and 1, or a list of"),
        (np.array([["a", "b"], ["b", "a"]]), "a matrix with the value 'a'"),
        (np.array([[0.5, 1], [1, 0]]), "a matrix with the value 0.5"),
        (np.ones((3, 2), int), "2 texts have 3 labels"),
    ],
)
def test_bad_labels_are_named(material, labels, said):
    with pytest.raises(InputError, match=said):
        classifier_of(material).fit(["w1", "w2"], labels)


def test_label_names_of_a_matrix_are_its_columns():
    with pytest.raises(
        InputError, match=r"names the label 'a', but the matrix has the labels 0..2"
    ):
        read_labels(INDICATOR, ["a"])
