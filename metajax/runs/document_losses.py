"""The loss of each chunk of documents: with and without adaptation, and with earlier text."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax import data
from metajax.models import Transformer, causal_lm_loss
from metajax.platforms import full_jit
from metajax.runs.document_tasks import Windows
from metajax.runs.progress import progress
from metajax.types import Batch, MetaAlgorithm, Params, Task

_GROUP = 8  # Documents that are adapted to at once.
_ROWS = 64  # Chunks that are read at once without adaptation.

# (what, windows, parameters) -> [D, C], the summed loss of each chunk in nats.
ChunkLosses = Callable[[str, Windows, Params], np.ndarray]


def adapted_losses(
    model: Transformer, algorithm: MetaAlgorithm, network: Callable[[Params], Params]
) -> ChunkLosses:
    """Make the losses of adaptation: of the stream before each step, of the query set after all.

    Args:
        model: with a causal-LM head.
        algorithm: with a step per chunk of the stream.
        network: the network's parameters from those that `adapt` returns.

    Returns:
        `(what, windows, meta_params) -> [D, C]`; `what` is the label of the progress bar.
    """

    @full_jit
    def run(meta_params: Params, tasks: Task) -> jax.Array:
        def one(task: Task) -> jax.Array:
            adapted, info = algorithm.adapt(meta_params, task.support, None)
            if task.query is None:
                return info.support_loss
            after = row_losses(model, network(adapted), task.query)
            return jnp.concatenate([info.support_loss, after])

        return jax.lax.map(one, tasks)

    def losses(what: str, windows: Windows, meta_params: Params) -> np.ndarray:
        means = _in_groups(
            what, len(windows.chunks), _GROUP, lambda part: run(meta_params, windows.task(part))
        )
        nats = np.zeros(windows.counts.shape)
        for document, own in enumerate(windows.chunks):
            # The stream of a short document has padding before it.
            first, count = windows.spec.support - windows.support(document), len(own.input_ids)
            nats[document, :count] = means[document, first : first + count]
        return nats * windows.counts

    return losses


def plain_losses(model: Transformer, *, with_context: bool = False) -> ChunkLosses:
    """Make the losses without adaptation.

    Args:
        model: with a causal-LM head.
        with_context: whether the model reads the stream, as far as it is before the chunk, together
            with each chunk. Otherwise it reads each chunk alone.

    Returns:
        `(what, windows, params) -> [D, C]`.
    """
    run = full_jit(lambda params, rows: row_losses(model, params, rows))

    def losses(what: str, windows: Windows, params: Params) -> np.ndarray:
        places = list(np.ndindex(windows.counts.shape))

        def of(part: slice) -> jax.Array:
            rows = [_row(windows, row, chunk, with_context) for row, chunk in places[part]]
            return run(params, jax.tree.map(lambda *leaves: np.stack(leaves), *rows))

        means = _in_groups(what, len(places), _ROWS, of)
        return means.reshape(windows.counts.shape) * windows.counts

    return losses


def context_length(spec: data.StreamSpec) -> int:
    """Return the number of tokens that the model has to read with context."""
    before = spec.support if spec.query else spec.support - 1
    return (before + 1) * (spec.length - 1) + 1


def row_losses(model: Transformer, params: Params, batch: Batch) -> jax.Array:
    """Return the mean loss of each row [B] of a batch with leaves [B, L], one row at a time."""
    loss_fn = causal_lm_loss(model)

    def one(row: Batch) -> jax.Array:
        return loss_fn(params, jax.tree.map(lambda leaf: leaf[None], row), None)[0]

    return jax.lax.map(one, batch)


def _in_groups(what: str, total: int, size: int, function: Callable[[slice], Any]) -> np.ndarray:
    """Compute results [total, ...] in float64, from those [size, ...] of groups."""
    size = min(size, total)
    results: list[np.ndarray] = []
    for first in progress(range(0, total, size), what, "batch"):
        # The last group overlaps the one before, so that one shape is compiled.
        begin = min(first, total - size)
        group = np.asarray(function(slice(begin, begin + size)), np.float64)
        results.append(group[first - begin :])
    return np.concatenate(results)


def _row(windows: Windows, document: int, number: int, with_context: bool) -> dict[str, np.ndarray]:
    """Return the row of a chunk of a document: [L], or [W] with context; empty if it has none."""
    own, spec = windows.chunks[document], windows.spec
    width = context_length(spec) if with_context else spec.length
    names = ("input_ids", "attention_mask", "loss_mask")
    row = {name: np.zeros(width, np.int32) for name in names}
    if number < len(own.input_ids):
        before = min(number, windows.support(document)) if with_context else 0
        begin = before * (spec.length - 1)
        place = slice(begin, begin + spec.length)
        for name in names[:2]:
            array = getattr(own, name)
            row[name][:begin] = array[:before, :-1].reshape(-1)
            row[name][place] = array[number]
        row["loss_mask"][place] = own.predicted[number]
    return row
