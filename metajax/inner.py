"""The inner loop: K steps of an optax optimizer on one support set."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metajax.types import AdaptInfo, Batch, Key, LossFn, Params


def fold_in(rng: Key | None, index: int | jax.Array) -> Key | None:
    """The key of one of many uses of `rng`; no key gives no key."""
    return None if rng is None else jax.random.fold_in(rng, index)


def inner_loop(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    first_order: bool = False,
) -> Callable[[Params, Batch, Key | None], tuple[Params, AdaptInfo]]:
    """Makes the function that adapts parameters to a support set.

    Args:
        loss_fn: the loss to descend.
        optimizer: any optax optimizer. Its state starts afresh for each task. Adam needs
            `eps_root > 0` on the second-order path: the second derivative of the square root
            is infinite where a gradient is exactly zero.
        num_steps: K >= 0.
        first_order: treat the updates as constants, so that the gradient through the loop
            is the identity (Finn et al. 2017, section 5.2).

    Returns:
        `(params, support, rng) -> (adapted_params, AdaptInfo)`, differentiable.
    """
    if num_steps < 0:
        raise ValueError(f"num_steps is {num_steps}: give a number of inner steps >= 0")
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

    def run(params: Params, batch: Batch, rng: Key | None) -> tuple[Params, AdaptInfo]:
        if num_steps == 0:
            return params, AdaptInfo(jnp.zeros(0))

        def step(carry: tuple, index: jax.Array) -> tuple[tuple, jax.Array]:
            params, opt_state = carry
            # Updates computed at a constant point are constants.
            point = jax.lax.stop_gradient(params) if first_order else params
            (loss, _), grads = value_and_grad(point, batch, fold_in(rng, index))
            updates, opt_state = optimizer.update(grads, opt_state, point)
            return (optax.apply_updates(params, updates), opt_state), loss

        start = jax.lax.stop_gradient(params) if first_order else params
        carry = (params, optimizer.init(start))
        (params, _), losses = jax.lax.scan(step, carry, jnp.arange(num_steps))
        return params, AdaptInfo(losses)

    return run
