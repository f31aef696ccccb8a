"""`FewShotClassifier`: scikit-learn's conventions, and the same results as the command line."""

import pickle
import threading

import numpy as np
import pandas
import pytest
import sklearn.base
import sklearn.model_selection
import tiny

import metajax
from metajax.errors import InputError
from metajax.runs.classifier import open_classifier

TEXTS = [f"w{topic} w{10 + number} w{topic}" for topic in range(3) for number in range(4)]
LABELS = [topic for topic in (7, 5, 6) for _ in range(4)]
NEW = ["w2 w50 w2", "w0 w51", "w1 w52 w1"]


@pytest.fixture(scope="module")
def fitted(material):
    own = metajax.FewShotClassifier(str(material.bert), method="linear", max_length=20)
    return own.fit(TEXTS, LABELS)


def test_it_labels_texts_with_the_given_labels(fitted):
    assert fitted.classes_.tolist() == [5, 6, 7]
    shares = fitted.predict_proba(NEW)
    assert shares.shape == (3, 3)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-12)
    assert fitted.predict(NEW).tolist() == fitted.classes_[shares.argmax(1)].tolist()
    assert fitted.score(TEXTS, LABELS) == np.mean(fitted.predict(TEXTS) == LABELS) > 0.9


@pytest.mark.parametrize(
    ("method", "flags"),
    [("steps", ()), ("contrastive", ("--method", "contrastive"))],
)
def test_it_is_what_the_command_line_does(material, tmp_path, method, flags):
    names = [f"label{label}" for label in LABELS]
    file = tiny.write_rows(tmp_path / "examples.csv", list(zip(TEXTS, names)))
    texts = tmp_path / "new.txt"
    texts.write_text("\n".join(NEW) + "\n")
    where = ("--model", material.bert, "--tasks", file, "--workdir", tmp_path / "run")
    tiny.succeed("adapt", *where, *flags)
    lines = tiny.succeed("predict", "--model", tmp_path / "run", "--input", texts).splitlines()
    expected = [line.split("\t") for line in lines]
    classifier = metajax.FewShotClassifier(str(material.bert), method=method).fit(TEXTS, names)
    shares = classifier.predict_proba(NEW)
    assert classifier.predict(NEW).tolist() == [label for label, _ in expected]
    np.testing.assert_allclose(shares.max(1), [float(share) for _, share in expected], atol=6e-5)


def test_it_has_the_conventions_of_scikit_learn(fitted, material):
    assert sklearn.base.is_classifier(fitted)
    copy = sklearn.base.clone(fitted)
    assert copy.get_params() == fitted.get_params()
    with pytest.raises(sklearn.exceptions.NotFittedError):
        copy.predict(NEW)
    scores = sklearn.model_selection.cross_val_score(copy, np.array(TEXTS), LABELS, cv=2)
    assert scores.shape == (2,)
    assert fitted.set_params(batch_size=2).predict(NEW).shape == (3,)


def test_texts_come_as_columns_and_arrays(fitted):
    expected = fitted.predict_proba(NEW)
    for given in (pandas.Series(NEW, index=[5, 3, 1]), np.array(NEW), np.array(NEW, object)):
        np.testing.assert_array_equal(fitted.predict_proba(given), expected)
    frame = pandas.DataFrame({"text": TEXTS, "label": LABELS})
    again = sklearn.base.clone(fitted).fit(frame["text"], frame["label"])
    np.testing.assert_array_equal(again.predict_proba(NEW), expected)


def test_pairs_are_tuples(material):
    pairs = list(zip(TEXTS, reversed(TEXTS)))
    classifier = metajax.FewShotClassifier(str(material.bert), method="prototypes")
    classifier.fit(pairs, LABELS)
    assert classifier.predict(pairs[:2]).shape == (2,)
    np.testing.assert_array_equal(
        classifier.predict_proba(np.array(pairs)), classifier.predict_proba(pairs)
    )
    with pytest.raises(InputError, match="has single texts, but the model was trained on pairs"):
        classifier.predict(TEXTS)


def test_save_and_load_keep_labels_and_results(fitted, tmp_path):
    fitted.save(tmp_path / "saved")
    again = metajax.FewShotClassifier.load(tmp_path / "saved")
    assert again.get_params() == fitted.get_params()
    assert again.classes_.tolist() == fitted.classes_.tolist()
    np.testing.assert_array_equal(again.predict_proba(NEW), fitted.predict_proba(NEW))
    texts = tmp_path / "new.txt"
    texts.write_text("\n".join(NEW) + "\n")
    kept = open_classifier(str(tmp_path / "saved"), None)
    assert (kept.max_length, kept.pairs) == (fitted.max_length, False)
    lines = tiny.succeed("predict", "--model", tmp_path / "saved", "--input", texts).splitlines()
    assert [line.split("\t")[0] for line in lines] == list(map(str, fitted.predict(NEW)))


def test_label_names_are_examples(material, tmp_path):
    """With examples, one more of each class; without, all there is."""
    names = {7: "w0", 5: "w1", 6: "w2"}
    model, texts = str(material.bert), [*TEXTS, *names.values()]
    own = metajax.FewShotClassifier(model, method="prototypes", label_names=names)
    plain = metajax.FewShotClassifier(model, method="prototypes")
    expected = plain.fit(texts, [*LABELS, *names]).predict_proba(NEW)
    np.testing.assert_array_equal(own.fit(TEXTS, LABELS).predict_proba(NEW), expected)
    own.fit()
    assert own.classes_.tolist() == [5, 6, 7]
    assert own.predict(["w0", "w1", "w2"]).tolist() == [7, 5, 6]
    own.save(tmp_path / "zero")
    assert metajax.FewShotClassifier.load(tmp_path / "zero").get_params() == own.get_params()
    with pytest.raises(InputError, match="label_names: are single texts"):
        own.fit(list(zip(TEXTS, TEXTS)), LABELS)


def test_no_texts_have_no_predictions(fitted):
    assert fitted.predict([]).shape == (0,)


def test_a_fitted_classifier_can_be_pickled(fitted):
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(NEW), fitted.predict_proba(NEW))


def test_it_works_in_a_thread(fitted):
    found = []
    own = sklearn.base.clone(fitted)
    thread = threading.Thread(target=lambda: found.append(own.fit(TEXTS, LABELS).predict(NEW)))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], fitted.predict(NEW))


@pytest.mark.parametrize(
    ("texts", "labels", "said"),
    [
        ("w1 w2", [1], "a single str; give a list"),
        (pandas.DataFrame({"text": ["w1", "w2"]}), [1, 2], r'a table; .* as frame\["text"\]$'),
        (pandas.DataFrame({"a": ["w1"], "b": ["w2"]}), [1], r"or list\(zip\(first, second\)\)"),
        (["w1", "w2"], pandas.DataFrame({"label": ["a", "b"]}), "with one column; give frame"),
        (["w1", "w2"], np.ones((2, 1), int), "with one column; give frame"),
        (5, [1, 2], "texts: are 5; give a list"),
        (pandas.Series(["w1", None], index=[1, 0]), [1, 2], "number 1 is (None|nan), not a text"),
        ((text for text in ["w1", 3]), [1, 2], "number 1 is 3, not a text"),
        (["w1", "w2"], "ab", "labels: are not a list"),
        (["w1", "w2"], [[1], [2]], "--method contrastive: needs one class for each text"),
        (["w1", "w2"], np.eye(2), "a text can have several; use linear or finetune"),
        (["w1", "w2"], np.zeros((2, 2, 2)), "give one label for each text, or a matrix"),
        (["w1", "w2"], [0.5, 1.5], "labels: number 0 is 0.5"),
        ([], [], "there are no examples; give texts, or label_names"),
        (["w1", "w2"], [1, None], "labels: number 1 is None"),
        (["w1", "w2"], [float("nan"), 1], "labels: number 0 is nan"),
        (["w1", "w2"], [1, 2.5], "number 1 is 2.5; .* use FewShotRegressor"),
        (["w1", "w2"], [1, np.nan], "^labels: number 1 is nan; .* or booleans$"),
        (["w1", "w2"], [1, "a"], "some are strings and some are not"),
        (["w1", None], [1, 2], "number 1 is None, not a text"),
        (["w1", " "], [1, 2], "number 1 is ' ', not a text"),
        (["w1", ("w1", "w2")], [1, 2], "number 1 has 2 texts, unlike the first"),
        (["w1", "w2"], [1], "2 texts have 1 labels; give one each"),
        (["w1", "w2"], [1, 1], "only 1 class"),
    ],
)
def test_bad_input_is_named(material, texts, labels, said):
    with pytest.raises(InputError, match=said):
        metajax.FewShotClassifier(str(material.bert)).fit(texts, labels)


def test_bad_settings_are_named(material, tmp_path):
    for changes, said in (
        ({"batch_size": 0}, "batch_size is 0; give at least 1"),
        ({"label_names": ["a"]}, "label_names is .*; give a dict"),
        ({"label_names": {"a": ""}}, "^label_names: the name of 'a' is '', not a text; write one"),
        ({"label_names": {5: None}}, "^label_names: the name of 5 is None, not a text; write one"),
        ({"label_names": {"a": "w1"}}, "some are strings .*, and keys of label_names, of"),
    ):
        with pytest.raises(InputError, match=said):
            metajax.FewShotClassifier(str(material.bert), **changes).fit(TEXTS, LABELS)
    with pytest.raises(InputError, match="has no few_shot_classifier"):
        metajax.FewShotClassifier.load(tmp_path)


def test_numbers_of_numpy_and_paths_are_settings(material, tmp_path):
    own = metajax.FewShotClassifier(
        material.bert, method="prototypes", seed=np.int64(3), max_length=16
    )
    own.fit(TEXTS, np.array(LABELS)).save(tmp_path / "saved")
    assert metajax.FewShotClassifier.load(tmp_path / "saved").seed == 3


def test_weights_with_frozen_adapters_can_be_trained(material, tmp_path):
    """As the base and its adapters, merged; `adapt` too."""
    flags = ("--lora", 2, "--freeze", "--steps", 1, "--meta-batch-size", 1, "--max-length", 16)
    flags += ("--inner-steps", 1, "--held-out", 0)
    where = ("--model", material.bert, "--tasks", material.intents, "--workdir", tmp_path / "meta")
    tiny.succeed("metatrain", *where, *flags)
    classifier = metajax.FewShotClassifier(str(tmp_path / "meta"), method="linear")
    assert classifier.fit(TEXTS, LABELS).score(TEXTS, LABELS) > 0.9
    where = ("--model", tmp_path / "meta", "--tasks", material.new, "--workdir", tmp_path / "run")
    tiny.succeed("adapt", *where, "--method", "linear", "--dev", material.new)
    lines = tiny.succeed("predict", "--model", tmp_path / "run", "--input", material.new)
    assert len(lines.splitlines()) == 6


def test_an_unknown_method_is_named(material):
    with pytest.raises(InputError, match="method is 'best'; it has to be one of steps, contras"):
        metajax.FewShotClassifier(str(material.bert), method="best").fit(TEXTS, LABELS)
