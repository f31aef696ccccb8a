"""Batches of inner steps: one batch per step, and micro-batches of a step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.algorithms.hypergrad import InnerGrad, InnerLoss
from metajax.dtypes import is_float, narrow, widen
from metajax.tree import combine, partition, path_name
from metajax.types import Batch, Key, Params


def check_stream(support: Batch, num_steps: int) -> None:
    """Check that a support set has one batch per inner step.

    Args:
        support: leaves [num_steps, ...].
        num_steps: K.

    Raises:
        ValueError: a leaf has another shape.

    Examples:
        >>> import jax.numpy as jnp
        >>> from metajax.algorithms.streams import check_stream
        >>> check_stream({"x": jnp.ones((3, 8))}, num_steps=3)
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(support):
        if jnp.shape(leaf)[:1] != (num_steps,):
            raise ValueError(
                f"support: {_where(path)} has shape {jnp.shape(leaf)}, but a stream has one batch "
                f"per inner step, shape ({num_steps}, ...); stack {num_steps} batches (`jax.tree."
                "map(lambda *leaves: jnp.stack(leaves), *batches)`) or change num_steps"
            )


def micro_batched(gradient: InnerGrad, micro_batches: int) -> InnerGrad:
    """Compute the gradient of a batch as the mean over equal parts, one part at a time.

    For a loss that is a mean over equally weighted examples, it equals the gradient of the whole
    batch. Sums are computed in at least float32.

    Args:
        gradient: `(adapted, frozen, batch, rng) -> (loss, gradient)`.
        micro_batches: M, the number of parts. The first axis of all leaves of the batch is split.

    Returns:
        A function with the arguments of `gradient`. Part m gets the key `fold_in(rng, m)`.

    Raises:
        ValueError: when called, leaves differ in the size of the first axis, or M does not divide
            it.

    Examples:
        >>> import jax.numpy as jnp
        >>> from metajax.algorithms.hypergrad import reverse
        >>> from metajax.algorithms.streams import micro_batched
        >>> gradient = reverse(lambda w, frozen, x, rng: jnp.mean((w - x) ** 2))
        >>> loss, grads = micro_batched(gradient, 2)(jnp.float32(0), None, jnp.arange(4.0), None)
        >>> float(loss), float(grads)
        (3.5, -3.0)
    """

    def run(
        adapted: Params, frozen: Params, batch: Batch, rng: Key | None
    ) -> tuple[jax.Array, Params]:
        def one(part: Batch, key: Key | None) -> tuple[Any, None]:
            return gradient(adapted, frozen, part, key), None

        return _mean_of_parts(one, batch, rng, micro_batches)[0]

    return run if micro_batches > 1 else gradient


# (adapted, frozen, batch, rng) -> (loss, to_adapted, to_frozen), to_batch.
LossSlopes = Callable[[Params, Params, Batch, Key | None], tuple[tuple[Any, ...], Any]]


def loss_slopes(loss_fn: InnerLoss, micro_batches: int) -> LossSlopes:
    """Make the function that returns a loss and its first derivatives, as constants.

    Args:
        loss_fn: `(adapted, frozen, batch, rng) -> loss`.
        micro_batches: as for `micro_batched`.

    Returns:
        `(adapted, frozen, batch, rng) -> (loss, to_adapted, to_frozen), to_batch`: the loss and its
        derivatives by each argument, with None for leaves that are not floating-point.
    """

    def run(
        adapted: Params, frozen: Params, batch: Batch, rng: Key | None
    ) -> tuple[tuple[Any, ...], Any]:
        def one(part: Batch, key: Key | None) -> tuple[tuple[Any, ...], Any]:
            (frozen_floats, floats), others = partition((frozen, part), is_float)

            def loss_of(adapted: Params, frozen: Any, part: Any) -> jax.Array:
                frozen, part = combine((frozen, part), others)
                return loss_fn(adapted, frozen, part, key)

            loss, slopes = jax.value_and_grad(loss_of, (0, 1, 2))(adapted, frozen_floats, floats)
            return (loss, *slopes[:2]), slopes[2]

        adapted, frozen, batch = jax.lax.stop_gradient((adapted, frozen, batch))
        return _mean_of_parts(one, batch, rng, micro_batches)

    return run


def _mean_of_parts(
    one: Callable[[Batch, Key | None], tuple[Any, Any]], batch: Batch, rng: Key | None, parts: int
) -> tuple[Any, Any]:
    """Average the first result of `one` over the parts of a batch; concatenate the second."""
    if parts == 1:
        return one(batch, rng)

    def of_part(index: jax.Array, part: Batch) -> tuple[Any, Any]:
        return one(part, None if rng is None else jax.random.fold_in(rng, index))

    def add(total: Any, inputs: Any) -> tuple[Any, Any]:
        found, by_example = of_part(*inputs)
        return jax.tree.map(jnp.add, total, widen(found)), by_example

    inputs = jnp.arange(parts), _split(batch, parts)
    like, _ = jax.eval_shape(of_part, *jax.tree.map(lambda leaf: leaf[0], inputs))
    zeros = widen(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like))
    # In the backward pass, the activations of one part exist at a time.
    total, by_example = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), zeros, inputs)
    merge = lambda leaf: leaf.reshape(-1, *leaf.shape[2:]) / parts  # noqa: E731
    mean = narrow(jax.tree.map(lambda leaf: leaf / parts, total), like)
    return mean, jax.tree.map(merge, by_example)


def _split(batch: Batch, parts: int) -> Batch:
    """Split leaves [B, ...] into parts, [M, B / M, ...]."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    sizes = [jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for _, leaf in leaves]
    for (path, leaf), size in zip(leaves, sizes):
        if size != sizes[0] or size == 0 or size % parts:
            raise ValueError(
                f"support: {_where(path)} of a step's batch has shape {jnp.shape(leaf)}, but "
                f"micro_batches={parts} splits the first axis of every leaf; give all leaves the "
                f"same number of examples, a multiple of {parts}"
            )
    return jax.tree.map(
        lambda leaf: jnp.reshape(leaf, (parts, len(leaf) // parts, *leaf.shape[1:])), batch
    )


def _where(path: tuple[Any, ...]) -> str:
    return f"leaf {path_name(path)!r}" if path else "the value"
