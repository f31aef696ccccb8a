"""Stage 1: language modelling on plain text.

An encoder guesses masked tokens (Devlin et al. 2018, section 3.1), a decoder each next token
(Radford et al. 2018, section 3.1).
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax import data
from metajax.algorithms.supervised import split_batch, supervised
from metajax.config.fields import flag, flag_and_value
from metajax.config.settings import PretrainSettings
from metajax.data.duplicates import count_repeated
from metajax.errors import InputError
from metajax.models import Transformer, causal_lm_loss, masked_lm_loss
from metajax.runs.described import is_decoder
from metajax.runs.loop import Stage, train
from metajax.runs.parts import with_parts
from metajax.runs.record import make_record
from metajax.runs.source import describe, open_source, text_length, without_dropout
from metajax.runs.workdir import open_run
from metajax.training import distributed
from metajax.training.evaluation import run_episodes
from metajax.types import Batch, LossFn, MetaAlgorithm, Params, Task

_log = logging.getLogger("metajax")
_HELD_OUT_BATCH = 32


class _Objective(NamedTuple):
    """What a model learns from the text.

    Attributes:
        loss: the loss of training.
        make_batch: from a step's number to its batch.
        measure: from the algorithm without dropout and parameters to the results on held-out text.
    """

    loss: LossFn
    make_batch: Callable[[int], Batch]
    measure: Callable[[MetaAlgorithm, Params], dict[str, float]]


def pretrain(settings: PretrainSettings) -> dict[str, Any]:
    """Train on `settings.text`, and measure the loss on held-out text before and after.

    Returns:
        `before` and `after`, on held-out text: the `loss` (nats per predicted token), `perplexity`
        and `accuracy`. For a decoder also `bits_per_byte`, the bits of the predicted tokens per
        byte of their text in UTF-8.

    Raises:
        InputError: the input cannot be used.
    """
    settings, parts = with_parts(settings)
    lines = _read(settings.text)
    _report_repeated(lines)
    causal = is_decoder(settings.model)
    if causal:
        _refuse_masking(settings)
    source = open_source(settings.model, settings, head="causal_lm" if causal else "masked_lm")
    model = source.model
    objective = (_next_tokens if causal else _masked_tokens)(lines, model, settings)
    record = make_record(
        "pretrain",
        settings,
        data={f"--text {path}": data.fingerprint(path) for path in settings.text},
        parent=source.record,
        model=describe(model),
    )

    quiet = supervised(without_dropout(objective.loss))

    def make_tasks(step: int) -> Task:
        batch = objective.make_batch(step)
        local = distributed.local_slice(parts)
        return jax.tree.map(lambda leaf: leaf[local], split_batch(batch, parts))

    return train(
        Stage(
            run=open_run(settings.workdir, record),
            settings=settings,
            model=model,
            algorithm=supervised(objective.loss),
            make_tasks=make_tasks,
            num_steps=settings.steps,
            measure=lambda params: objective.measure(quiet, params),
            measured_on="the held-out part of the text (--held-out)",
        ),
        source.params,
    )


def _read(specs: Sequence[str]) -> list[str]:
    """Return the documents of `--text`: the lines of plain text files, or those of documents."""
    texts: list[str] = []
    for spec in specs:
        path = spec.removeprefix("documents:")
        texts += data.read_lines(path) if path == spec else data.load_documents(path)
    return texts


def _refuse_masking(settings: PretrainSettings) -> None:
    """Refuse the settings of masking, which a decoder does not take.

    Raises:
        InputError: one of them is not the default.
    """
    for name in ("mask_rate", "whole_word"):
        value = getattr(settings, name)
        if value != getattr(PretrainSettings, name):
            raise InputError(
                f"{flag_and_value(name, value)}: a decoder predicts next tokens and masks none; "
                f"remove {flag(name)}, or give an encoder such as a BERT"
            )


def _masked_tokens(
    lines: Sequence[str], model: Transformer, settings: PretrainSettings
) -> _Objective:
    blocks = data.pack_blocks(lines, model.tokenizer, text_length(model, settings.max_length))
    training, held_out = _split(blocks, settings)
    rule = data.mask_rule(model.tokenizer, rate=settings.mask_rate, whole_word=settings.whole_word)

    def make_batch(step: int) -> Batch:
        return data.pretraining_batch(training, rule, settings.seed, step, settings.batch_size)

    def measure(quiet: MetaAlgorithm, params: Params) -> dict[str, float]:
        return held_out_loss(quiet, params, held_out, rule, settings.seed)

    return _Objective(masked_lm_loss(model), make_batch, measure)


def _next_tokens(
    lines: Sequence[str], model: Transformer, settings: PretrainSettings
) -> _Objective:
    length = text_length(model, settings.max_length)
    documents = data.pack_documents(lines, model.tokenizer, length)
    training, held_out = data.held_out(documents, settings.seed, settings.held_out)
    if not held_out.num_bytes[held_out.predicted].any():
        raise InputError(
            f"--text {' '.join(settings.text)}: the held-out part has no token to predict; give "
            "more text, or another --seed"
        )

    def make_batch(step: int) -> Batch:
        return data.next_token_batch(training, settings.seed, step, settings.batch_size)

    def measure(quiet: MetaAlgorithm, params: Params) -> dict[str, float]:
        return next_token_results(quiet, params, held_out)

    return _Objective(causal_lm_loss(model), make_batch, measure)


def _split(blocks: data.Blocks, settings: PretrainSettings) -> tuple[data.Blocks, data.Blocks]:
    """Split the blocks into training and held-out blocks.

    Raises:
        InputError: the held-out blocks have no word that can be masked.
    """
    training, held_out = data.held_out(blocks, settings.seed, settings.held_out)
    if not held_out.maskable.any():
        raise InputError(
            f"--text {' '.join(settings.text)}: the model's vocabulary has no word of the held-out "
            "part; give text in the model's language, or another --seed"
        )
    return training, held_out


def _report_repeated(lines: Sequence[str]) -> None:
    """Warn of repeated lines, because one copy may be trained on and another held out."""
    repeated = count_repeated(lines)
    if repeated:
        _log.warning(
            "%d of %d lines or documents are repeated, so measurements on held-out text may be too "
            "good",
            *(repeated, len(lines)),
        )


def held_out_loss(
    algorithm: MetaAlgorithm, params: Params, blocks: data.Blocks, rule: data.MaskRule, seed: int
) -> dict[str, float]:
    """Compute the masked-LM loss of blocks, with the same masks at each call."""
    size = min(_HELD_OUT_BATCH, len(blocks.input_ids))

    def make_batch(first: int) -> Batch:
        # The last batch overlaps the one before, so that one shape is compiled. The overlap
        # counts twice.
        rows = slice(min(first, len(blocks.input_ids) - size), first + size)
        return data.mask_tokens(data.take(blocks, rows), rule, seed, first)

    return _mean_results(algorithm, params, map(make_batch, range(0, len(blocks.input_ids), size)))


def next_token_results(
    algorithm: MetaAlgorithm, params: Params, documents: data.Documents
) -> dict[str, float]:
    """Compute the causal-LM loss of blocks of documents, and its bits per byte of their text."""
    count = len(documents.input_ids)
    size = min(_HELD_OUT_BATCH, count)

    def make_batch(first: int) -> Batch:
        begin = min(first, count - size)
        batch = data.document_batch(data.take(documents, slice(begin, begin + size)))
        # One shape is compiled: blocks that were in the batch before are padding in the last one.
        repeated = np.arange(size)[:, None] < first - begin
        return batch | {"example_ids": np.where(repeated, -1, batch["example_ids"])}

    results = _mean_results(algorithm, params, map(make_batch, range(0, count, size)))
    nats = results["loss"] * documents.predicted.sum()
    num_bytes = documents.num_bytes[documents.predicted].sum()
    return results | {"bits_per_byte": float(nats / math.log(2) / num_bytes)}


def _mean_results(
    algorithm: MetaAlgorithm, params: Params, batches: Iterable[Batch]
) -> dict[str, float]:
    """Return the means over all tokens that the batches predict."""
    total = correct = count = 0.0
    for batch in batches:
        info = run_episodes(algorithm, params, split_batch(batch, 1), jax.random.key(0))
        predicted = float(info.query_aux["count"][0])
        total += float(info.query_loss[0]) * predicted
        correct += float(info.query_aux["accuracy"][0]) * predicted
        count += predicted
    loss = total / count
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "accuracy": correct / count,
    }
