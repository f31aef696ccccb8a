"""Heads, losses and head starts against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models import Bert, classification_loss, masked_lm_loss, prototype_start, zero_start
from tests.models.helpers import TINY, make_batch, make_params

KEY = jax.random.key(3)


def with_classes(*num_labels, **settings):
    model = Bert(TINY, head="classification", num_labels=num_labels, **settings)
    return model, make_params(model)


def test_each_row_uses_its_own_head():
    model, params = with_classes(2, 3)
    batch = {**make_batch(), "task": jnp.array([1, 0, 1], jnp.int32)}
    out = model(params, batch)
    kernel, bias = params["classifier"]["kernel"], params["classifier"]["bias"]
    for row, task in enumerate([1, 0, 1]):
        expected = out.pooled[row] @ kernel[task] + bias[task]
        classes = model.num_labels[task]
        np.testing.assert_allclose(out.logits[row, :classes], expected[:classes], atol=1e-5)
        assert (out.logits[row, classes:] == -1e9).all()
    first = model(params, make_batch()).logits
    assert (first[:, 2] == -1e9).all()


def test_class_mask_switches_classes_off():
    model, params = with_classes(3)
    batch = {**make_batch(), "class_mask": jnp.array([1.0, 0.0, 1.0])}
    logits = model(params, batch).logits
    assert (logits[:, 1] == -1e9).all()
    assert (logits[:, [0, 2]] > -1e3).all()


def test_classification_loss_weighs_examples():
    model, params = with_classes(3)
    labels = jnp.array([0, 2, 1], jnp.int32)
    batch = {**make_batch(), "labels": labels, "example_mask": jnp.array([1.0, 1.0, 0.0])}
    loss, aux = classification_loss(model)(params, batch, None)
    logits = np.asarray(model(params, batch).logits, np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert loss == pytest.approx(-(log_probs[0, 0] + log_probs[1, 2]) / 2, abs=1e-5)
    assert aux["accuracy"] == pytest.approx((logits.argmax(-1) == labels)[:2].mean())
    empty = {**batch, "example_mask": jnp.zeros(3)}
    assert classification_loss(model)(params, empty, None)[0] == 0


def test_regression_and_classification_in_one_batch():
    model, params = with_classes(1, 3)
    batch = {
        **make_batch(),
        "labels": jnp.array([2.5, 1.0, -0.5]),
        "task": jnp.array([0, 1, 0], jnp.int32),
    }
    compute = jax.jit(jax.value_and_grad(classification_loss(model), has_aux=True))
    (loss, aux), grads = compute(params, batch, None)
    logits = np.asarray(model(params, batch).logits, np.float64)
    entropy = np.log(np.exp(logits[1]).sum()) - logits[1, 1]
    squares = (logits[0, 0] - 2.5) ** 2 + (logits[2, 0] + 0.5) ** 2
    assert loss == pytest.approx((entropy + squares) / 3, rel=1e-5)
    assert aux["accuracy"] == float(logits[1].argmax() == 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_masked_lm_loss_ignores_padding():
    model = Bert(TINY, head="masked_lm")
    params = make_params(model)
    batch = {**make_batch(), "positions": jnp.array([[1, 2], [0, 1], [1, 0]], jnp.int32)}
    targets = jnp.array([[4, -1], [5, 6], [-1, -1]], jnp.int32)
    loss, aux = masked_lm_loss(model)(params, {**batch, "targets": targets}, None)
    logits = np.asarray(model(params, batch).logits, np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(
        logits, np.maximum(targets, 0)[:, :, None], -1
    ).squeeze(-1)
    assert aux["count"] == 3
    assert loss == pytest.approx(losses[np.asarray(targets) >= 0].mean(), rel=1e-5)
    none = {**batch, "targets": jnp.full_like(targets, -1)}
    assert masked_lm_loss(model)(params, none, None)[0] == 0


@pytest.mark.parametrize("feature_norm", [None, 4.0])
def test_prototypes_against_numpy(feature_norm):
    model, params = with_classes(4, pooling="mean", feature_norm=feature_norm)
    encoder = {key: value for key, value in params.items() if key != "classifier"}
    support = {
        **make_batch(batch=5),
        "labels": jnp.array([0, 2, 2, 1, 0], jnp.int32),
        "example_mask": jnp.array([1.0, 1.0, 1.0, 1.0, 0.0]),
    }
    started = prototype_start(model)(encoder, support, None)
    features = np.asarray(model.features(encoder, support))
    if feature_norm:
        np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 4.0, rtol=1e-5)
    expected = np.stack(
        [features[0], features[3], features[1:3].mean(0), np.zeros_like(features[0])]
    )
    np.testing.assert_allclose(started["classifier"]["kernel"][0].T, expected, atol=1e-5)
    np.testing.assert_allclose(
        started["classifier"]["bias"][0], -0.5 * (expected**2).sum(-1), rtol=1e-5
    )
    # The logits are distances, up to a constant for each example.
    logits = np.asarray(model(started, support).logits)
    distances = -0.5 * ((features[:, None] - expected) ** 2).sum(-1)
    difference = logits - distances
    np.testing.assert_allclose(difference, difference[:, :1].repeat(4, 1), atol=1e-4)


def test_the_prototypes_depend_on_the_encoder():
    model, params = with_classes(2)
    encoder = {key: value for key, value in params.items() if key != "classifier"}
    support = {**make_batch(), "labels": jnp.array([0, 1, 1], jnp.int32)}
    start = prototype_start(model)
    grads = jax.grad(lambda p: start(p, support, None)["classifier"]["kernel"].sum())(encoder)
    assert all(np.abs(grads["layers"]["up"]["kernel"]).max(axis=(1, 2)) > 0)


def test_zero_start():
    model, params = with_classes(3)
    encoder = {key: value for key, value in params.items() if key != "classifier"}
    started = zero_start(model)(encoder, {}, None)
    assert (model(started, make_batch()).logits == 0).all()
    assert jax.tree.map(jnp.shape, started) == jax.tree.map(jnp.shape, params)


def test_the_head_has_its_own_dropout():
    model, params = with_classes(3)
    still = model.config.__class__(
        **{
            **vars(model.config),
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "classifier_dropout": 0.5,
        }
    )
    model = model.replace(config=still)
    batch = make_batch()
    assert np.abs(model(params, batch, KEY).logits - model(params, batch).logits).max() > 0
    np.testing.assert_array_equal(model(params, batch, KEY).pooled, model(params, batch).pooled)
    np.testing.assert_array_equal(model.features(params, batch, KEY), model.features(params, batch))
