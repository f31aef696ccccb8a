"""Documents as tasks: `--tasks documents:PATH`."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metajax import data
from metajax.config.fields import flag, flag_and_value
from metajax.config.groups import EpisodeSettings, TaskSettings
from metajax.config.settings import MetatrainSettings
from metajax.data.duplicates import count_repeated
from metajax.errors import InputError
from metajax.models import Transformer
from metajax.reading import expand_home
from metajax.runs.few_shot import FewShot
from metajax.types import Task

_log = logging.getLogger("metajax")
_PREFIX = "documents:"
# Settings that only labelled tasks have.
_OF_LABELS = (
    *("ways", "shots", "whole_tasks", "keep_duplicates", "head", "layers", "classes", "glue_dir"),
    *("text_column", "pair_column", "label_column", "splits", "curve", "episodes"),
    *("label_names", "label_separator", "regression", "valid", "held_out", "valid_every"),
    *("logit_scale", "source_weights", "similar_classes"),
)
_QUERIES = EpisodeSettings.queries
_HELD_OUT, _MOST_HELD_OUT = 0.05, 32


def are_documents(settings: TaskSettings) -> bool:
    """Return whether `--tasks` names documents.

    Raises:
        InputError: it also names labelled tasks, or a setting is one of labelled tasks.
    """
    named = [spec.startswith(_PREFIX) for spec in settings.tasks]
    if not any(named):
        return False
    if not all(named):
        raise InputError(
            f"--tasks {settings.tasks[named.index(False)]}: is a labelled task among documents; "
            "give only documents: or only labelled tasks"
        )
    dev = getattr(settings, "dev", None)
    if dev is not None and not dev.startswith(_PREFIX):
        raise InputError(
            f"--dev {dev}: is a labelled task, but --tasks has documents; give documents:PATH"
        )
    _check_workdir(settings)
    for setting in dataclasses.fields(settings):
        value = getattr(settings, setting.name)
        if setting.name in _OF_LABELS and value != setting.default:
            raise InputError(
                f"{flag_and_value(setting.name, value)}: does not apply to documents; remove "
                f"{flag(setting.name)}"
            )
    return True


def _check_workdir(settings: TaskSettings) -> None:
    """Refuse a workdir whose files would become documents."""
    workdir: str | None = getattr(settings, "workdir", None)
    if workdir is None or "://" in workdir:
        return
    for path in (spec.removeprefix(_PREFIX) for spec in settings.tasks):
        folder = Path(expand_home(path)).resolve()
        if path and Path(workdir).resolve().is_relative_to(folder):
            raise InputError(
                f"--workdir {workdir}: is in the folder of the documents, so that its files would "
                "become documents; give a directory elsewhere"
            )


def load_documents(specs: Sequence[str], model: Transformer) -> list[data.TokenizedDocument]:
    """Read and tokenize the documents of some specs. Log how many are repeated.

    Raises:
        InputError: they cannot be read, or have no tokens.
    """
    paths = [spec.removeprefix(_PREFIX) for spec in specs]
    texts = [text for path in paths for text in data.load_documents(path)]
    repeated = count_repeated(texts)
    if repeated:
        _log.warning(
            "%d of %d documents are repeated, so measurements on other documents may be too good",
            *(repeated, len(texts)),
        )
    return data.tokenize_documents(texts, model.tokenizer)


def load_streams(
    settings: TaskSettings, model: Transformer, length: int
) -> list[data.TokenizedDocument]:
    """Return the documents of at least two chunks. Log how many are shorter.

    Raises:
        InputError: no document is long enough, or as in `load_documents`.
    """
    documents = load_documents(settings.tasks, model)
    kept = [each for each in documents if data.count_chunks(each, length) > 1]
    where = f"--tasks {' '.join(settings.tasks)}"
    if not kept:
        raise InputError(
            f"{where}: no document has two chunks of {length} tokens; give longer documents, or a "
            "smaller --max-length"
        )
    if len(kept) < len(documents):
        _log.warning(
            "%s: %d of %d documents are shorter than two chunks of %d tokens and are left out",
            *(where, len(documents) - len(kept), len(documents), length),
        )
    return kept


def hold_out(
    settings: MetatrainSettings, documents: Sequence[data.TokenizedDocument]
) -> tuple[list[data.TokenizedDocument], list[data.TokenizedDocument]]:
    """Split documents into those to train on and at most 32 to measure on, a twentieth of all.

    Raises:
        InputError: there is only one.
    """
    if len(documents) < 2:
        raise InputError(
            f"--tasks {' '.join(settings.tasks)}: has one document of two chunks, but training "
            "needs one and measuring another; give more documents, or a smaller --max-length"
        )
    count = min(max(1, round(_HELD_OUT * len(documents))), _MOST_HELD_OUT)
    return data.split_documents(documents, settings.seed, count)


def stream_spec(few_shot: FewShot, queries: int | None, max_length: int) -> data.StreamSpec:
    """Return the size of a task: a chunk per inner step, and `--queries` chunks to test on.

    With no queries the stream itself is tested on.

    Raises:
        InputError: the algorithm tests on the stream itself and `--queries` is given, or there are
            no inner steps.
    """
    length = few_shot.text_length(max_length)
    steps, algorithm = few_shot.inner["inner_steps"], few_shot.inner["algorithm"]
    check_steps(steps)
    if not few_shot.entry.tests_on_stream:
        return data.StreamSpec(steps, _QUERIES if queries is None else queries, length)
    if queries not in (None, 0, _QUERIES):
        raise InputError(
            f"--queries {queries}: {algorithm} tests on the chunks that it adapts to; remove it"
        )
    return data.StreamSpec(steps, 0, length)


def check_steps(steps: int | None) -> None:
    """Check a number of inner steps; None is not given.

    Raises:
        InputError: it is 0.
    """
    if steps == 0:
        raise InputError("--inner-steps 0: documents need a chunk to adapt to; give 1 or more")


class Windows(NamedTuple):
    """The first chunks of D documents, to measure losses on.

    Attributes:
        chunks: of each document, at most C = K + Q.
        spec: the size of a task.
        counts: [D, C] number of the predicted tokens of each chunk; 0 if there is none.
        num_bytes: [D, C] bytes of their text.
        tested: [D, C] the chunks on which methods are compared: the query set, or without one the
            whole stream.
    """

    chunks: tuple[data.Chunks, ...]
    spec: data.StreamSpec
    counts: np.ndarray
    num_bytes: np.ndarray
    tested: np.ndarray

    def support(self, document: int) -> int:
        """Return how many of a document's chunks are its stream."""
        return data.support_chunks(len(self.chunks[document].input_ids), self.spec)

    def task(self, documents: slice) -> Task:
        """Return the tasks of some documents, with leaves [T, ...]."""
        return data.stream_tasks(self.chunks[documents], self.spec)

    def totals(self, nats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return each document's nats and number of tokens in the chunks to compare, [D]."""
        return np.where(self.tested, nats, 0).sum(1), (self.counts * self.tested).sum(1)

    def results(self, nats: np.ndarray) -> dict[str, float]:
        """Return the loss per token in the chunks to compare, and its bits per byte.

        Args:
            nats: [D, C] the summed loss of each chunk.
        """
        total, count = (float(each.sum()) for each in self.totals(nats))
        num_bytes = float((self.num_bytes * self.tested).sum())
        return {"loss": total / count, "bits_per_byte": total / math.log(2) / num_bytes}

    def by_chunk(self, nats: np.ndarray) -> list[float]:
        """Return the loss per token by position of the chunk, over the documents that have it."""
        counts = self.counts.sum(0)
        present = counts > 0
        return (nats.sum(0)[present] / counts[present]).tolist()


def open_windows(
    documents: Sequence[data.TokenizedDocument], spec: data.StreamSpec, where: str
) -> Windows:
    """Cut the first chunks of some documents of at least two chunks; see `as_windows`."""
    cuts = [data.cut_chunks(each, spec.length, most=spec.chunks) for each in documents]
    return as_windows(cuts, spec, where)


def as_windows(chunks: Sequence[data.Chunks], spec: data.StreamSpec, where: str) -> Windows:
    """Count the tokens and bytes of some documents' chunks.

    Args:
        chunks: of each document, at most K + Q.
        spec: the size of a task.
        where: the name of the documents in messages.

    Raises:
        InputError: the chunks to compare have no text.
    """
    shape = (len(chunks), spec.chunks)
    counts, num_bytes, tested = np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, bool)
    for row, each in enumerate(chunks):
        own = slice(len(each.input_ids))
        counts[row, own], num_bytes[row, own] = each.predicted.sum(1), each.num_bytes.sum(1)
        first = data.support_chunks(own.stop, spec) if spec.query else 0
        tested[row, first : own.stop] = True
    if not num_bytes[tested].any():
        raise InputError(f"{where}: has no text to predict after the stream; give longer documents")
    return Windows(tuple(chunks), spec, counts, num_bytes, tested)
