"""The inner loop: K steps of an optax optimizer on one support set, or on a stream of batches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from metajax.algorithms.hypergrad import (
    InnerGrad,
    InnerLoss,
    forward_over_reverse,
    reverse,
)
from metajax.algorithms.scans import checkpointed_scan, segmented_scan
from metajax.algorithms.streams import check_stream, loss_slopes, micro_batched
from metajax.dtypes import is_float, widen
from metajax.platforms import target_platform
from metajax.tree import partition
from metajax.types import AdaptInfo, Batch, Key, Params

# `low_memory` stores the parameters before one of this many inner steps.
_KEPT_EVERY = 4
# More steps than this are differentiated in segments, so that memory grows with sqrt(K). Up to 64
# steps, every fourth step's parameters need less memory than segments.
_UNSEGMENTED, _UNSEGMENTED_LOW_MEMORY = 16, 64


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
        """Return the adapted parameters, the losses, and the results of `per_step_fn`."""
        ...


def fold_in(rng: Key | None, index: int | jax.Array) -> Key | None:
    """Return the key for one of several uses of `rng`, or None if `rng` is None."""
    return None if rng is None else jax.random.fold_in(rng, index)


def mean_recomputed_steps(num_steps: int) -> float:
    """Return the mean number of inner steps that the backward pass of `low_memory` repeats.

    The mean is per inner step, of up to 64 steps. More steps are repeated once, in segments.
    """
    return sum(index % _KEPT_EVERY for index in range(num_steps)) / max(1, num_steps)


def inner_loop(
    loss_fn: InnerLoss,
    num_steps: int,
    *,
    first_order: bool = False,
    low_memory: bool = False,
    unroll: bool = False,
    stream: bool = False,
    micro_batches: int = 1,
    differentiable_loss: bool = False,
    truncate: int | None = None,
) -> InnerLoop:
    """Make the function that adapts parameters to a support set.

    More than 16 steps (64 with `low_memory`) are differentiated in segments of about sqrt(K) steps,
    which the backward pass repeats once. Memory then grows with sqrt(K), and time with K.

    On an accelerator, reverse over reverse stores only the results of the matrix products of a
    step. Elementwise operations are then computed again, which there costs less than memory
    traffic.

    Args:
        loss_fn: `(adapted, frozen, batch, rng) -> loss`, minimized over `adapted`.
        num_steps: K >= 0.
        first_order: whether to treat the gradients as constants. The gradient through the loop is
            then the identity (Finn et al. 2017, section 5.2).
        low_memory: whether to differentiate forward over reverse, and, with up to 64 steps, store
            the parameters of only every fourth step. The backward pass repeats the steps in
            between. The loop cannot be differentiated twice in reverse mode.
        unroll: whether to compile the steps one after the other instead of a loop. This is 10%
            faster on a CPU, but takes longer to compile. Without `low_memory`, there are then no
            segments.
        stream: whether the support set has one batch per step, with leaves [K, ...].
        micro_batches: number of equal parts of a step's batch, whose gradients are averaged; see
            `metajax.algorithms.streams.micro_batched`.
        differentiable_loss: whether the losses before the steps are differentiable. With first
            order, each has the derivative of their mean.
        truncate: T: gradients pass through the last T steps only, and the first K - T steps are in
            first order. This is not exact. None: through all steps.

    Returns:
        `(optimizer, adapted, frozen, support, rng, per_step_fn) -> (adapted, AdaptInfo, seen)`,
        differentiable. The optimizer is any optax optimizer; its state is initialized first. It
        may hold values that are differentiated, such as learned rates. With second order, Adam
        needs `eps_root > 0`, because the second derivative of the square root is infinite where a
        gradient is exactly zero. `per_step_fn` is called with the adapted parameters after each
        step. `seen` is the stack of its results, [K, ...].

    Raises:
        ValueError: num_steps or truncate is below 0, or micro_batches below 1, or, when
            called, the shape of a leaf of the support set does not fit `stream` or `micro_batches`.

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
    _check_counts(num_steps, micro_batches, truncate)
    engine = _Engine(loss_fn, low_memory, unroll, micro_batches, differentiable_loss)
    first = num_steps if first_order else 0
    if truncate is not None:
        first = max(first, num_steps - truncate)
    phases = [(True, 0, first), (False, first, num_steps)]

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
        if stream:
            check_stream(batch, num_steps)
        start = jax.lax.stop_gradient(adapted) if first else adapted
        carry, outputs = (adapted, optimizer.init(start)), []
        for constant, begin, end in phases:
            if begin == end:
                continue
            steps = _Steps(engine, optimizer, constant, begin, end, frozen, rng, per_step_fn)
            carry, output = steps.take(carry, batch, stream)
            outputs.append(output)
        losses, seen = outputs[0]
        if len(outputs) > 1:
            losses, seen = jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)
        return carry[0], AdaptInfo(losses), seen

    return run


@dataclass(frozen=True)
class _Engine:
    """How to compute and differentiate gradients. The attributes are arguments of `inner_loop`."""

    loss_fn: InnerLoss
    low_memory: bool
    unroll: bool
    micro_batches: int
    differentiable_loss: bool

    def gradient(self, constant: bool) -> InnerGrad:
        """Return the gradient function of a step; `constant`: with first order."""
        if self.low_memory and not constant:
            gradient = forward_over_reverse(
                self.loss_fn, differentiable_loss=self.differentiable_loss
            )
        else:
            gradient = reverse(
                self.loss_fn,
                differentiable_loss=self.differentiable_loss,
                products_only=target_platform() != "cpu" and not constant,
                unrolled=self.unroll,
            )
        return micro_batched(gradient, self.micro_batches)


@dataclass(frozen=True)
class _Steps:
    """Consecutive inner steps with one kind of gradient.

    Attributes:
        engine: how to compute gradients.
        optimizer: the inner optimizer.
        constant: whether the gradients are constants.
        begin: index of the first step.
        end: index after the last step.
        frozen: parameters that the steps do not change.
        rng: key of the inner loop.
        per_step_fn: as for `InnerLoop`.
    """

    engine: _Engine
    optimizer: optax.GradientTransformation
    constant: bool
    begin: int
    end: int
    frozen: Params
    rng: Key | None
    per_step_fn: Callable[[Params], Any] | None

    def take(self, carry: tuple[Any, ...], batch: Batch, stream: bool) -> tuple[Any, Any]:
        """Take the steps from (adapted, optimizer state); return the new one, (losses, seen)."""
        engine, count, begin = self.engine, self.end - self.begin, self.begin
        batches = jax.tree.map(lambda leaf: leaf[begin : self.end], batch) if stream else None
        inputs = (jnp.arange(begin, self.end), batches)
        if self.constant and engine.differentiable_loss:
            return self._take_with_slopes(carry, inputs)
        frozen = self.frozen
        if self.constant:
            frozen, batch, inputs = jax.lax.stop_gradient((frozen, batch, inputs))

        def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
            index, own_batch = inputs
            # The gradient at a constant point is a constant.
            point = jax.lax.stop_gradient(carry[0]) if self.constant else carry[0]
            own_batch = own_batch if stream else batch
            key = fold_in(self.rng, index)
            loss, grads = engine.gradient(self.constant)(point, frozen, own_batch, key)
            carry, seen = self._move(carry, point, grads)
            return carry, (loss, seen)

        def indexed_step(carry: Any, index: jax.Array) -> tuple[Any, Any]:
            own_batch = jax.tree.map(lambda leaf: leaf[index], batches)
            return step(carry, (index + begin if begin else index, own_batch))

        # With first order, the backward pass stores nothing for a step except for per_step_fn.
        stored = self.per_step_fn or not self.constant
        most = _UNSEGMENTED_LOW_MEMORY if engine.low_memory else _UNSEGMENTED
        if stored and count > most and (engine.low_memory or not engine.unroll):
            return segmented_scan(step, carry, inputs)
        if stored and engine.low_memory:
            return checkpointed_scan(indexed_step, carry, count, _KEPT_EVERY)
        return jax.lax.scan(step, carry, inputs, unroll=engine.unroll)

    def _move(self, carry: tuple[Any, ...], point: Params, grads: Params) -> tuple[Any, Any]:
        adapted, opt_state = carry
        updates, opt_state = self.optimizer.update(grads, opt_state, point)
        adapted = optax.apply_updates(adapted, updates)
        return (adapted, opt_state), self.per_step_fn and self.per_step_fn(adapted)

    def _take_with_slopes(self, carry: tuple[Any, ...], inputs: Any) -> tuple[Any, Any]:
        """Take the steps with first order and differentiable losses.

        The derivative of an adapted parameter by its initial value is then 1. So the derivatives of
        the losses are summed in the forward pass, and no step is stored.
        """
        slopes_of = loss_slopes(self.engine.loss_fn, self.engine.micro_batches)
        frozen = jax.lax.stop_gradient(self.frozen)
        first = (carry[0], partition(self.frozen, is_float)[0])

        def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
            (state, sums), (index, own_batch) = carry, inputs
            point, key = jax.lax.stop_gradient(state[0]), fold_in(self.rng, index)
            (loss, *slopes), to_batch = slopes_of(point, frozen, own_batch, key)
            state, seen = self._move(state, point, slopes[0])
            sums = jax.tree.map(jnp.add, sums, widen(tuple(slopes)))
            return (state, sums), ((loss, seen), to_batch)

        zeros = jax.tree.map(jnp.zeros_like, widen(jax.lax.stop_gradient(first)))
        (carry, sums), ((losses, seen), to_batches) = jax.lax.scan(
            step, (carry, zeros), inputs, unroll=self.engine.unroll
        )
        along = (*first, partition(inputs[1], is_float)[0])
        total = _zero_with_slopes(along, (*sums, to_batches), losses.dtype)
        return carry, (losses + total / len(losses), seen)


def _zero_with_slopes(leaves: Any, slopes: Any, dtype: Any) -> jax.Array:
    """Return zero, with `slopes` as its derivatives by `leaves`."""
    zeros = widen(jax.tree.map(lambda leaf: leaf - jax.lax.stop_gradient(leaf), leaves))
    products = jax.tree.map(lambda slope, zero: jnp.vdot(slope, zero), widen(slopes), zeros)
    return sum(
        (each.astype(dtype) for each in jax.tree.leaves(products)), start=jnp.zeros((), dtype)
    )


def _check_counts(num_steps: int, micro_batches: int, truncate: int | None) -> None:
    if num_steps < 0:
        raise ValueError(f"num_steps is {num_steps}; give a number of inner steps >= 0")
    if micro_batches < 1:
        raise ValueError(f"micro_batches is {micro_batches}; give a number of parts >= 1")
    if truncate is not None and truncate < 0:
        raise ValueError(f"truncate is {truncate}; give a number of inner steps >= 0, or None")
