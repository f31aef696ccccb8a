"""The inner loop: K steps of an optax optimizer on one support set."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from metajax.hypergrad import InnerLoss, forward_over_reverse, reverse
from metajax.types import AdaptInfo, Batch, Key, Params


class InnerLoop(Protocol):
    """K steps on one support set."""

    def __call__(
        self,
        optimizer: optax.GradientTransformation,
        adapted: Params,
        frozen: Params,
        batch: Batch,
        rng: Key | None,
        /,
        watch: Callable[[Params], Any] = ...,
    ) -> tuple[Params, AdaptInfo, Any]:
        """Returns the adapted parameters, the losses, and what `watch` saw after each step."""
        ...


def fold_in(rng: Key | None, index: int | jax.Array) -> Key | None:
    """The key of one of many uses of `rng`; no key gives no key."""
    return None if rng is None else jax.random.fold_in(rng, index)


def inner_loop(
    loss_fn: InnerLoss,
    num_steps: int,
    *,
    first_order: bool = False,
    low_memory: bool = False,
    unroll: bool = False,
) -> InnerLoop:
    """Makes the function that adapts parameters to a support set.

    Args:
        loss_fn: `(adapted, frozen, batch, rng) -> loss`, to descend in `adapted`.
        num_steps: K >= 0.
        first_order: treat the gradients as constants, so that the gradient through the loop
            is the identity (Finn et al. 2017, section 5.2).
        low_memory: differentiate forward over reverse (see `metajax.hypergrad`), and keep the
            parameters of about 2 sqrt(K) steps rather than of all K: the others are computed
            again, a group of sqrt(K) at a time.
        unroll: compile the steps one after the other in place of a loop: a tenth faster on a CPU,
            more to compile.

    Returns:
        `(optimizer, adapted, frozen, support, rng, watch) -> (adapted, AdaptInfo, watched)`,
        differentiable. The optimizer is any of optax; its state starts afresh. It may hold what is
        differentiated: learned rates, say. Adam needs `eps_root > 0` on the second-order path: the
        second derivative of the square root is infinite where a gradient is exactly zero. `watch`
        sees the adapted parameters after each step; its results are stacked, [K, ...].
    """
    if num_steps < 0:
        raise ValueError(f"num_steps is {num_steps}: give a number of inner steps >= 0")
    low_memory = low_memory and not first_order
    gradient = forward_over_reverse(loss_fn) if low_memory else reverse(loss_fn)
    group = math.isqrt(num_steps) if low_memory else 1

    def run(
        optimizer: optax.GradientTransformation,
        adapted: Params,
        frozen: Params,
        batch: Batch,
        rng: Key | None,
        watch: Callable[[Params], Any] = lambda adapted: None,
    ) -> tuple[Params, AdaptInfo, Any]:
        if num_steps == 0:
            return adapted, AdaptInfo(jnp.zeros(0)), None
        if first_order:
            frozen, batch = jax.lax.stop_gradient((frozen, batch))

        def step(carry: tuple, index: jax.Array) -> tuple[tuple, Any]:
            adapted, opt_state = carry
            # Gradients at a constant point are constants.
            point = jax.lax.stop_gradient(adapted) if first_order else adapted
            loss, grads = gradient(point, frozen, batch, fold_in(rng, index))
            updates, opt_state = optimizer.update(grads, opt_state, point)
            adapted = optax.apply_updates(adapted, updates)
            return (adapted, opt_state), (loss, watch(adapted))

        start = jax.lax.stop_gradient(adapted) if first_order else adapted
        carry = (adapted, optimizer.init(start))
        (adapted, _), (losses, watched) = _scan(step, carry, num_steps, group, unroll)
        return adapted, AdaptInfo(losses), watched

    return run


def _scan(step: Callable, carry: Any, count: int, group: int, unroll: bool) -> tuple[Any, Any]:
    """`jax.lax.scan` over 0 .. count - 1 whose backward pass repeats groups of steps."""
    if group == 1:
        return jax.lax.scan(step, carry, jnp.arange(count), unroll=unroll)

    def run_group(carry: Any, indices: jax.Array) -> tuple[Any, Any]:
        return jax.lax.scan(step, carry, indices)

    whole = count - count % group
    repeated = jax.checkpoint(run_group, prevent_cse=False)  # A scan keeps CSE out.
    carry, found = jax.lax.scan(repeated, carry, jnp.arange(whole).reshape(-1, group))
    found = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), found)
    if whole == count:
        return carry, found
    carry, last = jax.checkpoint(run_group)(carry, jnp.arange(whole, count))
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), found, last)
