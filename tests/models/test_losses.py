"""Heads, losses and head starts against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.errors import InputError
from metajax.models import (
    Transformer,
    classification_loss,
    masked_lm_loss,
    multi_label_loss,
    prototype_init,
    zero_init,
)
from tests.models.helpers import TINY, assert_equal, make_batch, make_params


def with_classes(*num_labels, **settings):
    model = Transformer(TINY, head="classification", num_labels=num_labels, **settings)
    return model, make_params(model)


def test_each_row_uses_its_own_head():
    model, params = with_classes(2, 3)
    batch = {**make_batch(), "task": jnp.array([1, 0, 1], jnp.int32)}
    out = jax.jit(model)(params, batch)
    kernel, bias = params["classifier"]["kernel"], params["classifier"]["bias"]
    for row, task in enumerate([1, 0, 1]):
        expected = out.pooled[row] @ kernel[task] + bias[task]
        classes = model.num_labels[task]
        np.testing.assert_allclose(out.logits[row, :classes], expected[:classes], atol=1e-5)
        assert (out.logits[row, classes:] == -1e9).all()
    first = jax.jit(model)(params, make_batch()).logits
    assert (first[:, 2] == -1e9).all()


def test_class_mask_switches_classes_off():
    model, params = with_classes(3)
    batch = {**make_batch(), "class_mask": jnp.array([1.0, 0.0, 1.0])}
    logits = jax.jit(model)(params, batch).logits
    assert (logits[:, 1] == -1e9).all()
    assert (logits[:, [0, 2]] > -1e3).all()


def test_classification_loss_weighs_examples():
    model, params = with_classes(3)
    batch = make_batch()
    logits = np.asarray(jax.jit(model)(params, batch).logits, np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    # The first and the third are right.
    labels = np.add(logits.argmax(-1), [0, 1, 0]) % 3
    losses = -log_probs[np.arange(3), labels]
    loss_fn = classification_loss(model)
    for weights in ([2.0, 1.0, 0.0], [0.25, 0.5, 0.125]):
        batch |= {"labels": jnp.asarray(labels), "example_mask": jnp.array(weights)}
        loss, aux = loss_fn(params, batch, None)
        assert loss == pytest.approx(np.average(losses, weights=weights), abs=1e-5)
        assert aux["accuracy"] == pytest.approx(np.average([1, 0, 1], weights=weights))
    del batch["example_mask"]
    loss, aux = loss_fn(params, batch, None)
    assert loss == pytest.approx(losses.mean(), abs=1e-5)
    assert aux["accuracy"] == pytest.approx(2 / 3)
    loss, aux = loss_fn(params, batch | {"example_mask": jnp.zeros(3)}, None)
    assert loss == aux["accuracy"] == 0


def test_regression_and_classification_in_one_batch():
    model, params = with_classes(1, 3)
    batch = make_batch(batch=4) | {"task": jnp.array([0, 1, 0, 1], jnp.int32)}
    logits = np.asarray(jax.jit(model)(params, batch).logits, np.float64)
    # Of the classifications, the first is right, with a quarter of the other's weight.
    right, wrong = logits[1].argmax(), (logits[3].argmax() + 1) % 3
    weights = np.array([2.0, 0.5, 1.0, 2.0])
    batch |= {"labels": jnp.array([2.5, right, -0.5, wrong]), "example_mask": jnp.array(weights)}
    compute = jax.jit(jax.value_and_grad(classification_loss(model), has_aux=True))
    (loss, aux), grads = compute(params, batch, None)
    entropies = [
        np.log(np.exp(logits[i]).sum()) - logits[i, y] for i, y in ((1, right), (3, wrong))
    ]
    squares = [(logits[0, 0] - 2.5) ** 2, (logits[2, 0] + 0.5) ** 2]
    losses = [squares[0], entropies[0], squares[1], entropies[1]]
    assert loss == pytest.approx(np.average(losses, weights=weights), rel=1e-5)
    assert aux["accuracy"] == pytest.approx(0.2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_masked_lm_loss_ignores_padding():
    model = Transformer(TINY, head="masked_lm")
    params = make_params(model)
    batch = {**make_batch(), "positions": jnp.array([[1, 2], [0, 1], [1, 0]], jnp.int32)}
    logits = np.asarray(jax.jit(model)(params, batch).logits, np.float64)
    # Right, padding, right, wrong (a word before it), padding, wrong (a word after it).
    best = logits.argmax(-1)
    targets = np.where([[1, 0], [1, 1], [0, 1]], np.add(best, [[0, 0], [0, 1], [0, 30]]) % 31, -1)
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(
        logits, np.maximum(targets, 0)[:, :, None], -1
    ).squeeze(-1)
    loss_fn = masked_lm_loss(model)
    loss, aux = loss_fn(params, {**batch, "targets": jnp.asarray(targets)}, None)
    assert loss == pytest.approx(losses[targets >= 0].mean(), rel=1e-5)
    assert (aux["count"], aux["accuracy"]) == (4, 0.5)
    # The first word of the vocabulary is a target like others.
    first = np.where(targets >= 0, 0, -1)
    loss, aux = loss_fn(params, {**batch, "targets": jnp.asarray(first)}, None)
    losses = np.log(np.exp(logits).sum(-1)) - logits[:, :, 0]
    assert loss == pytest.approx(losses[targets >= 0].mean(), rel=1e-5)
    assert aux["count"] == 4
    loss, aux = loss_fn(params, {**batch, "targets": jnp.full((3, 2), -1)}, None)
    assert loss == aux["count"] == aux["accuracy"] == 0


@pytest.mark.parametrize("feature_norm", [None, 4.0])
def test_prototypes_against_numpy(feature_norm):
    model, params = with_classes(4, pooling="mean", feature_norm=feature_norm)
    encoder = {key: value for key, value in params.items() if key != "classifier"}
    support = {
        **make_batch(batch=5),
        "labels": jnp.array([0, 2, 2, 1, 0], jnp.int32),
        "example_mask": jnp.array([1.0, 1.0, 1.0, 1.0, 0.0]),
    }
    started = prototype_init(model)(encoder, support, None)
    features = np.asarray(jax.jit(model.features)(encoder, support))
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
    start = prototype_init(model)
    gradient = jax.jit(jax.grad(lambda p: start(p, support, None)["classifier"]["kernel"].sum()))
    grads = gradient(encoder)
    assert all(np.abs(grads["layers"]["up"]["kernel"]).max(axis=(1, 2)) > 0)


def test_zero_init():
    model, params = with_classes(3)
    encoder = {key: value for key, value in params.items() if key != "classifier"}
    started = zero_init(model)(encoder, {}, None)
    assert (model(started, make_batch()).logits == 0).all()
    assert jax.tree.map(jnp.shape, started) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize("start", [zero_init, prototype_init])
def test_a_head_start_has_the_dtype_of_the_parameters(start):
    """And takes the place of the heads there were, with the classes of the first."""
    model, params = with_classes(3, 5, pooling="mean")
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    support = {**make_batch(), "labels": jnp.array([0, 1, 2], jnp.int32)}
    started = start(model)(low, support, None)
    assert {leaf.dtype for leaf in jax.tree.leaves(started)} == {jnp.dtype("bfloat16")}
    shapes = {name: leaf.shape for name, leaf in started.pop("classifier").items()}
    assert shapes == {"kernel": (1, 8, 3), "bias": (1, 3)}
    assert_equal(started, {key: value for key, value in low.items() if key != "classifier"})


@pytest.mark.usefixtures("x64")
def test_multi_label_loss_is_the_mean_over_labels_and_examples():
    model, params = with_classes(4, problem_type="multi_label_classification")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    batch = make_batch()
    logits = np.asarray(jax.jit(model)(params, batch).logits)
    labels = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    shares = 1 / (1 + np.exp(-logits))
    losses = -(labels * np.log(shares) + (1 - labels) * np.log(1 - shares))
    correct = (shares > 0.5) == labels
    loss_fn = multi_label_loss(model)
    loss, aux = loss_fn(params, batch | {"labels": jnp.asarray(labels)}, None)
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-12)
    np.testing.assert_allclose(aux["accuracy"], correct.mean(), rtol=1e-12)
    weights = [2.0, 0.5, 0.0]
    batch |= {"labels": jnp.asarray(labels), "example_mask": jnp.array(weights)}
    loss, aux = loss_fn(params, batch, None)
    np.testing.assert_allclose(loss, np.average(losses.mean(1), weights=weights), rtol=1e-12)
    np.testing.assert_allclose(aux["accuracy"], np.average(correct.mean(1), weights=weights))
    of_labels = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [0, 1, 0, 1]])
    loss, again = loss_fn(params, batch | {"label_weights": jnp.asarray(of_labels)}, None)
    expected = np.average((losses * of_labels).mean(1), weights=weights)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    assert again["accuracy"] == aux["accuracy"]


def test_multi_label_loss_refuses_other_heads():
    model, _ = with_classes(4)
    with pytest.raises(InputError, match="problem_type is None, but this loss needs a head with"):
        multi_label_loss(model)
