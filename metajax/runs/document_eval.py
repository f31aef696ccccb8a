"""Compare methods on the same windows of documents."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from metajax import data
from metajax.config.settings import EvaluateSettings
from metajax.errors import InputError, printable
from metajax.runs.document_losses import adapted_losses, context_length, plain_losses
from metajax.runs.document_tasks import Windows, load_streams, open_windows, stream_spec
from metajax.runs.few_shot import FewShot, not_meta_trained
from metajax.training.evaluation import ratio_estimate

METHODS = ("checkpoint", "same-steps", "none", "context")


class DocumentRow(NamedTuple):
    """The result of a method on documents. Losses are in nats per token, with 95% intervals.

    Attributes:
        tasks: `--tasks`.
        protocol: description of the windows.
        method: name of the method.
        documents: number of documents.
        inner_steps: maximum number of steps on a document; 0 without adaptation.
        loss: mean over all tokens that are tested.
        ci95: its interval over documents.
        bits_per_byte: the same loss per byte of the text.
        behind: how much larger the loss is than that of the first method.
        behind_ci95: its interval, document by document.
        seconds: wall time.
        losses: loss of each document, in their order.
        chunks: loss by position of the chunk: of the stream before each step, then of the query
            set, if there is one.
    """

    tasks: str
    protocol: str
    method: str
    documents: int
    inner_steps: int
    loss: float
    ci95: float
    bits_per_byte: float
    behind: float
    behind_ci95: float
    seconds: float
    losses: tuple[float, ...]
    chunks: tuple[float, ...]


def choose_methods(
    settings: EvaluateSettings, few_shot: FewShot, spec: data.StreamSpec
) -> tuple[str, ...]:
    """Return the methods of the settings; by default all that apply.

    Raises:
        InputError: a method needs labels or meta-training, or more positions than the model has.
    """
    wanted, positions = context_length(spec), few_shot.model.config.max_position_embeddings
    wrong = {}
    if not few_shot.is_meta_trained:
        wrong["checkpoint"] = not_meta_trained(settings.model)
    if wanted > positions:
        wrong["context"] = (
            f"--methods context: the stream and a chunk have {wanted} tokens, and the model "
            f"{positions} positions; give fewer --inner-steps, a smaller --max-length, or remove "
            "context"
        )
    for method in settings.methods:
        if method not in METHODS:
            raise InputError(
                f"--methods {method}: does not apply to documents; choose from {', '.join(METHODS)}"
            )
        if method in wrong:
            raise InputError(wrong[method])
    return tuple(dict.fromkeys(settings.methods)) or tuple(m for m in METHODS if m not in wrong)


def open_eval_windows(settings: EvaluateSettings, few_shot: FewShot) -> Windows:
    """Return the first chunks of all documents of `--tasks`.

    Raises:
        InputError: the documents cannot be used, or there is only one.
    """
    spec = stream_spec(few_shot, settings.queries, settings.max_length)
    documents = load_streams(settings, few_shot.model, spec.length)
    where = f"--tasks {' '.join(settings.tasks)}"
    if len(documents) < 2:
        raise InputError(
            f"{where}: has one document of two chunks of {spec.length} tokens, but intervals need "
            "two; give more documents"
        )
    return open_windows(documents, spec, where)


def compare(
    settings: EvaluateSettings,
    few_shot: FewShot,
    plain: FewShot,
    windows: Windows,
    methods: Sequence[str],
) -> list[DocumentRow]:
    """Measure each method.

    Args:
        settings: for the names in the rows.
        few_shot: the model given.
        plain: the weights from before meta-training, with the same inner loop.
        windows: what to measure on.
        methods: names of `METHODS`.

    Returns:
        One row per method, in order.
    """
    model = plain.model
    adapted = adapted_losses(model, few_shot.algorithm(), few_shot.merge)
    runs: dict[str, Callable[[], np.ndarray]] = {
        "checkpoint": lambda: adapted("checkpoint", windows, few_shot.meta_params),
        "same-steps": lambda: adapted("same-steps", windows, plain.meta_params),
        "none": lambda: plain_losses(model)("none", windows, plain.params),
        "context": lambda: plain_losses(model, with_context=True)("context", windows, plain.params),
    }
    measured, seconds = [], []
    for method in methods:
        start = time.perf_counter()
        measured.append(runs[method]())
        seconds.append(time.perf_counter() - start)
        if not np.isfinite(measured[-1]).all():
            raise InputError(
                f"--methods {method}: the loss of a document is not finite; give a smaller "
                "--inner-lr, or other weights"
            )
    return [
        DocumentRow(
            tasks=" ".join(settings.tasks),
            protocol=_describe(windows),
            method=method,
            documents=len(windows.chunks),
            inner_steps=windows.spec.support if method in METHODS[:2] else 0,
            seconds=round(each, 3),
            **_measures(windows, nats, measured[0]),
        )
        for method, nats, each in zip(methods, measured, seconds)
    ]


def _measures(windows: Windows, nats: np.ndarray, first: np.ndarray) -> dict[str, Any]:
    totals, counts = windows.totals(nats)
    loss = ratio_estimate(totals, counts)
    behind = ratio_estimate(totals - windows.totals(first)[0], counts)
    return {
        "loss": float(loss.mean),
        "ci95": float(loss.ci95),
        "bits_per_byte": windows.results(nats)["bits_per_byte"],
        "behind": float(behind.mean),
        "behind_ci95": float(behind.ci95),
        "losses": tuple((totals / counts).tolist()),
        "chunks": tuple(windows.by_chunk(nats)),
    }


def _describe(windows: Windows) -> str:
    spec = windows.spec
    short = sum(len(chunks.input_ids) < spec.chunks for chunks in windows.chunks)
    tested = (
        f"up to {spec.query} following chunks are tested after all steps"
        if spec.query
        else "each is tested before the step on it"
    )
    return (
        f"{len(windows.chunks)} documents, the first {spec.support} chunks of {spec.length} tokens "
        f"to adapt to, one per step; {tested}; {short} documents have fewer chunks"
    )


def table(rows: Sequence[DocumentRow]) -> str:
    """Format the rows as text, best first, with the lead of the first method over the others."""
    best_first = sorted(rows, key=lambda row: row.loss)
    return "\n".join(
        [
            printable(rows[0].protocol),
            "method      nats/token   95% interval   bits/byte   seconds",
            *(
                f"{row.method:<10}  {row.loss:10.4f}   ± {row.ci95:8.4f}     "
                f"{row.bits_per_byte:9.4f}   {row.seconds:7.1f}"
                for row in best_first
            ),
            *(
                f"{rows[0].method} ahead of {row.method} by {row.behind:.4f} "
                f"± {row.behind_ci95:.4f} nats/token, document by document"
                for row in best_first
                if row is not rows[0]
            ),
            "nats/token by chunk:",
            *(
                f"{row.method:<10}  {' '.join(f'{loss:.3f}' for loss in row.chunks)}"
                for row in rows
            ),
        ]
    )
