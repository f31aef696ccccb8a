"""Engines that differentiate through the gradient of an inner step.

They differ in memory and time:

- reverse: JAX differentiates the backward pass of the inner gradient. It stores the activations of
  all inner steps, forward and backward, or with `products_only` just the results of their matrix
  products; then elementwise operations are computed again, but no product.
- forward over reverse: the Hessian is symmetric, so the derivative of an inner gradient along a
  cotangent v is a Hessian-vector product. One `jvp` of the gradient computes it (Pearlmutter 1994;
  for meta-learning, MixFlow-MG: Kemaev et al. 2025, arXiv:2505.00793).
  This engine stores only the parameters of an inner step, and computes the gradient of the step
  twice. `scans.checkpointed_scan` then stores the parameters of only a few steps. It is not exact
  if the loss has derivative rules of its own that are not those of a function, such as a gradient
  that is clipped on its way back.

With either engine, `scans.segmented_scan` stores about sqrt(K) of K steps.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from metajax.dtypes import is_float
from metajax.tree import combine, partition
from metajax.types import Batch, Key, Params

# (adapted, frozen, batch, rng) -> loss: inner steps update `adapted` and only read `frozen`.
InnerLoss = Callable[[Params, Params, Batch, Key | None], jax.Array]
# (adapted, frozen, batch, rng) -> (loss, gradient with respect to adapted).
InnerGrad = Callable[[Params, Params, Batch, Key | None], tuple[jax.Array, Params]]


def reverse(
    loss_fn: InnerLoss,
    *,
    differentiable_loss: bool = False,
    products_only: bool = False,
    unrolled: bool = False,
) -> InnerGrad:
    """Return the gradient by `jax.value_and_grad`, differentiated by JAX.

    Args:
        loss_fn: `(adapted, frozen, batch, rng) -> loss`.
        differentiable_loss: whether the returned loss is differentiable; otherwise it is a
            constant.
        products_only: whether to store only the results of matrix products, also of those in a
            `jax.checkpoint` of the loss.
        unrolled: whether the gradient is taken outside of a loop.
    """

    def run(
        adapted: Params, frozen: Params, batch: Batch, rng: Key | None
    ) -> tuple[jax.Array, Params]:
        def value_and_grad(adapted: Params) -> tuple[jax.Array, Params]:
            return jax.value_and_grad(loss_fn)(adapted, frozen, batch, rng)

        if products_only:
            value_and_grad = jax.checkpoint(
                value_and_grad,
                policy=jax.checkpoint_policies.dots_saveable,
                # In a loop, XLA could not merge what is computed again with the first time.
                prevent_cse=unrolled,
            )
        loss, grads = value_and_grad(adapted)
        return loss if differentiable_loss else jax.lax.stop_gradient(loss), grads

    return run


def forward_over_reverse(loss_fn: InnerLoss, *, differentiable_loss: bool = False) -> InnerGrad:
    """Return the same gradient with a custom backward pass: one `jvp` of the gradient.

    Args:
        loss_fn: `(adapted, frozen, batch, rng) -> loss`. It must not close over anything that is
            differentiated, because the meta-gradient reaches only its arguments (all
            floating-point arrays in them).
        differentiable_loss: as for `reverse`. It costs nothing, because the `jvp` also returns the
            gradient.
    """

    def run(
        adapted: Params, frozen: Params, batch: Batch, rng: Key | None
    ) -> tuple[jax.Array, Params]:
        floats, others = partition((frozen, batch, rng), is_float)
        loss, grads = _value_and_grad(loss_fn, differentiable_loss, adapted, floats, others)
        return loss if differentiable_loss else jax.lax.stop_gradient(loss), grads

    return run


def second_derivatives(
    loss_fn: InnerLoss, adapted: Params, floats: Any, others: Any, direction: Params
) -> tuple[Params, Any]:
    """Compute the second derivatives of an inner loss along a direction.

    Args:
        loss_fn: `(adapted, frozen, batch, rng) -> loss`.
        adapted: the point at which to differentiate.
        floats: (frozen, batch, rng) with None for the leaves without gradients.
        others: (frozen, batch, rng) with None for the leaves in `floats`.
        direction: pytree like `adapted`.

    Returns:
        The Hessian-vector product in `adapted`, and the mixed derivatives in `floats`.
    """
    return _gradient_and_slope(loss_fn, adapted, floats, others, direction)[1]


def _gradient_and_slope(
    loss_fn: InnerLoss, adapted: Params, floats: Any, others: Any, direction: Params
) -> tuple[Any, Any]:
    """Return the gradient by (adapted, floats), and its derivative along a direction."""
    gradient = jax.grad(functools.partial(_loss_of, loss_fn), argnums=(0, 1))
    return jax.jvp(lambda adapted: gradient(adapted, floats, others), (adapted,), (direction,))


def _loss_of(loss_fn: InnerLoss, adapted: Params, floats: Any, others: Any) -> jax.Array:
    frozen, batch, rng = combine(floats, others)
    return loss_fn(adapted, frozen, batch, rng)


def _plain(
    loss_fn: InnerLoss, differentiable_loss: bool, adapted: Params, floats: Any, others: Any
) -> tuple[jax.Array, Params]:
    return jax.value_and_grad(functools.partial(_loss_of, loss_fn))(adapted, floats, others)


def _plain_fwd(
    loss_fn: InnerLoss, differentiable_loss: bool, adapted: Params, floats: Any, others: Any
) -> tuple[Any, Any]:
    found = _plain(loss_fn, differentiable_loss, adapted, floats, others)
    return found, (adapted, floats, others)


def _plain_bwd(
    loss_fn: InnerLoss, differentiable_loss: bool, residuals: Any, cotangents: Any
) -> tuple[Params, Any, None]:
    adapted, floats, others = residuals
    to_loss, direction = cotangents
    grads, slopes = _gradient_and_slope(loss_fn, adapted, floats, others, direction)
    if differentiable_loss:  # Otherwise the loss is only reported.
        slopes = jax.tree.map(lambda s, g: s + (to_loss * g).astype(s.dtype), slopes, grads)
    return (*slopes, None)


_value_and_grad = jax.custom_vjp(_plain, nondiff_argnums=(0, 1))
_value_and_grad.defvjp(_plain_fwd, _plain_bwd)
