"""Stage 1: masked-language-model training on plain text (Devlin et al. 2018, section 3.1)."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import jax

from metajax import data
from metajax.algorithms.supervised import split_batch, supervised
from metajax.config.settings import PretrainSettings
from metajax.data.normalization import normalize
from metajax.errors import InputError
from metajax.models import masked_lm_loss
from metajax.runs.loop import Stage, train
from metajax.runs.parts import with_parts
from metajax.runs.record import make_record
from metajax.runs.source import describe, open_source, text_length, without_dropout
from metajax.runs.workdir import open_run
from metajax.training import distributed
from metajax.training.evaluation import run_episodes
from metajax.types import MetaAlgorithm, Params, Task

_log = logging.getLogger("metajax")
_HELD_OUT_BATCH = 32


def pretrain(settings: PretrainSettings) -> dict[str, Any]:
    """Train on `settings.text`, and measure the loss on held-out text before and after.

    Returns:
        `before` and `after`: the masked-LM `loss` (nats per token), `perplexity` and `accuracy` on
        held-out text.

    Raises:
        InputError: the input cannot be used.
    """
    settings, parts = with_parts(settings)
    lines = data.read_lines(settings.text)
    _report_repeated(lines)
    source = open_source(settings.model, settings, head="masked_lm")
    model = source.model
    blocks = data.pack_blocks(lines, model.tokenizer, text_length(model, settings.max_length))
    training, held_out = _split(blocks, settings)
    rule = data.mask_rule(model.tokenizer, rate=settings.mask_rate, whole_word=settings.whole_word)
    record = make_record(
        "pretrain",
        settings,
        data={f"--text {path}": data.fingerprint(path) for path in settings.text},
        parent=source.record,
        model=describe(model),
    )
    loss = masked_lm_loss(model)
    quiet = supervised(without_dropout(loss))

    def make_tasks(step: int) -> Task:
        batch = data.pretraining_batch(training, rule, settings.seed, step, settings.batch_size)
        local = distributed.local_slice(parts)
        return jax.tree.map(lambda leaf: leaf[local], split_batch(batch, parts))

    def measure(params: Params) -> dict[str, float]:
        return held_out_loss(quiet, params, held_out, rule, settings.seed)

    return train(
        Stage(
            run=open_run(settings.workdir, record),
            settings=settings,
            model=model,
            algorithm=supervised(loss),
            make_tasks=make_tasks,
            num_steps=settings.steps,
            measure=measure,
            measured_on="the held-out part of the text (--held-out)",
        ),
        source.params,
    )


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
    repeated = len(lines) - len(set(map(normalize, lines)))
    if repeated:
        _log.warning(
            "%d of %d lines of the text are repeated, so measurements on held-out text may be too "
            "good",
            *(repeated, len(lines)),
        )


def held_out_loss(
    algorithm: MetaAlgorithm, params: Params, blocks: data.Blocks, rule: data.MaskRule, seed: int
) -> dict[str, float]:
    """Compute the masked-LM loss of blocks, with the same masks at each call."""
    total = correct = count = 0.0
    size = min(_HELD_OUT_BATCH, len(blocks.input_ids))
    for first in range(0, len(blocks.input_ids), size):
        # The last batch overlaps the one before, so that one shape is compiled. The overlap
        # counts twice.
        rows = slice(min(first, len(blocks.input_ids) - size), first + size)
        batch = data.mask_tokens(data.take(blocks, rows), rule, seed, first)
        info = run_episodes(algorithm, params, split_batch(batch, 1), jax.random.key(0))
        masked = float(info.query_aux["count"][0])
        total += float(info.query_loss[0]) * masked
        correct += float(info.query_aux["accuracy"][0]) * masked
        count += masked
    loss = total / count
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "accuracy": correct / count,
    }
