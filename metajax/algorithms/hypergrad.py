"""Three engines that differentiate through the gradient of an inner step.

All are exact. They differ in memory and time:

- reverse: JAX differentiates the backward pass of the inner gradient. It stores the activations of
  all inner steps, forward and backward.
- forward over reverse: the Hessian is symmetric, so the derivative of an inner gradient along a
  cotangent v is a Hessian-vector product. One `jvp` of the gradient computes it (Pearlmutter 1994).
  This engine stores only the parameters of an inner step, and computes the gradient of the step
  twice. `scans.checkpointed_scan` then stores the parameters of only a few steps.
- linearized: the same Hessian-vector product, by the linear map that `jax.linearize` returns with
  the gradient. This engine stores the results of a step's matrix products, forward and backward,
  and computes no product twice. What lies between products is computed again.

With any engine, `scans.segmented_scan` stores about sqrt(K) of K steps.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from metajax.algorithms.closures import without_closure
from metajax.dtypes import is_float
from metajax.tree import combine, partition
from metajax.types import Batch, Key, Params

# (adapted, frozen, batch, rng) -> loss: inner steps update `adapted` and only read `frozen`.
InnerLoss = Callable[[Params, Params, Batch, Key | None], jax.Array]
# (adapted, frozen, batch, rng) -> (loss, gradient with respect to adapted).
InnerGrad = Callable[[Params, Params, Batch, Key | None], tuple[jax.Array, Params]]


def reverse(loss_fn: InnerLoss, *, differentiable_loss: bool = False) -> InnerGrad:
    """Return the gradient by `jax.value_and_grad`, differentiated by JAX.

    Args:
        loss_fn: `(adapted, frozen, batch, rng) -> loss`.
        differentiable_loss: whether the returned loss is differentiable; otherwise it is a
            constant.
    """
    value_and_grad = jax.value_and_grad(loss_fn)

    def run(
        adapted: Params, frozen: Params, batch: Batch, rng: Key | None
    ) -> tuple[jax.Array, Params]:
        loss, grads = value_and_grad(adapted, frozen, batch, rng)
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


def linearized(loss_fn: InnerLoss, *, differentiable_loss: bool = False) -> InnerGrad:
    """Return the same gradient, with its linearization as the backward pass.

    Args:
        loss_fn: as for `forward_over_reverse`.
        differentiable_loss: as for `reverse`. It stores the gradient too.
    """

    def run(
        adapted: Params, frozen: Params, batch: Batch, rng: Key | None
    ) -> tuple[jax.Array, Params]:
        floats, others = partition((frozen, batch, rng), is_float)
        loss, grads = _linearizable(loss_fn, differentiable_loss, adapted, floats, others)
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
        slopes = _add_scaled(slopes, to_loss, grads)
    return (*slopes, None)


def _add_scaled(slopes: Any, to_loss: jax.Array, grads: Any) -> Any:
    return jax.tree.map(lambda s, g: s + (to_loss * g).astype(s.dtype), slopes, grads)


_value_and_grad = jax.custom_vjp(_plain, nondiff_argnums=(0, 1))
_value_and_grad.defvjp(_plain_fwd, _plain_bwd)


def _linearize(
    loss_fn: InnerLoss, differentiable_loss: bool, adapted: Params, floats: Any, others: Any
) -> tuple[Any, Any]:
    # Otherwise `linearize` would store what lies between the products, too.
    @functools.partial(
        jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False
    )
    def gradient(adapted: Params) -> tuple[Any, jax.Array]:
        loss_of = functools.partial(_loss_of, loss_fn)
        loss, grads = jax.value_and_grad(loss_of, argnums=(0, 1))(adapted, floats, others)
        return grads, loss

    grads, slopes_along, loss = jax.linearize(gradient, adapted, has_aux=True)
    slopes, constants = without_closure(slopes_along, adapted)
    stored = grads if differentiable_loss else None
    return (loss, grads[0]), (jax.tree_util.Partial(slopes, constants), stored)


def _apply_linearization(
    loss_fn: InnerLoss, differentiable_loss: bool, residuals: Any, cotangents: Any
) -> tuple[Params, Any, None]:
    (slopes_along, grads), (to_loss, direction) = residuals, cotangents
    slopes = slopes_along(direction)
    if differentiable_loss:
        slopes = _add_scaled(slopes, to_loss, grads)
    return (*slopes, None)


_linearizable = jax.custom_vjp(_plain, nondiff_argnums=(0, 1))
_linearizable.defvjp(_linearize, _apply_linearization)
