"""Sums are computed in at least float32; each case here would fail in a lower precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.algorithms.clipping import clip_by_global_norm
from metajax.algorithms.prototypes import class_means, classify
from metajax.models import Transformer, TransformerConfig, classification_loss
from metajax.training.outer import global_norm
from metajax.training.parallel import task_mesh


def slope_loss(params, batch, rng):
    """The gradient of each entry is the batch; aux is the batch too."""
    return (params["w"].sum() * batch).astype(jnp.float32), {"slope": batch}


def step(slopes, size=2, algorithm=None, **settings):
    """The parameters after a step of SGD on tasks of these slopes, and the metrics."""
    outer = metajax.outer_loop(
        algorithm or metajax.supervised(slope_loss), optax.sgd(1), **settings
    )
    state = outer.init({"w": jnp.zeros(size, slopes.dtype)}, jax.random.key(0))
    state, metrics = outer.step(state, metajax.Task(slopes, slopes))
    assert state.meta_params["w"].dtype == slopes.dtype
    return state.meta_params["w"], metrics


ONE = {"devices": jax.devices()[:1]}
PLACES = {
    "one by one": {**ONE, "chunk_size": 1},
    "chunks": {**ONE, "chunk_size": 2},
    "together": {**ONE, "chunk_size": 512},
    "devices": {"devices": jax.devices()[:2]},
    "shards": {"mesh": task_mesh(2, jax.devices()[:2])},
}


@pytest.mark.parametrize("place", PLACES)
def test_many_small_gradients_add_up(place):
    """In bfloat16, 256 + 1 is 256."""
    params, metrics = step(jnp.ones(512, jnp.bfloat16), **PLACES[place])
    np.testing.assert_array_equal(params, [-1, -1])
    assert metrics.grad_norm == np.float32(np.sqrt(2))
    assert metrics.query_aux["slope"] == 1


@pytest.mark.parametrize("place", PLACES)
def test_large_gradients_do_not_overflow(place):
    """In float16, neither sums nor squares may exceed 65,504."""
    params, metrics = step(jnp.full(512, 1000, jnp.float16), 5000, **PLACES[place])
    assert not metrics.skipped
    np.testing.assert_array_equal(params, np.full(5000, -1000))
    np.testing.assert_allclose(metrics.grad_norm, 1000 * np.sqrt(5000), rtol=1e-6)
    assert metrics.query_aux["slope"] == 1000


@pytest.mark.parametrize("place", ["devices", "shards"])
def test_the_mean_over_devices_is_wide(place):
    """In bfloat16, 256 on one device and 1 on the other have the mean 128."""
    _, metrics = step(jnp.array([256, 1], jnp.bfloat16), **PLACES[place])
    np.testing.assert_allclose(metrics.grad_norm, 128.5 * np.sqrt(2), rtol=1e-6)
    assert float(metrics.query_aux["slope"]) == 128.5  # An array would be compared in its dtype.


def test_reptiles_mean_is_wide():
    algorithm = metajax.reptile(slope_loss, optax.sgd(1.0), 1)
    params, _ = step(jnp.ones(512, jnp.bfloat16), algorithm=algorithm, **PLACES["one by one"])
    np.testing.assert_array_equal(params, [-1, -1])


def test_sums_of_float32_stay_float32(x64):
    params, metrics = step(jnp.ones(4, jnp.float32), **PLACES["chunks"])
    assert metrics.query_aux["slope"].dtype == metrics.grad_norm.dtype == params.dtype == "float32"


def test_the_optimizer_sees_the_dtype_of_the_parameters():
    outer = metajax.outer_loop(metajax.supervised(slope_loss), optax.adam(0.1), **ONE)
    state = outer.init({"w": jnp.zeros(2, jnp.bfloat16)}, jax.random.key(0))
    after, _ = outer.step(state, metajax.Task(None, jnp.ones(4, jnp.bfloat16)))
    assert [leaf.dtype for leaf in jax.tree.leaves(after[:3])] == [
        leaf.dtype for leaf in jax.tree.leaves(state[:3])
    ]


def test_float64_stays_float64(x64):
    slopes = np.random.default_rng(0).normal(size=512)
    params, metrics = step(jnp.asarray(slopes), **PLACES["one by one"])
    np.testing.assert_allclose(params, -slopes.mean(), rtol=1e-13)
    assert metrics.query_aux["slope"].dtype == metrics.grad_norm.dtype == jnp.float64


def test_clipping_is_that_of_optax_and_has_a_derivative_at_zero(x64):
    """Finite, where that of optax is not, and that of optax elsewhere."""
    ours, theirs = clip_by_global_norm(2.0), optax.clip_by_global_norm(2.0)

    @functools.partial(jax.jit, static_argnums=0)
    def clipped(by, grads):
        return by.update(grads, optax.EmptyState())[0]

    for scale in (0.5, 3.0):
        grads = {"w": scale * jnp.array([1.0, -2.0]), "b": scale * jnp.ones(())}
        slopes = [jax.jacobian(lambda g, by=by: clipped(by, g))(grads) for by in (ours, theirs)]
        found, wanted = clipped(ours, grads), clipped(theirs, grads)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), found, wanted)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), *slopes)
        curves = [jax.hessian(lambda g, by=by: clipped(by, g)["b"])(grads) for by in (ours, theirs)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), *curves)
    zero = jax.jacobian(lambda g: clipped(ours, g))(jnp.zeros(2))
    np.testing.assert_array_equal(zero, np.eye(2))


@pytest.mark.parametrize(("entry", "clipped"), [(300, 0.5), (40_000, 0.5), (0.25, 0.25)])
def test_clipping_takes_the_norm_in_float32(entry, clipped):
    grads = {"w": jnp.full(4, entry, jnp.float16)}
    found, _ = clip_by_global_norm(1.0).update(grads, optax.EmptyState())
    assert found["w"].dtype == jnp.float16
    np.testing.assert_allclose(found["w"], clipped, rtol=1e-3)
    np.testing.assert_allclose(global_norm(grads), 2 * entry, rtol=1e-6)


@pytest.mark.parametrize("solver", ["cg", "neumann"])
def test_an_implicit_gradient_does_not_overflow(solver):
    """The query's slope at the minimum is -200, and 3 * 200^2 is above 65,504."""

    def loss_fn(params, batch, rng):
        return (jnp.square(params.astype(jnp.float32) - batch) / 2).sum(), {}

    algorithm = metajax.imaml(
        loss_fn, optax.sgd(0.5), 10, prox_weight=2.0, solver=solver, solver_steps=9
    )
    goal = jnp.full(3, 300.0)
    grads, _ = algorithm.meta_grad(jnp.zeros(3, jnp.float16), metajax.Task(goal, goal), None)
    assert grads.dtype == jnp.float16
    np.testing.assert_allclose(grads, -300 * (2 / 3) ** 2, rtol=1e-2)


def test_means_of_many_examples():
    """In bfloat16, 257 is 256."""
    batch = {"labels": jnp.zeros(257, int), "example_mask": jnp.ones(257, jnp.bfloat16)}
    means = class_means(jnp.full((257, 1), 100, jnp.bfloat16), batch, 2)
    assert means.dtype == jnp.float32
    assert means.tolist() == [[100], [0]]
    loss, aux = classify(jnp.zeros((257, 2), jnp.bfloat16), batch)
    np.testing.assert_allclose((loss, aux["accuracy"]), (np.log(2), 1), rtol=1e-6)

    model = Transformer(
        TransformerConfig(9, hidden_size=12, num_hidden_layers=1), head="classification"
    )
    ids = jnp.ones((257, 1), int)
    batch |= {"input_ids": ids, "attention_mask": ids, "token_type_ids": 0 * ids}
    params = model.init(jax.random.key(0))
    one = jax.tree.map(lambda leaf: leaf[:1], batch)
    loss_fn = jax.jit(classification_loss(model))
    expected, _ = loss_fn(params, one, None)
    loss, _ = loss_fn(params, batch, None)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
