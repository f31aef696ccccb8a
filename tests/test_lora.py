"""Adapters add a product of two factors to a kernel, and the inner loop can move them alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import metajax
from metajax import lora


@pytest.fixture
def params(x64):
    return lora.init(
        problems.mlp_params(),
        rank=2,
        chosen=lambda path: path.endswith("kernel"),
        rng=jax.random.key(0),
    )


def test_fresh_adapters_change_nothing(params):
    chex.assert_trees_all_equal(lora.merge(params), problems.mlp_params())
    assert params["adapters"]["first"]["bias"] is None


def test_a_merge_adds_the_product(params):
    factors = params["adapters"]["first"]["kernel"]
    factors["up"] = jnp.ones_like(factors["up"])
    found = lora.merge(params)["first"]["kernel"]
    expected = np.asarray(params["base"]["first"]["kernel"]) + np.asarray(
        factors["down"]
    ) @ np.ones(factors["up"].shape)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_stacked_layers_have_an_adapter_each(x64):
    params = lora.init(
        {"kernel": jnp.ones((3, 4, 5))}, rank=2, chosen=lambda _: True, rng=jax.random.key(0)
    )
    factors = params["adapters"]["kernel"]
    assert (factors["down"].shape, factors["up"].shape) == ((3, 4, 2), (3, 2, 5))


@pytest.mark.parametrize("low_memory", [False, True])
def test_the_inner_loop_moves_adapters_and_the_outer_everything(params, low_memory):
    algorithm = metajax.maml(
        lora.loss(problems.mlp_loss),
        optax.sgd(0.1),
        3,
        adapted=lora.is_adapter,
        low_memory=low_memory,
    )
    task = problems.one_task()
    adapted, _ = algorithm.adapt(params, task.support, None)
    chex.assert_trees_all_equal(adapted["base"], params["base"])
    assert np.abs(adapted["adapters"]["first"]["kernel"]["up"]).max() > 0
    grads, _ = algorithm.meta_grad(params, task, None)
    assert np.abs(grads["base"]["first"]["kernel"]).max() > 0
    loss = lambda p: algorithm.meta_grad(p, task, None)[1].query_loss  # noqa: E731
    direction = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(1), leaf.shape), params)
    at = lambda size: loss(optax.tree.add_scale(params, size, direction))  # noqa: E731
    slope = optax.tree.vdot(grads, direction)
    np.testing.assert_allclose((at(1e-5) - at(-1e-5)) / 2e-5, slope, rtol=1e-6)


@pytest.mark.parametrize(("rank", "chosen"), [(0, "kernel"), (2, "bias"), (2, "nothing")])
def test_nonsense_is_refused(x64, rank, chosen):
    with pytest.raises(ValueError, match="give a rank of at least 1 and choose kernels"):
        lora.init(
            problems.mlp_params(),
            rank=rank,
            chosen=lambda path: path.endswith(chosen),
            rng=jax.random.key(0),
        )
