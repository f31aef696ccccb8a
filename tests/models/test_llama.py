"""Models of Llama's shape against transformers' own networks, in float64."""

import dataclasses
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax.data.packing import Shape, pack
from metajax.errors import InputError
from metajax.models import (
    Transformer,
    TransformerConfig,
    bert,
    compose,
    convert,
    from_pretrained,
    mentioned_rows,
    save_pretrained,
    separate_layers,
    upper_layers,
    with_head,
)
from metajax.models.layers import RMSNorm
from metajax.models.renaming import from_bert
from metajax.models.rotary import RopeScaling
from tests.models.helpers import (
    LLAMAS,
    TINY,
    assert_equal,
    llama_settings,
    make_batch,
    make_params,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from benchmarks import parity  # noqa: E402 (it imports them)

HEADS = ("encoder", "causal_lm", "classification")
SCALINGS = {
    "linear": RopeScaling("linear", 3.0),
    # Of the three pairs of features one is fast, one slow and one between.
    "llama3": RopeScaling("llama3", 8.0, 0.05, 2.0, 14),
}


def make_model(model_type, head="encoder", **changes):
    config = dataclasses.replace(TINY, layer_norm_eps=0.05, **llama_settings(model_type))
    config = dataclasses.replace(config, **changes)
    return Transformer(config, head=head, num_labels=(3,))


def make_llama_params(model, dtype=jnp.float64):
    """Random, but for the bias that transformers' classifier does not have."""
    params = make_params(model, dtype=dtype)
    if model.head == "classification":
        params["classifier"]["bias"] *= 0
    return params


def load_theirs(model, params, directory, monkeypatch):
    """The model of transformers that reads what we write, all of it in float64."""
    save_pretrained(directory, model, params)
    kind = parity.class_of(model.config.model_type, model.head)
    for name in (kind.__module__, "transformers.modeling_rope_utils"):
        monkeypatch.setattr(importlib.import_module(name), "torch", parity.Float64Torch())
    theirs, info = kind.from_pretrained(
        directory, output_loading_info=True, dtype=torch.float64, attn_implementation="eager"
    )
    assert not any(info.values()), info
    parity.widen_rotation(theirs)
    assert getattr(theirs, "model", theirs).rotary_emb.inv_freq.dtype == torch.float64
    return theirs.eval()


def run_theirs(theirs, batch, head):
    names = ("input_ids", "attention_mask")
    found = theirs(**{name: torch.tensor(np.asarray(batch[name])).long() for name in names})
    return found.last_hidden_state if head == "encoder" else found.logits


def outputs_of(model, params, batch):
    outputs = jax.jit(model)(params, batch)
    return outputs.last_hidden_state if model.head == "encoder" else outputs.logits


def check_agreement(model, directory, monkeypatch):
    """Outputs to 1e-12 and, of a causal LM, the gradient of every parameter."""
    params, batch = make_llama_params(model), make_batch()
    theirs = load_theirs(model, params, directory, monkeypatch)
    expected = run_theirs(theirs, batch, model.head)
    weights = np.random.RandomState(0).standard_normal(expected.shape)
    if weights.ndim == 3:
        weights *= np.asarray(batch["attention_mask"])[:, :, None]

    def weighted(params):
        ours = outputs_of(model, params, batch)
        return (ours * weights).sum(), ours

    run = jax.grad(weighted, has_aux=True) if model.head == "causal_lm" else weighted
    grads, ours = jax.jit(run)(params)
    assert (np.abs(ours - expected.detach().numpy()) * (weights != 0)).max() < 1e-12
    if model.head != "causal_lm":
        return
    (expected * torch.tensor(weights)).sum().backward()
    found = from_bert(convert.to_hugging_face(grads), model.config.model_type, 0, "causal_lm")
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert found.keys() == wanted.keys()
    for name, grad in found.items():
        np.testing.assert_allclose(grad, wanted[name].numpy(), atol=1e-11, err_msg=name)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("model_type", LLAMAS)
def test_outputs_and_gradients_agree_in_float64(tmp_path, monkeypatch, model_type, head):
    check_agreement(make_model(model_type, head), tmp_path, monkeypatch)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"num_key_value_heads": None, "head_dim": None, "attention_bias": False},
        {"rope_scaling": SCALINGS["linear"]},
        {"rope_scaling": SCALINGS["llama3"]},
    ],
)
def test_each_variant_agrees_in_float64(tmp_path, monkeypatch, changes):
    model = make_model("llama", "causal_lm", **changes)
    check_agreement(model, tmp_path, monkeypatch)
    params = make_llama_params(model)
    again, same = from_pretrained(str(tmp_path), "causal_lm", param_dtype=jnp.float64)
    assert again.config == model.config
    assert_equal(same, params)
    assert ("lm_head" in params) is not model.config.tie_word_embeddings


@pytest.mark.usefixtures("x64")
def test_rows_in_chunks_change_nothing(monkeypatch):
    model, batch = make_model("qwen3", "causal_lm"), make_batch(batch=4)
    params = make_llama_params(model)

    def energy(model):
        return lambda params: jnp.square(model(params, batch).logits).sum()

    expected = jax.jit(jax.grad(energy(model)))(params)
    monkeypatch.setitem(bert._CHUNK_TOKENS, "cpu", 14)
    found = jax.jit(jax.grad(energy(model.replace(remat=True))))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), found, expected)


@pytest.mark.usefixtures("x64")
def test_padding_before_a_text_changes_nothing():
    """Only distances matter to rotary positions."""
    model, batch = make_model("mistral"), make_batch(batch=1)
    params = make_llama_params(model)
    other = {key: jnp.pad(value, ((0, 0), (5, 0))) for key, value in batch.items()}
    expected, found = jax.jit(model)(params, batch), jax.jit(model)(params, other)
    np.testing.assert_allclose(
        found.last_hidden_state[:, 5:], expected.last_hidden_state, atol=1e-12
    )


def test_statistics_of_bfloat16_are_taken_in_float32():
    x = jnp.asarray(np.random.RandomState(0).standard_normal((9, 64)), jnp.bfloat16)
    wide = np.asarray(x, "f8")
    expected = wide / np.sqrt(np.square(wide).mean(-1, keepdims=True) + 1e-6)
    found = RMSNorm(64, 1e-6)(x)
    assert found.dtype == jnp.bfloat16
    assert (found == jnp.asarray(expected, jnp.bfloat16)).mean() > 0.99


def test_logits_of_bfloat16_are_summed_and_kept_in_float32():
    for tied in (True, False):
        model = make_model("llama", "causal_lm", tie_word_embeddings=tied)
        params = make_llama_params(model, jnp.bfloat16)
        hidden = jnp.asarray(np.random.RandomState(0).standard_normal((5, 8)), jnp.bfloat16)
        table = params["embeddings"]["word"].T if tied else params["lm_head"]["kernel"]
        expected = np.asarray(hidden, "f8") @ np.asarray(table, "f8")
        np.testing.assert_allclose(model.decode(params, hidden), expected, rtol=1e-5, atol=1e-6)


def test_more_tokens_than_positions_are_refused():
    model = make_model("llama")
    with pytest.raises(ValueError, match="input_ids are 17 long, but the model has 16 positions"):
        model(make_llama_params(model, jnp.float32), make_batch(length=17))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("head", ["causal_lm", "classification"])
def test_reduced_parameters_give_the_same(head, packed):
    model, batch = make_model("mistral", head), make_batch()
    params = make_llama_params(model)
    if packed:
        batch = pack({key: np.asarray(value) for key, value in batch.items()}, Shape(1, 16))
    changes = [separate_layers(), upper_layers(model, 1)]
    changes += [mentioned_rows(model)] if head == "classification" else []
    for reparametrize in (*changes, compose(*changes[:2])):
        small, task, undo = reparametrize(params, metajax.Task(batch, None))
        np.testing.assert_allclose(
            jax.jit(model)(small, task.support).logits,
            jax.jit(model)(params, batch).logits,
            atol=1e-12,
        )
        assert_equal(undo(small), params)
    assert ("input_ids" in task.support) is (head == "causal_lm")


def test_a_language_models_head_keeps_the_embedding_table():
    tied, untied = (
        make_model("llama", "causal_lm", tie_word_embeddings=value) for value in (True, False)
    )
    for model in (tied, untied):
        with pytest.raises(ValueError, match="needs every row of the embedding table"):
            mentioned_rows(model)
    with pytest.raises(ValueError, match="reads the embedding table, which this removes"):
        upper_layers(tied, 1)


def test_a_new_head_replaces_another():
    model = make_model("llama", "causal_lm")
    params = make_llama_params(model, jnp.float32)
    classifier, moved = with_head(model, params, head="classification", num_labels=4)
    assert_equal(moved["layers"], params["layers"])
    assert moved.keys() == {"embeddings", "layers", "final_norm", "classifier"}
    _, again = with_head(classifier, moved, head="causal_lm")
    assert again["lm_head"]["kernel"].shape == (8, 31)


GIVEN = make_model("llama").config.to_dict() | {"rope_scaling": None, "rope_theta": 10000.0}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "theta", "scaling"),
    [
        ({}, 10000.0, None),
        ({"rope_theta": 5.0}, 5.0, None),
        ({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}, 7.0, None),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 10000.0, RopeScaling("linear", 2)),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 5e5},
            5e5,
            RopeScaling("llama3", 8.0, 1.0, 4.0, 16),
        ),
    ],
)
def test_rotary_positions_are_read_in_the_formats_of_all_versions(changes, theta, scaling):
    config = TransformerConfig.from_dict(GIVEN | changes, "config.json")
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)
    assert TransformerConfig.from_dict(config.to_dict(), "config.json") == config


def test_several_tokens_may_end_a_text():
    values = GIVEN | {"eos_token_id": [7, 9], "pad_token_id": None}
    config = TransformerConfig.from_dict(values, "config.json")
    assert (config.eos_token_id, config.pad_token_id) == ((7, 9), 7)
    written = json.loads(json.dumps(config.to_dict()))
    assert written["eos_token_id"] == [7, 9]
    assert TransformerConfig.from_dict(written, "config.json") == config


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "of type 'yarn' are not"),
        (
            "llama",
            {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
            "of type 'dynamic' are not",
        ),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "of type 'longrope' are not"),
        ("llama", {"rope_scaling": {"rope_type": ["linear"]}}, "are not supported; give a model"),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling is 'linear'; it has to be an object"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "factor is None; it has to be a number"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}},
            "low_freq_factor is 4.0; it has to be below high_freq_factor 4.0",
        ),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, but only 1.0"),
        ("llama", {"rope_theta": 0}, "rope_theta is 0; it has to be a number above 0"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True, but only False"),
        ("llama", {"attention_bias": 1}, "attention_bias is 1; it has to be true or false"),
        ("llama", {"hidden_act": "swiglu"}, "hidden_act is 'swiglu'; it has to be one of"),
        ("llama", {"head_dim": 5}, "head_dim is 5; it has to be even"),
        ("llama", {"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key"),
        ("llama", {"head_dim": None, "hidden_size": 10}, "hidden_size 10 is not a multiple"),
        ("llama", {"eos_token_id": [2, -1]}, "eos_token_id is .* whole number"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True, but only False"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 2}, "layer_types is .*full_attention is"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0; it has to be a whole number"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(model_type, changes, message):
    values = GIVEN | {"model_type": model_type} | changes
    with pytest.raises(InputError, match=f"^config.json: .*{message}"):
        TransformerConfig.from_dict(values, "config.json")
