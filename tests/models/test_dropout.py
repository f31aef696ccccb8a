"""Where dropout is, by which rate and from which key."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax.models import (
    Transformer,
    classification_loss,
    from_pretrained,
    layers,
    masked_lm_loss,
    prototype_init,
    separate_layers,
)
from metajax.models.layers import dropout
from tests.models.helpers import ENCODERS, TINY, make_batch, make_params

GPT2 = dataclasses.replace(
    TINY,
    model_type="gpt2",
    type_vocab_size=0,
    hidden_act="gelu_new",
    layer_norm_eps=1e-5,
    classifier_dropout=0.0,
    eos_token_id=30,
)
ELECTRA = dataclasses.replace(TINY, model_type="electra", embedding_size=6)
DEBERTA = dataclasses.replace(TINY, model_type="deberta-v2", **ENCODERS["deberta-v2"])
MODERNBERT = dataclasses.replace(
    TINY,
    model_type="modernbert",
    layer_norm_eps=1e-5,
    attention_bias=True,  # So that attention has an output if all values are dropped.
    **ENCODERS["modernbert"],
)
MPNET = dataclasses.replace(TINY, model_type="mpnet", pad_token_id=1, type_vocab_size=0)
ALBERT = dataclasses.replace(TINY, model_type="albert", embedding_size=6)
STILL = dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), 0.0
)
KEY = jax.random.key(3)
# A rate of 1 is refused; at this one, one element of 2**32 stays.
ALL = 1 - 2**-32


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (TINY, {"hidden_dropout_prob": ALL}),
        (TINY, {"hidden_dropout_prob": ALL, "classifier_dropout": None}),
        (TINY, {"attention_probs_dropout_prob": ALL}),
        (TINY, {"classifier_dropout": ALL}),
        (ELECTRA, {"hidden_dropout_prob": ALL}),
        (DEBERTA, {"hidden_dropout_prob": ALL}),
        (DEBERTA, {"attention_probs_dropout_prob": ALL}),
        (MODERNBERT, {"hidden_dropout_prob": ALL, "embedding_dropout_prob": 0.0}),
        (MODERNBERT, {"embedding_dropout_prob": ALL}),
        (MODERNBERT, {"attention_probs_dropout_prob": ALL}),
        (MODERNBERT, {"classifier_dropout": ALL}),
        (ALBERT, {"classifier_dropout": ALL}),
        (MPNET, {"hidden_dropout_prob": ALL, "classifier_dropout": None}),
        (MPNET, {"attention_probs_dropout_prob": ALL, "classifier_dropout": None}),
        (GPT2, {"hidden_dropout_prob": ALL, "embedding_dropout_prob": 0.0}),
        (GPT2, {"embedding_dropout_prob": ALL}),
        (GPT2, {"attention_probs_dropout_prob": ALL}),
    ],
)
def test_each_rate_drops_what_it_drops_in_transformers(tmp_path, config, rates):
    """All of it: then the two draws are the same."""
    torch = pytest.importorskip("torch")
    from benchmarks import parity

    config = dataclasses.replace(config, **{**STILL, **rates})
    theirs = parity.write(config, "classification", tmp_path, scale=0.3)
    theirs.set_attn_implementation("eager")
    model, params = from_pretrained(str(tmp_path), "classification")
    assert model.config == config
    batch = make_batch()
    # MPNet counts the tokens unlike padding.
    batch["input_ids"] = jnp.maximum(batch["input_ids"], 2) * batch["attention_mask"]
    given = {key: torch.tensor(np.asarray(value)).long() for key, value in batch.items()}
    if not config.type_vocab_size:
        del given["token_type_ids"]
    expected = theirs.train()(**given, output_hidden_states=True)
    ours = jax.jit(model)(params, batch, KEY)
    np.testing.assert_allclose(ours.logits, expected.logits.detach(), atol=1e-4)
    gap = ours.last_hidden_state - expected.hidden_states[-1].detach().numpy()
    assert np.abs(gap * batch["attention_mask"][:, :, None]).max() < 1e-4
    # And that rate has an effect.
    assert np.abs(ours.logits - jax.jit(model)(params, batch).logits).max() > 1e-2


@pytest.mark.parametrize(("config", "separate"), [(TINY, False), (GPT2, True)])
def test_no_two_masks_have_the_same_key(config, separate, monkeypatch):
    """Embeddings, attention and both outputs of each layer, head."""
    keys, keep_mask = [], layers.keep_mask

    def recording(key, shape, rate):
        # Some are drawn in loops, where a key has no value yet.
        jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), jax.random.key_data(key))
        return keep_mask(key, shape, rate)

    monkeypatch.setattr(layers, "keep_mask", recording)
    rates = dict.fromkeys(STILL, 0.5)
    config = dataclasses.replace(config, num_hidden_layers=3, **rates)
    model = Transformer(config, head="classification")
    params = make_params(model)
    if separate:
        params, _, _ = separate_layers()(params, metajax.Task(None, None))
    model(params, make_batch(), KEY)
    jax.effects_barrier()
    assert len(keys) == len(set(keys)) == 1 + 3 * 3 + 1


def test_the_head_has_its_own_dropout():
    config = dataclasses.replace(TINY, **STILL | {"classifier_dropout": 0.5})
    model = Transformer(config, head="classification", num_labels=(3,), feature_norm=2.0)
    params, batch = make_params(model), make_batch()
    outputs, plain = jax.jit(model)(params, batch, KEY), jax.jit(model)(params, batch)
    np.testing.assert_array_equal(outputs.pooled, plain.pooled)
    features = jax.jit(model.features)(params, batch, KEY)
    np.testing.assert_array_equal(features, jax.jit(model.features)(params, batch))
    kernel, bias = (params["classifier"][name][0] for name in ("kernel", "bias"))
    expected = dropout(features, 0.5, jax.random.split(KEY)[1]) @ kernel + bias
    np.testing.assert_allclose(outputs.logits, expected, atol=1e-5)
    assert np.abs(outputs.logits - plain.logits).max() > 0.1


def test_features_and_losses_draw_what_a_call_draws():
    model = Transformer(TINY, head="classification", pooling="mean", feature_norm=2.0)
    params, batch = make_params(model), make_batch() | {"labels": jnp.array([0, 1, 1])}
    outputs = jax.jit(model)(params, batch, KEY)
    features = np.asarray(jax.jit(model.features)(params, batch, KEY))
    lengths = np.linalg.norm(outputs.pooled, axis=-1, keepdims=True)
    np.testing.assert_allclose(features, 2.0 * outputs.pooled / lengths, rtol=1e-5)
    start = prototype_init(model)(params, batch, KEY)["classifier"]["kernel"][0]
    expected = np.stack([features[0], features[1:].mean(0)], axis=1)
    np.testing.assert_allclose(start, expected, rtol=1e-5)
    log_probs = jax.nn.log_softmax(outputs.logits)
    loss, _ = jax.jit(classification_loss(model))(params, batch, KEY)
    np.testing.assert_allclose(loss, -log_probs[jnp.arange(3), batch["labels"]].mean(), rtol=1e-5)


def test_a_masked_lm_loss_draws_what_a_call_draws():
    model = Transformer(TINY, head="masked_lm")
    params, batch = make_params(model), make_batch()
    batch["targets"] = batch["input_ids"]
    log_probs = jax.nn.log_softmax(jax.jit(model)(params, batch, KEY).logits)
    loss, _ = jax.jit(masked_lm_loss(model))(params, batch, KEY)
    own = jnp.take_along_axis(log_probs, batch["targets"][..., None], axis=-1)
    np.testing.assert_allclose(loss, -own.mean(), rtol=1e-5)
