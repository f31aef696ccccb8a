"""Products are counted as often as they are computed."""

import jax
import jax.numpy as jnp
import optax
import pytest

import metajax
from metajax.algorithms.inner_loop import mean_recomputed_steps
from metajax.training.flops import count_flops

X, W = jnp.ones((8, 4)), jnp.ones((4, 4))
ONE = 2 * 8 * 4 * 4


def loop(x, w, length=5):
    return jax.lax.scan(lambda carry, _: (carry @ w, None), x, length=length)[0]


def branch(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda: loop(x, w), lambda: x @ w)


CASES = {
    "a product": (lambda x, w: x @ w, 1),
    "a loop": (loop, 5),
    "a gradient": (jax.grad(lambda x, w: loop(x, w).sum(), argnums=(0, 1)), 15),
    "recomputed": (
        jax.value_and_grad(lambda x, w: jax.checkpoint(loop)(x, w).sum(), argnums=(0, 1)),
        20,
    ),
    "a batch": (jax.jit(jax.vmap(lambda x, w: (x[None] @ w)[0], (0, None))), 1),
    "the dearest branch": (branch, 5),
    "what no result needs": (lambda x, w: (loop(x, w) @ w, x @ w)[1], 1),
}


@pytest.mark.parametrize("name", CASES)
def test_count(name):
    function, products = CASES[name]
    assert count_flops(function, X, W) == products * ONE


def test_it_agrees_with_the_compiler_without_loops():
    def function(x, w):
        return jnp.einsum("ab,bc->ac", x, w) @ w.T

    analysis = jax.jit(function).lower(X, W).compile().cost_analysis()
    assert count_flops(function, X, W) == analysis["flops"]


def test_a_while_loop_runs_as_often_as_one_says():
    def function(x, w):
        return jax.lax.fori_loop(0, x[0, 0].astype(int), lambda _, carry: carry @ w, x)

    assert count_flops(function, X, W, while_length=2.5) == 2.5 * ONE
    assert count_flops(function, X, W) == ONE
    repeated = lambda x, w: jax.lax.scan(lambda x, _: (function(x, w), None), x, length=3)[0]  # noqa: E731
    assert count_flops(jax.jit(repeated), X, W, while_length=2.5) == 3 * 2.5 * ONE


@pytest.mark.parametrize(("num_steps", "gradients"), [(1, 0), (2, 1), (8, 12)])
def test_low_memory_counts_the_steps_taken_again(num_steps, gradients):
    """Of a loss of one product a gradient with respect to the parameters is two."""

    def flops(low_memory, **settings):
        def loss_fn(params, batch, rng):
            return jnp.tanh(batch @ params).sum(), {}

        algorithm = metajax.maml(loss_fn, optax.sgd(0.1), num_steps, low_memory=low_memory)
        run = lambda params: algorithm.meta_grad(params, metajax.Task(X, X), None)[0]  # noqa: E731
        return count_flops(run, W, **settings) / ONE

    recomputed = mean_recomputed_steps(num_steps)
    assert recomputed * num_steps == gradients
    once = flops(True, while_length=0)
    assert flops(True, while_length=recomputed) == once + 2 * gradients
    # The same products but for the forward pass, which is not kept.
    assert once == flops(False) + num_steps
