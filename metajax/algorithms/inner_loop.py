"""The inner loop: K steps of an optax optimizer on one support set."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from metajax.algorithms.hypergrad import InnerLoss, checkpointed_scan, forward_over_reverse, reverse
from metajax.types import AdaptInfo, Batch, Key, Params

# `low_memory` keeps the parameters before one inner step in this many.
_KEPT_EVERY = 4


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
        per_step_fn: Callable[[Params], Any] | None = ...,
    ) -> tuple[Params, AdaptInfo, Any]:
        """Returns the adapted parameters, the losses, and the results of `per_step_fn`."""
        ...


def fold_in(rng: Key | None, index: int | jax.Array) -> Key | None:
    """The key of one of many uses of `rng`; no key gives no key."""
    return None if rng is None else jax.random.fold_in(rng, index)


def mean_replays(num_steps: int) -> float:
    """How many inner steps `low_memory` takes again for each, on average, going back."""
    return sum(index % _KEPT_EVERY for index in range(num_steps)) / max(1, num_steps)


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
        low_memory: differentiate forward over reverse, and keep the parameters of every fourth
            step alone; from these the backward pass takes the steps between again. Cannot be
            differentiated twice in reverse mode.
        unroll: compile the steps one after the other in place of a loop: a tenth faster on a CPU,
            more to compile.

    Returns:
        `(optimizer, adapted, frozen, support, rng, per_step_fn) -> (adapted, AdaptInfo, seen)`,
        differentiable. The optimizer is any of optax, with a new state. It may hold values that are
        differentiated, such as learned rates. Adam needs `eps_root > 0` on the second-order path:
        the second derivative of the square root is infinite where a gradient is exactly zero.
        `per_step_fn` is called with the adapted parameters after each step; its results are
        stacked, [K, ...].

    Raises:
        ValueError: num_steps is below 0.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> from metajax.algorithms.inner_loop import inner_loop
        >>> def loss_fn(adapted, frozen, batch, rng):
        ...     return jnp.sum((adapted - batch) ** 2) / 2
        >>> loop = inner_loop(loss_fn, num_steps=2)
        >>> adapted, info, _ = loop(optax.sgd(0.5), jnp.zeros(1), None, jnp.ones(1), None)
        >>> adapted.tolist(), info.support_loss.tolist()
        ([0.75], [0.5, 0.125])
    """
    if num_steps < 0:
        raise ValueError(f"num_steps is {num_steps}; give a number of inner steps >= 0")
    engine = forward_over_reverse if low_memory and not first_order else reverse
    gradient = engine(loss_fn)

    def run(
        optimizer: optax.GradientTransformation,
        adapted: Params,
        frozen: Params,
        batch: Batch,
        rng: Key | None,
        per_step_fn: Callable[[Params], Any] | None = None,
    ) -> tuple[Params, AdaptInfo, Any]:
        if num_steps == 0:
            return adapted, AdaptInfo(jnp.zeros(0)), None
        if first_order:
            frozen, batch = jax.lax.stop_gradient((frozen, batch))

        def step(carry: tuple[Any, ...], index: jax.Array) -> tuple[tuple[Any, ...], Any]:
            adapted, opt_state = carry
            # Gradients at a constant point are constants.
            point = jax.lax.stop_gradient(adapted) if first_order else adapted
            loss, grads = gradient(point, frozen, batch, fold_in(rng, index))
            updates, opt_state = optimizer.update(grads, opt_state, point)
            adapted = optax.apply_updates(adapted, updates)
            return (adapted, opt_state), (loss, per_step_fn and per_step_fn(adapted))

        start = jax.lax.stop_gradient(adapted) if first_order else adapted
        carry = (adapted, optimizer.init(start))
        # In first order nothing is kept of a step but what is seen of it.
        if low_memory and (per_step_fn or not first_order):
            (adapted, _), (losses, seen) = checkpointed_scan(step, carry, num_steps, _KEPT_EVERY)
        else:
            steps = jnp.arange(num_steps)
            (adapted, _), (losses, seen) = jax.lax.scan(step, carry, steps, unroll=unroll)
        return adapted, AdaptInfo(losses), seen

    return run
