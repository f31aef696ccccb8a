"""Losses on documents by chunk, against plain gradient steps in float64."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import data
from metajax.algorithms.maml import maml
from metajax.algorithms.test_time import test_time_training as online  # Not a test.
from metajax.errors import InputError
from metajax.models import Transformer, causal_lm_loss
from metajax.runs import document_losses
from metajax.runs.document_losses import adapted_losses, context_length, plain_losses
from metajax.runs.document_tasks import open_windows
from tests import tiny
from tests.models.helpers import llama_settings

LENGTH, STEPS, QUERIES = 8, 2, 2
RATE = 0.3
WIDTH = (STEPS + QUERIES) * (LENGTH - 1) + 1


class Reference:
    """The definition of each method, on one document, by plain gradient steps in float64."""

    def __init__(self, model, params, *, on_stream):
        self.on_stream = on_stream
        with jax.enable_x64(True):
            wide = lambda leaf: jnp.asarray(leaf, jnp.float64)  # noqa: E731
            self.params = jax.tree.map(wide, params)
        self.loss = jax.jit(causal_lm_loss(model))
        self.gradient = jax.jit(jax.grad(causal_lm_loss(model), has_aux=True))

    def nats(self, params, ids):
        """The summed loss of the tokens but the first. One shape is compiled."""
        return float(self.loss(params, text(ids), None)[0]) * (len(ids) - 1)

    def chunks(self, ids, method):
        """The nats of each chunk, its number of tokens, and whether it is tested."""
        chunks = [ids[at : at + LENGTH] for at in range(0, len(ids) - 1, LENGTH - 1)]
        chunks = chunks[: STEPS + (0 if self.on_stream else QUERIES)]
        support = STEPS if self.on_stream else min(STEPS, len(chunks) - 1)
        params, rows = self.params, []
        for number, chunk in enumerate(chunks):
            nats = self.nats(params, chunk)
            if method == "context" and number:
                before = np.concatenate([own[:-1] for own in chunks[: min(number, support)]])
                nats = self.nats(params, [*before, *chunk])
                nats -= self.nats(params, [*before, chunk[0]])
            if method == "adapted" and number < support:
                grads = self.gradient(params, text(chunk), None)[0]
                params = jax.tree.map(lambda p, g: p - RATE * g, params, grads)
            rows.append((nats, len(chunk) - 1, self.on_stream or number >= support))
        return rows


def text(ids):
    filled = np.zeros((1, WIDTH), int)
    filled[0, : len(ids)] = ids
    return {"input_ids": filled, "attention_mask": (np.arange(WIDTH) < len(ids))[None].astype(int)}


CONFIG = dataclasses.replace(tiny.CONFIG, **llama_settings("llama"), vocab_size=30)
MODEL = Transformer(CONFIG, head="causal_lm")
SIZES = (40, 9, 29, 30, 16, 13, 22)  # Tokens.
SPECS = {
    "query set": data.StreamSpec(STEPS, QUERIES, LENGTH),
    "stream": data.StreamSpec(STEPS, 0, LENGTH),
}


def make_documents():
    draw = np.random.default_rng(0)
    return [
        data.TokenizedDocument(draw.integers(1, 30, size), draw.integers(0, 4, size))
        for size in SIZES
    ]


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0))


def losses_of(method, on_stream):
    if method != "adapted":
        return plain_losses(MODEL, with_context=method == "context")
    loss_fn, sgd = causal_lm_loss(MODEL), optax.sgd(RATE)
    if on_stream:
        return adapted_losses(MODEL, online(loss_fn, sgd, STEPS), lambda params: params)
    algorithm = maml(loss_fn, sgd, STEPS, stream=True)
    return adapted_losses(MODEL, algorithm, lambda params: params)


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("method", ["adapted", "none", "context"])
def test_each_chunk_has_the_loss_of_its_definition(params, monkeypatch, kind, method):
    """Three documents or chunks at a time, so that the last group overlaps the one before."""
    monkeypatch.setattr(document_losses, "_GROUP", 3)
    monkeypatch.setattr(document_losses, "_ROWS", 3)
    on_stream, documents = kind == "stream", make_documents()
    windows = open_windows(documents, SPECS[kind], "here")
    nats = losses_of(method, on_stream)("what", windows, params)
    reference = Reference(MODEL, params, on_stream=on_stream)
    with jax.enable_x64(True):
        rows = [reference.chunks(each.input_ids, method) for each in documents]
    chunks = SPECS[kind].chunks
    assert nats.shape == (len(documents), chunks)
    for row, (found, known) in enumerate(zip(nats, rows)):
        expected = [n for n, *_ in known]
        np.testing.assert_allclose(found[: len(known)], expected, rtol=1e-4, err_msg=str(row))
        assert not found[len(known) :].any()
    tested = [[(n, count) for n, count, tested in known if tested] for known in rows]
    totals, counts = windows.totals(nats)
    np.testing.assert_allclose(totals, [sum(n for n, _ in own) for own in tested], rtol=1e-4)
    assert counts.tolist() == [sum(count for _, count in own) for own in tested]
    present = [[own[at] for own in rows if len(own) > at] for at in range(chunks)]
    means = [sum(n for n, *_ in own) / sum(count for _, count, _ in own) for own in present]
    assert windows.by_chunk(nats) == pytest.approx(means, rel=1e-4)


def test_bytes_are_those_of_the_tokens_that_are_tested():
    windows = open_windows(make_documents(), SPECS["query set"], "here")
    nats = np.ones(windows.counts.shape)
    num_bytes = nats_tested = 0
    for document in make_documents():
        sizes = document.num_bytes[1:]
        last = min(len(sizes), (STEPS + QUERIES) * (LENGTH - 1))
        chunks = -(-last // (LENGTH - 1))
        first = min(STEPS, chunks - 1)
        num_bytes += sizes[first * (LENGTH - 1) : last].sum()
        nats_tested += chunks - first
    bits = nats_tested / math.log(2) / num_bytes
    assert windows.results(nats)["bits_per_byte"] == pytest.approx(bits)


def test_context_is_the_stream_and_a_chunk():
    assert context_length(SPECS["query set"]) == 3 * 7 + 1
    assert context_length(SPECS["stream"]) == 2 * 7 + 1


def test_documents_whose_tested_chunks_have_no_text():
    document = data.TokenizedDocument(np.arange(9), np.arange(9) * (np.arange(9) < 8))
    with pytest.raises(InputError, match="here: has no text to predict after the stream"):
        open_windows([document], SPECS["query set"], "here")
