"""Prototypes, and heads that start from the support set's features."""

import jax
import jax.numpy as jnp
import numpy as np
import problems

import metajax
from metajax.algorithms.prototypes import class_means, classify
from tests.algorithms.test_algorithms import SGD, features, setting


def test_protonet_classifies_by_distance(x64):
    algorithm, params, tasks = setting("protonet")
    task = problems.nth(tasks, 1)
    _, info = jax.jit(algorithm.meta_grad)(params, task, None)
    support, query = (np.asarray(features(params, batch, None)) for batch in task)
    means = np.stack([support[task.support["labels"] == c].mean(0) for c in range(3)])
    distances = ((query[:, None] - means) ** 2).sum(-1) / 2
    logs = -distances - np.log(np.exp(-distances).sum(1, keepdims=True))
    labels = np.asarray(task.query["labels"])
    np.testing.assert_allclose(info.query_loss, -logs[np.arange(9), labels].mean(), rtol=1e-12)
    share = np.mean(distances.argmin(1) == labels)
    np.testing.assert_allclose(info.query_aux["accuracy"], share, rtol=1e-12)


def test_class_means_are_of_the_examples_that_count(x64):
    """The third class has one that does not, the fourth none."""
    draw = np.random.default_rng(0).normal(size=(6, 3))
    labels, ours = np.array([0, 1, 0, 1, 2, 1]), np.array([1, 1, 1, 1, 0, 0])
    batch = {"labels": jnp.asarray(labels)}
    found = class_means(jnp.asarray(draw), batch, 4)
    expected = [draw[labels == c].mean(0) for c in range(3)]
    np.testing.assert_allclose(found, [*expected, np.zeros(3)], rtol=1e-12)
    found = class_means(jnp.asarray(draw), batch | {"example_mask": jnp.asarray(ours * 1.0)}, 4)
    expected = [draw[[0, 2]].mean(0), draw[[1, 3]].mean(0)]
    np.testing.assert_allclose(found, [*expected, np.zeros(3), np.zeros(3)], rtol=1e-12)


def test_a_loss_is_of_the_classes_and_the_examples_that_count(x64):
    """The highest score is of a class that the task lacks."""
    logits = np.random.default_rng(1).normal(size=(5, 4)) + np.array([0, 0, 9, 0])
    logits[0, 3], logits[1, 3], logits[3, 0], logits[4, 0] = 5, 6, 5, 6
    labels = np.array([3, 0, 1, 0, 0])
    kept = np.delete(logits, 2, axis=1)
    logs = kept - np.log(np.exp(kept).sum(1, keepdims=True))
    losses = -logs[np.arange(5), np.array([2, 0, 1, 0, 0])]
    right = kept.argmax(1) == np.array([2, 0, 1, 0, 0])
    batch = {"labels": jnp.asarray(labels), "class_mask": jnp.array([1.0, 1.0, 0.0, 1.0])}
    for ours in (np.ones(5), np.array([1.0, 1.0, 1.0, 0.0, 1.0]), np.zeros(5)):
        masks = {} if ours.all() else {"example_mask": jnp.asarray(ours)}
        loss, aux = classify(jnp.asarray(logits), batch | masks)
        np.testing.assert_allclose(loss, losses @ ours / max(1, ours.sum()), rtol=1e-12)
        np.testing.assert_allclose(aux["accuracy"], right @ ours / max(1, ours.sum()), rtol=1e-12)


def test_leopard_starts_from_two_networks_of_their_own_at_glorots_scale():
    algorithm = metajax.leopard(features, 300, 2, SGD, 1, width=100, rng=jax.random.key(0))
    params = algorithm.init({"kernel": jnp.ones(1)})
    assert params["encoder"] == {"kernel": jnp.ones(1)}
    kernels = {}
    for name, size in (("generator", 101), ("projection", 100)):
        first, second = params[name]["first"], params[name]["second"]
        assert (first["kernel"].shape, second["kernel"].shape) == ((300, 100), (100, size))
        for layer, sizes in ((first, 300 + 100), (second, 100 + size)):
            np.testing.assert_array_equal(layer["bias"], np.zeros(len(layer["kernel"].T)))
            np.testing.assert_allclose(np.std(layer["kernel"]), (2 / sizes) ** 0.5, rtol=0.04)
        kernels |= {name: first["kernel"], f"{name} second": second["kernel"]}
    shared = [np.asarray(kernel)[:100, :100].ravel() for kernel in kernels.values()]
    assert np.abs(np.corrcoef(shared) - np.eye(4)).max() < 0.05
    other = metajax.leopard(features, 300, 2, SGD, 1, width=100, rng=jax.random.key(1))
    assert np.any(other.init(None)["generator"]["first"]["kernel"] != kernels["generator"])
