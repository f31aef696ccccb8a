"""Tasks whose labels are numbers: heads and training in memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from metajax import data
from metajax.config.inner import MethodSettings, check_any_labels
from metajax.errors import InputError
from metajax.models import Transformer
from metajax.runs import methods
from metajax.runs.features import features_of, logits_on
from metajax.runs.few_shot import FewShot
from metajax.runs.inner import DEFAULTS
from metajax.runs.regression import ridge_head, standardized
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


def test_the_ridge_of_pairs_also_has_the_sum_of_their_products_as_a_feature():
    rng = np.random.default_rng(2)
    features, targets = rng.normal(size=(12, 20)), rng.normal(size=12)
    more = np.concatenate([features, features[:, 10:].sum(1, keepdims=True)], 1)
    expected, head = ridge_head(more, targets), ridge_head(features, targets, pairs=True)
    found = features @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(found, more @ expected["kernel"] + expected["bias"], rtol=1e-8)


def test_a_few_pairs_are_enough_to_follow_the_cosine():
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(2, 60, 64))
    second += first * rng.uniform(0, 3, (60, 1))
    first, second = (8 * x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    cosines = (first * second).sum(1) / 64
    features = np.concatenate([np.abs(first - second), first * second], 1)
    targets = (cosines[:8] - cosines[:8].mean()) / cosines[:8].std()
    errors = []
    for pairs in (False, True):
        head = ridge_head(features[:8], targets, pairs=pairs)
        found = (features[8:] @ head["kernel"] + head["bias"])[:, 0]
        errors.append(1 - np.corrcoef(found, cosines[8:])[0, 1])
    assert errors[1] < 0.01 < errors[0]


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
def test_linear_follows_the_cosine_of_pairs():
    few_shot, examples = network(jnp.float64), examples_of()
    few_shot = few_shot._replace(model=few_shot.model.replace(siamese=True))
    types = np.repeat([[0, 0, 0, 1, 1, 1]], len(NUMBERS), 0).astype(np.int8)
    tokens = examples.tokens._replace(token_type_ids=types, apart=True)
    examples = examples._replace(tokens=tokens)
    adapted = methods.adapt_to(few_shot, examples, methods.method_of("linear"), chooses=False)
    features = features_of(few_shot.model, few_shot.params, examples)
    targets = (NUMBERS - NUMBERS.mean(dtype=np.float64)) / NUMBERS.std(dtype=np.float64)
    kernel = ridge_head(features, targets, pairs=True)["kernel"] * NUMBERS.std(dtype=np.float64)
    np.testing.assert_allclose(adapted.params["classifier"]["kernel"][0], kernel, rtol=1e-5)


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
        (
            {"method": "steps"},
            "^--method steps: needs one class for each text, but the labels are numb",
        ),
        ({"method": "contrastive"}, "numbers; use linear or finetune"),
        ({"method": "finetune", "class_weight": "balanced"}, "^--class-weight: needs one class"),
        ({"method": "linear", "calibrate": True}, "^--calibrate: needs one class for each"),
        ({"method": "linear", "weights": "choose"}, "^--weights choose: needs one class for"),
    ],
)
def test_what_needs_classes_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        check_any_labels(MethodSettings(**settings), "the labels are numbers")
