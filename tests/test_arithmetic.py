"""Products are counted as often as they are computed."""

import jax
import jax.numpy as jnp
import pytest

from metajax.arithmetic import count_flops

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
    "recomputed": (jax.grad(lambda x, w: jax.checkpoint(loop)(x, w).sum(), argnums=(0, 1)), 20),
    "a batch": (jax.jit(jax.vmap(lambda x, w: (x[None] @ w)[0], (0, None))), 1),
    "the dearest branch": (branch, 5),
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
