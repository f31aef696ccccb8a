"""GPT-2: what is otherwise than in an encoder, against transformers' own network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from metajax.errors import InputError
from metajax.models import (
    Transformer,
    TransformerConfig,
    bert,
    convert,
    from_pretrained,
    has_classifier,
    save_pretrained,
)
from metajax.models.renaming import from_bert
from tests.models.helpers import TINY, assert_equal, make_batch, make_params, write_directory

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIG = dataclasses.replace(
    TINY,
    model_type="gpt2",
    type_vocab_size=0,
    hidden_act="gelu_new",
    layer_norm_eps=1e-5,
    classifier_dropout=0.0,
)
ENCODER = Transformer(CONFIG)
CLASSIFIER = Transformer(CONFIG, head="classification", num_labels=(3,))


def without_bias(params):
    """GPT2ForSequenceClassification has none."""
    return params | {"classifier": params["classifier"] | {"bias": jnp.zeros((1, 3))}}


def theirs_of(kind, model, params, directory):
    save_pretrained(directory, model, params)
    return getattr(transformers, kind).from_pretrained(directory).double().eval()


def to_torch(batch):
    names = ("input_ids", "attention_mask")
    return {name: torch.tensor(np.asarray(batch[name])).long() for name in names}


def compare_gradients(theirs, grads):
    """Every one of our gradients, by their names, against theirs."""
    tensors = convert.to_hugging_face(grads)
    for name in ("weight", "bias"):
        tensors[f"classifier.{name}"] = tensors.pop(f"classifier.0.{name}")
    ours = from_bert(tensors, "gpt2", 0, "classification")
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert ours.keys() == expected.keys()
    for name, grad in ours.items():
        np.testing.assert_allclose(grad, expected[name].numpy(), atol=1e-10, err_msg=name)


@pytest.mark.usefixtures("x64")
def test_hidden_states_agree_in_float64(tmp_path):
    params, batch = make_params(ENCODER), make_batch()
    theirs = theirs_of("GPT2Model", ENCODER, params, tmp_path)
    ours = ENCODER(jax.tree.map(jnp.float64, params), batch).last_hidden_state
    expected = theirs(**to_torch(batch)).last_hidden_state.detach().numpy()
    assert (np.abs(ours - expected) * np.asarray(batch["attention_mask"])[..., None]).max() < 1e-12


@pytest.mark.usefixtures("x64")
def test_logits_and_gradients_agree_in_float64(tmp_path):
    params, batch = without_bias(make_params(CLASSIFIER)), make_batch()
    theirs = theirs_of("GPT2ForSequenceClassification", CLASSIFIER, params, tmp_path)
    weights = np.random.RandomState(0).standard_normal((3, 3))
    logits = theirs(**to_torch(batch)).logits
    (logits * torch.tensor(weights)).sum().backward()

    def weighted(params):
        ours = CLASSIFIER(params, batch).logits
        return (ours * weights).sum(), ours

    params = jax.tree.map(jnp.float64, params)
    grads, ours = jax.jit(jax.grad(weighted, has_aux=True))(params)
    np.testing.assert_allclose(ours, logits.detach().numpy(), atol=1e-12)
    compare_gradients(theirs, grads)


def test_the_language_models_head_is_the_embeddings(tmp_path):
    """What is written loads as a language model too, and its directory is read."""
    params, batch = make_params(ENCODER), make_batch()
    save_pretrained(tmp_path / "ours", ENCODER, params)
    theirs, info = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values()), info
    logits = theirs.eval()(**to_torch(batch)).logits.detach().numpy()
    ours = ENCODER(params, batch).last_hidden_state @ params["embeddings"]["word"].T
    assert (np.abs(ours - logits) * np.asarray(batch["attention_mask"])[..., None]).max() < 1e-4
    theirs.save_pretrained(tmp_path / "theirs")
    assert_equal(from_pretrained(str(tmp_path / "theirs"))[1], params)


def test_buffers_of_old_versions_are_left_out(tmp_path):
    params = make_params(ENCODER)
    tensors = from_bert(convert.to_hugging_face(params), "gpt2", 0, "encoder")
    tensors["h.1.attn.bias"] = np.ones((1, 1, 16, 16), np.float32)
    tensors["h.1.attn.masked_bias"] = np.array(-1e4, np.float32)
    tensors["lm_head.weight"] = tensors["wte.weight"]
    path = write_directory(tmp_path / "old", tensors, CONFIG)
    assert_equal(from_pretrained(path)[1], params)


@pytest.mark.parametrize("shape", [(8, 23), (8, 2), ()])
def test_a_fused_kernel_of_another_size_is_refused(tmp_path, shape):
    tensors = from_bert(convert.to_hugging_face(make_params(ENCODER)), "gpt2", 0, "encoder")
    tensors["h.1.attn.c_attn.weight"] = np.zeros(shape, np.float32)
    path = write_directory(tmp_path / "wrong", tensors, CONFIG)
    with pytest.raises(InputError, match=r"(do not fit|missing tensors).*self\.(query|value)"):
        from_pretrained(path)


def test_a_bias_of_the_head_lies_beside_the_network(tmp_path):
    params = make_params(CLASSIFIER)
    save_pretrained(tmp_path, CLASSIFIER, params)
    found = safetensors.numpy.load_file(tmp_path / "classifier.safetensors")
    assert found.keys() == {"classifier.0.weight", "classifier.0.bias"}
    _, info = transformers.GPT2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert has_classifier(str(tmp_path))
    model, again = from_pretrained(str(tmp_path), "classification")
    assert model.num_labels == (3,)
    assert_equal(again, params)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("pooling", ["mean", "pooler"])
def test_padding_changes_nothing(pooling):
    model = CLASSIFIER.replace(pooling=pooling)
    params, batch = make_params(model, dtype=jnp.float64), make_batch()
    mask = batch["attention_mask"]
    other = {key: jnp.pad(value, ((0, 0), (0, 4))) for key, value in batch.items()}
    other["input_ids"] = jnp.where(other["attention_mask"] > 0, other["input_ids"], 9)
    expected, found = jax.jit(model)(params, batch), jax.jit(model)(params, other)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-12)
    difference = found.last_hidden_state[:, :7] - expected.last_hidden_state
    assert (np.abs(difference) * mask[:, :, None]).max() < 1e-12


@pytest.mark.usefixtures("x64")
def test_a_token_does_not_see_those_after_it():
    params, batch = make_params(ENCODER, dtype=jnp.float64), make_batch()
    changed = batch | {"input_ids": batch["input_ids"].at[0, 4].set(7)}
    one, other = (ENCODER(params, each).last_hidden_state[0] for each in (batch, changed))
    assert (one[:4] == other[:4]).all()
    assert (np.abs(one - other)[4:].max(-1) > 1e-3).all()


@pytest.mark.usefixtures("x64")
def test_rows_in_chunks_change_nothing(monkeypatch):
    params, batch = make_params(ENCODER, dtype=jnp.float64), make_batch(batch=4)

    def energy(model):
        return lambda params: jnp.square(model(params, batch).last_hidden_state).sum()

    expected = jax.jit(jax.grad(energy(ENCODER)))(params)
    monkeypatch.setitem(bert._CHUNK_TOKENS, "cpu", 14)
    found = jax.jit(jax.grad(energy(ENCODER.replace(remat=True))))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), found, expected)


def test_what_the_file_leaves_out():
    """As the hub's GPT-2 has it: no inner size, no padding."""
    values = {key: value for key, value in CONFIG.to_dict().items() if key != "n_inner"}
    values |= {"pad_token_id": None, "eos_token_id": 30, "bos_token_id": 30}
    config = TransformerConfig.from_dict(values, "config.json")
    assert (config.intermediate_size, config.pad_token_id) == (4 * CONFIG.hidden_size, 30)
    assert (config.bos_token_id, config.eos_token_id) == (None, None)
    assert config.to_dict()["eos_token_id"] == 30
    apart = TransformerConfig.from_dict(values | {"pad_token_id": 3}, "config.json")
    assert (apart.pad_token_id, apart.eos_token_id) == (3, 30)
    assert TransformerConfig.from_dict(apart.to_dict(), "config.json") == apart


@pytest.mark.parametrize("value", [None, "wide", {}, 2.5])
def test_what_cannot_be_derived_is_refused_by_its_name(value):
    values = CONFIG.to_dict() | {"n_embd": value, "n_inner": None}
    with pytest.raises(InputError, match=r"config.json: n_embd is .* whole number"):
        TransformerConfig.from_dict(values, "config.json")
