"""Scans that store few states for the backward pass."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from metajax.dtypes import is_float
from metajax.tree import combine, partition

# One step of a loop: (state, input) -> (state, seen).
Step = Callable[[Any, Any], tuple[Any, Any]]


def segmented_scan(step: Step, state: Any, inputs: Any) -> tuple[Any, Any]:
    """Run `jax.lax.scan` with about 2 sqrt(K) states stored for the backward pass.

    It stores the states before segments of about sqrt(K) steps (Chen et al. 2016, arXiv:1604.06174,
    section 4). The backward pass repeats one segment at a time, and stores its steps.

    Args:
        step: `(state, input) -> (state, seen)`.
        state: the initial state.
        inputs: leaves [K, ...], K > 0.

    Returns:
        The last state, and the stack of `seen`, [K, ...].
    """
    count = len(jax.tree.leaves(inputs)[0])
    length = _segment_length(count)
    whole = count // length * length
    segment = jax.checkpoint(functools.partial(jax.lax.scan, step))
    rows = lambda leaf: leaf[:whole].reshape(-1, length, *leaf.shape[1:])  # noqa: E731
    state, seen = jax.lax.scan(segment, state, jax.tree.map(rows, inputs))
    seen = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), seen)
    if whole < count:
        state, rest = segment(state, jax.tree.map(lambda leaf: leaf[whole:], inputs))
        seen = jax.tree.map(lambda *parts: jnp.concatenate(parts), seen, rest)
    return state, seen


def _segment_length(count: int) -> int:
    """Return about sqrt(count): a divisor if possible, so that all segments are equally long."""
    root = math.isqrt(count)
    return next((length for length in range(root, root // 2, -1) if count % length == 0), root)


def checkpointed_scan(step: Step, state: Any, count: int, spacing: int) -> tuple[Any, Any]:
    """Run `jax.lax.scan` over 0 .. count - 1, with few states stored for the backward pass.

    It stores the first state and the states before the steps `spacing`, 2 `spacing`, ... The
    backward pass repeats the steps since the last stored state: on average (spacing - 1) / 2
    repeated steps per step. Nested scans would repeat fewer steps, but store more copies.

    Args:
        step: `(state, index) -> (state, seen)`. It may close over arrays that are differentiated.
        state: the first state.
        count: number of steps, > 0.
        spacing: distance between stored states, in steps.

    Returns:
        The last state, and the stacked `seen`, [count, ...]. Differentiable once, in reverse mode.
    """
    open_step, constants = _without_closure(step, state, jnp.arange(1)[0])
    return _scan(_Loop(open_step, count, spacing), *partition((state, constants), is_float))


@dataclass(frozen=True)
class _Loop:
    """The steps of a `checkpointed_scan`.

    Attributes:
        open_step: `(constants, state, index) -> (state, seen)`.
        count: number of steps.
        spacing: distance between stored states, in steps.
    """

    open_step: Callable[..., tuple[Any, Any]]
    count: int
    spacing: int

    @property
    def kept_count(self) -> int:
        """The number of stored states besides the first."""
        return (self.count - 1) // self.spacing


def _scan_fwd(loop: _Loop, floats: Any, others: Any) -> tuple[Any, Any]:
    start, constants = combine(floats, others)

    def body(carry: Any, index: jax.Array) -> tuple[Any, Any]:
        state, kept = carry
        if loop.kept_count:
            kept = _put(kept, state, index, loop.spacing)
        state, seen = loop.open_step(constants, state, index)
        return (state, kept), seen

    kept = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (loop.kept_count, *leaf.shape)), start)
    (state, kept), seen = jax.lax.scan(body, (start, kept), jnp.arange(loop.count))
    return (state, seen), (floats, others, kept)


def _scan_bwd(loop: _Loop, residuals: Any, cotangents: Any) -> tuple[Any, None]:
    (floats, constant_floats), others, kept = residuals
    start, constants = combine((floats, constant_floats), others)

    def back(carry: Any, inputs: Any) -> tuple[Any, None]:
        (to_state, to_constants), (index, to_seen) = carry, inputs
        state = _state_before(loop, index, start, kept, constants)
        point, fixed = partition(state, is_float)

        def floats_of_step(point: Any, constant_floats: Any) -> Any:
            state, constants = combine((point, constant_floats), (fixed, others[1]))
            return partition(loop.open_step(constants, state, index), is_float)[0]

        _, pull = jax.vjp(floats_of_step, point, constant_floats)
        to_state, more = pull((to_state, to_seen))
        return (to_state, jax.tree.map(jnp.add, to_constants, more)), None

    to_state, to_seen = partition(cotangents, is_float)[0]
    carry = (to_state, jax.tree.map(jnp.zeros_like, constant_floats))
    return jax.lax.scan(back, carry, (jnp.arange(loop.count), to_seen), reverse=True)[0], None


_scan = jax.custom_vjp(
    lambda loop, floats, others: _scan_fwd(loop, floats, others)[0], nondiff_argnums=(0,)
)
_scan.defvjp(_scan_fwd, _scan_bwd)


def _state_before(loop: _Loop, index: jax.Array, start: Any, kept: Any, constants: Any) -> Any:
    """Compute the state before a step by repeating the steps since the last stored state."""
    first = index // loop.spacing * loop.spacing
    state = start
    if loop.kept_count:
        state = jax.tree.map(
            lambda at_0, later: jnp.where(first > 0, later[first // loop.spacing - 1], at_0),
            start,
            kept,
        )
    again = lambda i, state: loop.open_step(constants, state, i)[0]  # noqa: E731
    return jax.lax.fori_loop(first, index, again, state)


def _without_closure(
    function: Callable[..., Any], *example: Any
) -> tuple[Callable[..., Any], list[Any]]:
    """Trace a function, and make the traced arrays in its closure arguments.

    Args:
        function: `(*arguments) -> result`.
        *example: arguments, or their shapes.

    Returns:
        `(constants, *arguments) -> result`, and the constants.
    """
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*example)
    treedef, consts = jax.tree.structure(shapes), traced.consts
    # Nothing differentiates the others, such as an array in the code of a loss.
    which = [isinstance(const, jax.core.Tracer) for const in consts]

    def open_function(constants: list[Any], *arguments: Any) -> Any:
        given = iter(constants)
        filled = [next(given) if is_traced else const for is_traced, const in zip(which, consts)]
        closed = core.jaxpr_as_fun(core.ClosedJaxpr(traced.jaxpr, filled))
        return jax.tree.unflatten(treedef, closed(*jax.tree.leaves(arguments)))

    return open_function, [const for is_traced, const in zip(which, consts) if is_traced]


def _put(kept: Any, state: Any, index: jax.Array, spacing: int) -> Any:
    """Store the state in `kept` if `index` is a positive multiple of `spacing`."""
    place, is_stored = jnp.maximum(index // spacing - 1, 0), (index > 0) & (index % spacing == 0)
    return jax.tree.map(
        lambda rows, leaf: rows.at[place].set(jnp.where(is_stored, leaf, rows[place])), kept, state
    )
