"""How the meta-gradient passes through the gradient of an inner step.

Both engines are exact; they differ in what they keep and what they compute:

- reverse: JAX differentiates the gradient's own backward pass. It keeps the activations of every
  inner step, forward and backward.
- forward over reverse: the derivative of an inner gradient along a cotangent v is a
  Hessian-vector product, for the Hessian is symmetric, and that is one `jvp` of the gradient
  (Pearlmutter 1994). It keeps the parameters of every inner step and nothing else, and computes
  each step's gradient a second time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.tree import combine, partition
from metajax.types import Batch, Key, Params

# (adapted, frozen, batch, rng) -> loss: what the inner steps change, and what they only read.
InnerLoss = Callable[[Params, Params, Batch, Key | None], jax.Array]
# (adapted, frozen, batch, rng) -> (loss, gradient with respect to adapted).
InnerGrad = Callable[[Params, Params, Batch, Key | None], tuple[jax.Array, Params]]


def reverse(loss_fn: InnerLoss) -> InnerGrad:
    """The gradient as `jax.value_and_grad` has it, to be differentiated as JAX does."""
    value_and_grad = jax.value_and_grad(loss_fn)

    def run(
        adapted: Params, frozen: Params, batch: Batch, rng: Key | None
    ) -> tuple[jax.Array, Params]:
        loss, grads = value_and_grad(adapted, frozen, batch, rng)
        return jax.lax.stop_gradient(loss), grads

    return run


def forward_over_reverse(loss_fn: InnerLoss) -> InnerGrad:
    """The same gradient with a backward pass of its own: one `jvp` of the gradient.

    Args:
        loss_fn: `(adapted, frozen, batch, rng) -> loss`. It must not close over anything that is
            differentiated: what the meta-gradient has to reach is in its arguments, of which all
            floating-point arrays are reached.
    """

    def loss_of(adapted: Params, smooth: Any, rest: Any) -> jax.Array:
        (frozen, batch), rng = combine(smooth, rest[0]), rest[1]
        return loss_fn(adapted, frozen, batch, rng)

    def plain(adapted: Params, smooth: Any, rest: Any) -> tuple[jax.Array, Params]:
        return jax.value_and_grad(loss_of)(adapted, smooth, rest)

    def keep(adapted: Params, smooth: Any, rest: Any) -> tuple[Any, Any]:
        return plain(adapted, smooth, rest), (adapted, smooth, rest)

    def hessian_vector_product(residuals: Any, cotangents: Any) -> tuple[Params, Any, None]:
        adapted, smooth, rest = residuals
        _, direction = cotangents  # The loss is only looked at.
        gradient = jax.grad(loss_of, argnums=(0, 1))
        # The frozen part too: its mixed second derivatives along the adapted part's direction.
        _, (to_adapted, to_smooth) = jax.jvp(
            lambda adapted: gradient(adapted, smooth, rest), (adapted,), (direction,)
        )
        return to_adapted, to_smooth, None

    gradient = jax.custom_vjp(plain)
    gradient.defvjp(keep, hessian_vector_product)

    def run(
        adapted: Params, frozen: Params, batch: Batch, rng: Key | None
    ) -> tuple[jax.Array, Params]:
        smooth, rest = partition((frozen, batch), _is_float)
        loss, grads = gradient(adapted, smooth, (rest, rng))
        return jax.lax.stop_gradient(loss), grads

    return run


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype if hasattr(leaf, "dtype") else type(leaf), jnp.inexact)
