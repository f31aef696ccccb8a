"""Learned vectors before a text."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.data.packing import Shape, pack
from metajax.errors import InputError
from metajax.models import (
    Transformer,
    causal_lm_loss,
    classification_loss,
    init_prefix,
    is_prefix,
    mentioned_rows,
    save_pretrained,
    separate_layers,
    upper_layers,
    with_head,
)
from tests.models.helpers import LLAMAS, TINY, assert_equal, llama_settings, make_batch, make_params

P = 3


def make_model(model_type, head="encoder", pooling="mean", **changes):
    own = llama_settings(model_type) if model_type in LLAMAS else {"model_type": model_type}
    types = 2 if model_type in ("bert", "electra", "albert") else 0
    config = dataclasses.replace(TINY, **{**own, "type_vocab_size": types, **changes})
    return Transformer(config, head=head, pooling=pooling, num_labels=(3,))


BERT = make_model("bert", "classification")
LLAMA = make_model("llama", "causal_lm")


def with_prefix(model, dtype=jnp.float64):
    """Random parameters, and the embeddings of these tokens as vectors before the text."""
    params = make_params(model, dtype=dtype)
    tokens = jnp.array([4, 9, 2])
    return params | {"prefix": {"vectors": params["embeddings"]["word"][tokens]}}, tokens


def in_front(batch, tokens):
    """The same batch with these tokens before each text."""
    count = batch["input_ids"].shape[0]
    first = {
        "input_ids": jnp.broadcast_to(tokens, (count, P)),
        "attention_mask": jnp.ones((count, P), jnp.int32),
        "token_type_ids": jnp.zeros((count, P), jnp.int32),
    }
    return {key: jnp.concatenate([first[key], batch[key]], axis=1) for key in first}


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("mistral", {}),  # Its window of three tokens counts the vectors as tokens.
        ("bert", {}),
        ("electra", {"embedding_size": 4}),
        ("mpnet", {}),
        ("albert", {"embedding_size": 4}),
        ("gpt2", {}),
    ],
)
def test_vectors_of_tokens_are_like_these_tokens_in_front(model_type, changes, x64):
    model = make_model(model_type, **changes)
    params, tokens = with_prefix(model)
    batch = make_batch()
    found = jax.jit(model)(params, batch)
    plain = {key: value for key, value in params.items() if key != "prefix"}
    hidden = model(plain, in_front(batch, tokens)).last_hidden_state[:, P:]
    mask = batch["attention_mask"][:, :, None]
    assert np.abs((found.last_hidden_state - hidden) * mask).max() < 1e-12
    # Pooling is over the text only.
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(found.pooled, pooled, atol=1e-12)
    assert np.abs(found.pooled - model(plain, batch).pooled).max() > 1e-3


def test_logits_and_loss_are_of_the_text_only(x64):
    params, tokens = with_prefix(LLAMA)
    batch = make_batch()
    longer = in_front(batch, tokens)
    plain = {key: value for key, value in params.items() if key != "prefix"}
    mask = batch["attention_mask"][:, :, None]
    logits = LLAMA(plain, longer).logits[:, P:]
    assert np.abs((LLAMA(params, batch).logits - logits) * mask).max() < 1e-12
    # The first token of the text has no target.
    longer["loss_mask"] = (jnp.arange(P + batch["input_ids"].shape[1]) > P) * jnp.ones((3, 1))
    loss, aux = jax.jit(causal_lm_loss(LLAMA))(params, batch, None)
    expected, wanted = jax.jit(causal_lm_loss(LLAMA))(plain, longer, None)
    np.testing.assert_allclose(loss, expected, atol=1e-12)
    assert aux["count"] == wanted["count"]


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_the_last_or_first_token_is_one_of_the_text(model_type, x64):
    model = make_model(model_type, pooling="pooler" if model_type == "llama" else "cls")
    params, _ = with_prefix(model)
    found = jax.jit(model)(params, batch := make_batch())
    last = batch["attention_mask"].sum(1) - 1 if model_type == "llama" else jnp.zeros(3, int)
    assert_equal(found.pooled, found.last_hidden_state[jnp.arange(3), last])


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(
    "change",
    [lambda: separate_layers(), lambda: upper_layers(BERT, 1), lambda: mentioned_rows(BERT)],
)
def test_reparametrizations_keep_it(change, remat, x64):
    params, _ = with_prefix(BERT)
    del params["pooler"]
    batch = make_batch()
    small, task, undo = change()(params, metajax.Task(batch, None))
    logits = BERT.replace(remat=remat)(small, task.support).logits
    np.testing.assert_allclose(logits, BERT(params, batch).logits, atol=1e-12)
    assert_equal(undo(small), params)


def test_upper_layers_leave_nothing_of_it_to_adapt():
    """A step would have no effect on features that are computed once."""
    params, _ = with_prefix(BERT, jnp.float32)
    small, _, _ = upper_layers(BERT, 1)(params, metajax.Task(make_batch(), None))
    assert "prefix" not in small


def test_the_first_values_are_embeddings_of_tokens():
    params = make_params(BERT)
    vectors = init_prefix(params, 5, jax.random.key(0))["prefix"]["vectors"]
    table = np.asarray(params["embeddings"]["word"])
    rows = [np.flatnonzero((table == vector).all(1)) for vector in np.asarray(vectors)]
    assert len({int(row[0]) for row in rows}) > 2
    assert not np.array_equal(
        vectors, init_prefix(params, 5, jax.random.key(1))["prefix"]["vectors"]
    )
    with pytest.raises(ValueError, match="count is 0"):
        init_prefix(params, 0, jax.random.key(0))


def test_another_head_keeps_it():
    params, _ = with_prefix(BERT, jnp.float32)
    _, moved = with_head(BERT, params, head="masked_lm")
    assert_equal(moved["prefix"], params["prefix"])


@pytest.mark.parametrize(("model_type", "pooling"), [("bert", "mean"), ("llama", "pooler")])
@pytest.mark.parametrize("shape", [Shape(2, 9), Shape(3, 7)])
def test_packed_texts_have_vectors_each_of_its_own(model_type, pooling, shape, x64):
    model = make_model(model_type, "classification", pooling)
    params, _ = with_prefix(model)
    plain = make_batch()
    packed = pack({key: np.asarray(value) for key, value in plain.items()}, shape)
    found, expected = (jax.jit(model)(params, batch) for batch in (packed, plain))
    np.testing.assert_allclose(found.pooled, expected.pooled, atol=1e-12)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-12)


def test_what_has_no_place_for_it_is_refused(tmp_path):
    params, _ = with_prefix(BERT, jnp.float32)
    batch = make_batch()
    packed = {**batch, "example_ids": batch["input_ids"]}
    with pytest.raises(InputError, match=r"^prefix: rows of packed [^\n]*; give padded batches$"):
        BERT.hidden(params, packed)
    with pytest.raises(InputError, match=r"no place for params\['prefix'\]; leave it out"):
        save_pretrained(tmp_path, BERT, params)
    with pytest.raises(ValueError, match=r"are 14 long after a prefix of 3, but .* 16 positions"):
        BERT(params, make_batch(length=14))


def nested(loss_fn, params, task, rate, steps):
    """The gradient of the query loss after some steps of gradient descent on the vectors."""

    def meta_loss(params):
        vectors = params["prefix"]["vectors"]
        for _ in range(steps):

            def support_loss(vectors):
                return loss_fn(params | {"prefix": {"vectors": vectors}}, task.support, None)[0]

            vectors = vectors - rate * jax.grad(support_loss)(vectors)
        return loss_fn(params | {"prefix": {"vectors": vectors}}, task.query, None)[0]

    return jax.grad(meta_loss)(params)


@pytest.mark.parametrize("low_memory", [False, True])
def test_maml_of_the_vectors_is_nested_grad(low_memory, x64):
    params, _ = with_prefix(LLAMA)
    task, loss_fn = metajax.Task(make_batch(1), make_batch(2)), causal_lm_loss(LLAMA)
    options = {"trainable": is_prefix, "low_memory": low_memory}
    algorithm = metajax.maml(loss_fn, optax.sgd(0.3), 2, **options)
    grads = jax.jit(algorithm.meta_grad)(params, task, None)[0]
    expected = jax.jit(lambda params: nested(loss_fn, params, task, 0.3, 2))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), grads, expected)
    assert np.abs(grads["prefix"]["vectors"]).max() > 1e-3


def test_tasks_share_the_network(optimized):
    """No kernel is repeated for each of eight tasks, unlike when all parameters adapt."""
    model = BERT
    params = with_prefix(model, jnp.float32)[0]
    batch = make_batch() | {"labels": jnp.array([0, 2, 1])}
    batches = jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), batch)
    repeated = re.compile(r"tensor<8x(2x)?(8x24|12x8|8x12)xf32>")

    def text(trainable, key):
        loss_fn = classification_loss(model)
        fixed = lambda params, batch, rng: loss_fn(params, batch, None)  # noqa: E731
        algorithm = metajax.maml(fixed, optax.sgd(0.3), 2, trainable=trainable)

        def adapted(params, batches):
            return jax.vmap(lambda batch: algorithm.adapt(params, batch, None)[0][key])(batches)

        return jax.jit(adapted).lower(params, batches).as_text()

    assert not repeated.search(text(is_prefix, "prefix"))
    assert repeated.search(text(lambda path: True, "layers"))
