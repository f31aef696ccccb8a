"""`FewShotRegressor`: numbers for texts, in memory."""

import numpy as np
import pytest
import sklearn.base
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score

import metajax
from metajax.errors import InputError
from metajax.runs.classifier import logits_of, open_classifier
from tests import tiny

NUMBERS = np.array([2.5, 1.0, 4.0, 3.5, 1.5, 0.5, 7.0], np.float32)
TEXTS = ["w1 w9", "w2 w1", "w3", "w2 w3 w9", "w9", "w4 w4", "w5 w1"]


@pytest.fixture(scope="module")
def fitted(material):
    own = metajax.FewShotRegressor(str(material.bert), method="linear", max_length=16)
    return own.fit(TEXTS, NUMBERS)


@pytest.mark.parametrize("pairs", [None, TEXTS[::-1]])
def test_the_regressor_is_what_the_command_line_does(material, tmp_path, pairs):
    columns = [TEXTS, *([pairs] if pairs else []), map(str, NUMBERS)]
    names = ["text", "text_pair", "label"] if pairs else ["text", "label"]
    tasks = tmp_path / "examples.csv"
    tasks.write_text("\n".join(map(",".join, [names, *zip(*columns)])) + "\n")
    where = ("--model", material.bert, "--tasks", tasks, "--workdir", tmp_path / "run")
    tiny.succeed("adapt", *where, "--regression", "--method", "finetune", "--max-length", 16)
    given = list(zip(TEXTS, pairs)) if pairs else TEXTS
    own = metajax.FewShotRegressor(str(material.bert), max_length=16).fit(given, NUMBERS)
    classifier = open_classifier(str(tmp_path / "run"), None)
    expected = np.stack(list(logits_of(classifier, TEXTS, pairs, 64)))[:, 0]
    np.testing.assert_allclose(own.predict(given), expected, rtol=1e-5)


def test_the_regressor_has_the_conventions_of_scikit_learn(fitted, material):
    numbers = fitted.predict(TEXTS)
    assert (numbers.shape, numbers.dtype) == ((7,), np.float64)
    assert fitted.score(TEXTS, NUMBERS) == pytest.approx(r2_score(NUMBERS, numbers))
    assert sklearn.base.is_regressor(fitted)
    with pytest.raises(NotFittedError):
        sklearn.base.clone(fitted).predict(TEXTS)
    assert fitted.predict([]).shape == (0,)


def test_a_regressor_and_a_classifier_replace_each_other(fitted, material, tmp_path):
    """The length of the one that is saved last is read."""
    classifier = metajax.FewShotClassifier(str(material.bert), method="linear", max_length=12)
    classifier.fit(TEXTS[:4], list("abab"))
    for last, length in ((classifier, 12), (fitted, 16), (classifier, 12)):
        last.save(tmp_path)
        assert len(list(tmp_path.glob("few_shot_*.json"))) == 1
        assert open_classifier(str(tmp_path), None).max_length == length
        assert type(last).load(tmp_path).get_params() == last.get_params()


def test_a_saved_regressor_comes_back(fitted, tmp_path):
    fitted.save(tmp_path / "saved")
    loaded = metajax.FewShotRegressor.load(tmp_path / "saved")
    assert loaded.get_params() == fitted.get_params()
    np.testing.assert_allclose(loaded.predict(TEXTS), fitted.predict(TEXTS), rtol=1e-6)
    assert open_classifier(str(tmp_path / "saved"), None).max_length == 16
    with pytest.raises(
        InputError, match=r"has no few_shot_regressor.json; give a folder of `save`"
    ):
        metajax.FewShotRegressor.load(tmp_path)


@pytest.mark.parametrize(
    ("texts", "numbers", "message"),
    [
        (TEXTS, NUMBERS[1:], "^fit: 7 texts have 6 numbers; give one each"),
        (TEXTS[:2], ["a", "b"], "^labels: are not all numbers; give .* FewShotClassifier"),
        (TEXTS[:2], [1.0, np.nan], "^labels: number 1 is nan; give finite numbers"),
        (
            TEXTS[:2],
            [1.0, -1e39],
            r"^labels: number 1 is -1e\+39; give finite numbers up to 3.4e38",
        ),
        (TEXTS[:2], [[1.0], [2.0]], r"^labels: have the shape \(2, 1\); .*the column frame"),
        ([], [], "^fit: there are no examples; give texts"),
        (TEXTS[:1], [1.0], "^the examples: the label of all examples is 1; give examples with"),
    ],
)
def test_what_a_regressor_cannot_use_is_named(material, texts, numbers, message):
    with pytest.raises(InputError, match=message):
        metajax.FewShotRegressor(str(material.bert), method="linear").fit(texts, numbers)


@pytest.mark.parametrize("setting", [{"method": "steps"}, {"batch_size": 0}, {"max_length": 0}])
def test_settings_of_a_regressor_are_checked(material, setting):
    ((name, value),) = setting.items()
    with pytest.raises(InputError, match=f"^{name} is {value!r}; "):
        metajax.FewShotRegressor(str(material.bert), **setting).fit(TEXTS, NUMBERS)
