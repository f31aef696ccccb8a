"""Adapt to documents: one pass over all their chunks, one step per chunk."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from metajax import data
from metajax.config.settings import AdaptSettings
from metajax.errors import InputError
from metajax.platforms import quick_jit
from metajax.runs.document_losses import plain_losses
from metajax.runs.document_tasks import Windows, as_windows, check_steps, load_documents
from metajax.runs.few_shot import FewShot
from metajax.runs.progress import Progress
from metajax.types import Params


class Stream(NamedTuple):
    """The chunks of some documents, one after another.

    Attributes:
        windows: all chunks, as those of one document.
        documents: number of documents.
    """

    windows: Windows
    documents: int

    @property
    def chunks(self) -> int:
        """The number of chunks."""
        return self.windows.spec.support


class Streamed(NamedTuple):
    """The result of the steps on a stream.

    Attributes:
        params: as the algorithm's `adapt` returns them.
        losses: loss on each chunk before the step on it.
        before: results before the steps on the documents (`tasks`) and others (`dev`).
        after: the same after all steps.
        stream: results on the chunks that were adapted to, each before the step on it.
    """

    params: Params
    losses: list[float]
    before: dict[str, dict[str, float]]
    after: dict[str, dict[str, float]]
    stream: dict[str, float]


def open_stream(specs: Sequence[str], few_shot: FewShot, length: int) -> Stream:
    """Read documents, and cut all of them into chunks.

    Raises:
        InputError: they cannot be read or have nothing to predict.
    """
    documents = load_documents(specs, few_shot.model)
    cuts = [data.cut_chunks(each, length) for each in documents if len(each.input_ids) > 1]
    if not cuts:
        raise InputError(
            f"--tasks {' '.join(specs)}: the documents have one token each, which leaves nothing "
            "to predict; give longer documents"
        )
    whole = data.Chunks(*(np.concatenate(field) for field in zip(*cuts)))
    spec = data.StreamSpec(support=len(whole.input_ids), query=0, length=length)
    return Stream(as_windows([whole], spec, f"--tasks {' '.join(specs)}"), len(cuts))


def steps_on(few_shot: FewShot, settings: AdaptSettings, chunks: int) -> int:
    """Return the number of steps: a step per chunk, or as many as `--inner-steps` allows.

    An algorithm that has learned rates of each step takes no more steps than it has rates.

    Raises:
        InputError: `--inner-steps` is 0.
    """
    check_steps(settings.inner_steps)
    limits = [chunks, settings.inner_steps]
    if few_shot.entry.rates_per_step:
        limits.append(few_shot.inner["inner_steps"])
    return min(limit for limit in limits if limit is not None)


def adapt_to_stream(few_shot: FewShot, stream: Stream, dev: Stream | None) -> Streamed:
    """Take `inner_steps` steps, and measure the losses before and after them.

    Args:
        few_shot: the model, whose `inner_steps` are at most the chunks of the stream.
        stream: what to adapt to.
        dev: other documents to measure on.
    """
    measured = {"tasks": stream} | ({} if dev is None else {"dev": dev})
    losses = plain_losses(few_shot.model)

    def measure(when: str, params: Params) -> dict[str, dict[str, float]]:
        return {
            name: each.windows.results(losses(f"{name} {when}", each.windows, params))
            for name, each in measured.items()
        }

    before = measure("before", few_shot.params)
    steps = few_shot.inner["inner_steps"]
    task = stream.windows.task(slice(None))
    support = jax.tree.map(lambda leaf: leaf[0, :steps], task.support)
    with Progress(f"adapt in {steps} steps", "pass") as bar:
        bar.compiling()
        adapt = quick_jit(few_shot.algorithm().adapt)
        params, info = jax.block_until_ready(adapt(few_shot.meta_params, support, None))
    each = np.asarray(info.support_loss, np.float64)
    return Streamed(
        params,
        each.tolist(),
        before,
        measure("after", few_shot.merge(params)),
        _results_of(stream.windows, each),
    )


def _results_of(windows: Windows, losses: np.ndarray) -> dict[str, float]:
    """Return the results on the first chunks of a stream, from the mean loss of each."""
    first = np.arange(windows.spec.support) < len(losses)
    nats = np.where(first, np.resize(losses, first.shape), 0)[None] * windows.counts
    return windows._replace(tested=windows.tested & first).results(nats)
