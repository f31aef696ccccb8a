"""Tasks whose labels are numbers: heads and training in memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.base
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

import metajax
from metajax import data
from metajax.config.inner import MethodSettings
from metajax.errors import InputError
from metajax.models import Transformer
from metajax.runs import methods
from metajax.runs.classifier import logits_of, open_classifier
from metajax.runs.features import features_of, logits_on
from metajax.runs.few_shot import FewShot
from metajax.runs.inner import DEFAULTS
from metajax.runs.regression import check_numbers, ridge_head, standardized
from metajax.runs.source import Source
from tests import tiny

NUMBERS = np.array([2.5, 1.0, 4.0, 3.5, 1.5, 0.5, 7.0], np.float32)


def examples_of(labels=NUMBERS):
    count, rng = len(labels), np.random.default_rng(0)
    ids = rng.integers(5, 90, (count, 6)).astype(np.int32)
    tokens = data.Tokens(ids, np.zeros_like(ids, np.int8), np.full(count, 6, np.int32), 0)
    return data.TokenizedTask("texts", tokens, labels, (), ())


def network(dtype=jnp.float32):
    rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    config = dataclasses.replace(tiny.CONFIG, classifier_dropout=0.0, **rates)
    shape = {"num_labels": (1,), "feature_norm": 3.0}
    model = Transformer(config, "classification", "mean", **shape)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), model.init(jax.random.key(0)))
    inner = DEFAULTS | {"algorithm": "maml"}
    return FewShot(model, params, inner, Source(model, params, {}))


def test_the_ridge_with_the_least_leave_one_out_error_is_scikit_learns():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(12, 20))
    targets = features[:, 0] + 0.5 * rng.normal(size=12)
    targets = (targets - targets.mean()) / targets.std()
    errors = {}
    for strength in np.logspace(-3, 3, 13):
        left_out = []
        for row in range(12):
            others = np.arange(12) != row
            fitted = Ridge(alpha=strength).fit(features[others], targets[others])
            left_out.append(fitted.predict(features[[row]])[0] - targets[row])
        errors[strength] = np.square(left_out).mean()
    best = min(errors, key=errors.get)
    assert best not in (min(errors), max(errors))
    expected = Ridge(alpha=best).fit(features, targets)
    head = ridge_head(features, targets)
    np.testing.assert_allclose(head["kernel"][:, 0], expected.coef_, rtol=1e-8)
    np.testing.assert_allclose(head["bias"], expected.intercept_, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_linear_predicts_numbers_in_their_own_scale():
    few_shot, examples = network(jnp.float64), examples_of()
    adapted = methods.adapt_to(few_shot, examples, methods.method_of("linear"), chooses=False)
    features = features_of(few_shot.model, few_shot.params, examples)
    spread = NUMBERS.std(dtype=np.float64)
    targets = (NUMBERS - NUMBERS.mean(dtype=np.float64)) / spread
    head = ridge_head(features, targets.astype(np.float32))
    expected = (features @ head["kernel"] + head["bias"])[:, 0] * spread + NUMBERS.mean()
    found = logits_on(few_shot.model, adapted.params, examples)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(adapted.losses, [np.square(expected - NUMBERS).mean()], rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_finetune_does_not_depend_on_the_scale_of_the_numbers():
    few_shot, method = network(jnp.float64), methods.method_of("finetune")
    found, losses = [], []
    for factor, shift in ((1, 0), (64, 128)):  # Both are exact in float32.
        examples = examples_of(factor * NUMBERS + shift)
        adapted = methods.adapt_to(few_shot, examples, method, chooses=False)
        numbers = logits_on(few_shot.model, adapted.params, examples)[:, 0]
        found.append((numbers - shift) / factor)
        losses.append(np.array(adapted.losses) / factor**2)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert len(losses[0]) == method.recipe.steps + 1
    start = methods.adapt_to(few_shot, examples_of(), methods.method_of("linear"), chooses=False)
    np.testing.assert_allclose(losses[0][0], start.losses[0], rtol=1e-5)  # Ridge is the start.
    assert losses[0][-1] < losses[0][0]


def test_numbers_have_to_differ():
    with pytest.raises(InputError, match=r"^texts: the label of all examples is 3\.5; give"):
        standardized(examples_of(np.full(4, 3.5, np.float32)))
    again, scale = standardized(examples_of())
    np.testing.assert_allclose([again.labels.mean(), again.labels.std()], [0, 1], atol=1e-6)
    np.testing.assert_allclose(again.labels * scale.deviation + scale.mean, NUMBERS, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "steps"}, "^--method steps: needs classes; for numbers use linear or finetune"),
        ({"method": "contrastive"}, "^--method contrastive: needs classes; for numbers use"),
        ({"method": "finetune", "class_weight": "balanced"}, "^--class-weight: needs classes, but"),
        ({"method": "linear", "calibrate": True}, "^--calibrate: needs classes, but the labels"),
        ({"method": "linear", "weights": "choose"}, "^--weights choose: needs classes, but the"),
    ],
)
def test_what_needs_classes_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        check_numbers(MethodSettings(**settings))


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
        (TEXTS[:2], ["a", "b"], "^labels: are not all numbers; give a number for each text"),
        (TEXTS[:2], [1.0, np.nan], "^labels: number 1 is nan; give finite numbers"),
        (
            TEXTS[:2],
            [1.0, -1e39],
            r"^labels: number 1 is -1e\+39; give finite numbers up to 3.4e38",
        ),
        (TEXTS[:2], [[1.0], [2.0]], r"^labels: have the shape \(2, 1\); give a number for each"),
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
