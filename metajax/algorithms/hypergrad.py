"""How the meta-gradient passes through the gradient of an inner step.

Both engines are exact; they differ in what they store and what they compute:

- reverse: JAX differentiates the gradient's own backward pass. It keeps the activations of every
  inner step, forward and backward.
- forward over reverse: the derivative of an inner gradient along a cotangent v is a
  Hessian-vector product, for the Hessian is symmetric, and that is one `jvp` of the gradient
  (Pearlmutter 1994). It keeps the parameters of an inner step and nothing else, and computes the
  step's gradient a second time. `checkpointed_scan` then keeps them of a few steps only.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from metajax.dtypes import is_float
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

    def fwd(adapted: Params, smooth: Any, rest: Any) -> tuple[Any, Any]:
        return plain(adapted, smooth, rest), (adapted, smooth, rest)

    def bwd(residuals: Any, cotangents: Any) -> tuple[Params, Any, None]:
        adapted, smooth, rest = residuals
        _, direction = cotangents  # The loss is only looked at.
        gradient = jax.grad(loss_of, argnums=(0, 1))
        # The frozen part too: its mixed second derivatives along the adapted part's direction.
        _, (to_adapted, to_smooth) = jax.jvp(
            lambda adapted: gradient(adapted, smooth, rest), (adapted,), (direction,)
        )
        return to_adapted, to_smooth, None

    gradient = jax.custom_vjp(plain)
    gradient.defvjp(fwd, bwd)

    def run(
        adapted: Params, frozen: Params, batch: Batch, rng: Key | None
    ) -> tuple[jax.Array, Params]:
        smooth, rest = partition((frozen, batch), is_float)
        loss, grads = gradient(adapted, smooth, (rest, rng))
        return jax.lax.stop_gradient(loss), grads

    return run


# One step of a loop: (state, index) -> (state, seen).
Step = Callable[[Any, jax.Array], tuple[Any, Any]]


def checkpointed_scan(step: Step, state: Any, count: int, every: int) -> tuple[Any, Any]:
    """`jax.lax.scan` over 0 .. count - 1 that keeps few states for its backward pass.

    Besides the first state it keeps those before the steps `every`, 2 `every`, ...; going back, it
    takes the steps from the last one kept again, (every - 1) / 2 more of them a step. Nested scans
    would do with fewer steps, but each keeps copies of its own.

    Args:
        step: `(state, index) -> (state, seen)`. It may close over arrays that are differentiated.
        state: where to begin.
        count: how many steps, > 0.
        every: one state of how many is kept.

    Returns:
        The last state, and what was seen, [count, ...]. Differentiable once, in reverse mode.
    """
    open_step, constants = _without_closure(step, state)
    kept_count = (count - 1) // every

    def fwd(floats: Any, others: Any) -> tuple[Any, Any]:
        start, constants = combine(floats, others)

        def body(carry: Any, index: jax.Array) -> tuple[Any, Any]:
            state, kept = carry
            if kept_count:
                kept = _put(kept, state, index, every)
            state, seen = open_step(state, index, constants)
            return (state, kept), seen

        kept = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (kept_count, *leaf.shape)), start)
        (state, kept), seen = jax.lax.scan(body, (start, kept), jnp.arange(count))
        return (state, seen), (floats, others, kept)

    def bwd(residuals: Any, cotangents: Any) -> tuple[Any, None]:
        (floats, constant_floats), others, kept = residuals
        start, constants = combine((floats, constant_floats), others)

        def state_before(index: jax.Array) -> Any:
            first = index // every * every
            state = start
            if kept_count:
                state = jax.tree.map(
                    lambda at_0, later: jnp.where(first > 0, later[first // every - 1], at_0),
                    start,
                    kept,
                )
            again = lambda i, state: open_step(state, i, constants)[0]  # noqa: E731
            return jax.lax.fori_loop(first, index, again, state)

        def back(carry: Any, inputs: Any) -> tuple[Any, None]:
            (to_state, to_constants), (index, to_seen) = carry, inputs
            point, fixed = partition(state_before(index), is_float)

            def floats_of_step(point: Any, constant_floats: Any) -> Any:
                opened = combine((point, constant_floats), (fixed, others[1]))
                return partition(open_step(opened[0], index, opened[1]), is_float)[0]

            _, pull = jax.vjp(floats_of_step, point, constant_floats)
            to_state, more = pull((to_state, to_seen))
            return (to_state, jax.tree.map(jnp.add, to_constants, more)), None

        to_state, to_seen = partition(cotangents, is_float)[0]
        carry = (to_state, jax.tree.map(jnp.zeros_like, constant_floats))
        return jax.lax.scan(back, carry, (jnp.arange(count), to_seen), reverse=True)[0], None

    run = jax.custom_vjp(lambda floats, others: fwd(floats, others)[0])
    run.defvjp(fwd, bwd)
    return run(*partition((state, constants), is_float))


def _without_closure(step: Step, state: Any) -> tuple[Callable[..., tuple[Any, Any]], list[Any]]:
    """`(state, index, constants) -> (state, seen)`, and the constants: what `step` closed over."""
    traced, shapes = jax.make_jaxpr(step, return_shape=True)(state, jnp.int32(0))
    treedef = jax.tree.structure(shapes)

    def open_step(state: Any, index: jax.Array, constants: list[Any]) -> tuple[Any, Any]:
        closed = core.jaxpr_as_fun(core.ClosedJaxpr(traced.jaxpr, constants))
        return jax.tree.unflatten(treedef, closed(*jax.tree.leaves((state, index))))

    return open_step, traced.consts


def _put(kept: Any, state: Any, index: jax.Array, every: int) -> Any:
    """`kept` with the state before one of the steps `every`, 2 `every`, ... in its place."""
    place, mine = jnp.maximum(index // every - 1, 0), (index > 0) & (index % every == 0)
    return jax.tree.map(
        lambda rows, leaf: rows.at[place].set(jnp.where(mine, leaf, rows[place])), kept, state
    )
