"""Models of BERT's parts under other names, against transformers' own classes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.errors import InputError
from metajax.models import (
    Transformer,
    TransformerConfig,
    from_pretrained,
    has_classifier,
    save_pretrained,
)
from metajax.models.families import FAMILIES
from tests.models.helpers import (
    ENCODERS,
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

# Where there is a choice, large enough to show.
EPSILON = {"layer_norm_eps": 0.05}
SETTINGS = {
    # Its masked-LM head has gelu whatever the encoder has.
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1, "hidden_act": "relu"},
    "xlm-roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "distilbert": {"type_vocab_size": 0, "hidden_act": "relu", "classifier_dropout": 0.2},
    "mpnet": {"pad_token_id": 1, "type_vocab_size": 0, "hidden_act": "relu"},
    "electra": {"embedding_size": 6},
    "albert": {"embedding_size": 6, "hidden_act": "gelu_new", "classifier_dropout": 0.1},
    "gpt2": {
        "type_vocab_size": 0,
        "hidden_act": "gelu_new",
        "classifier_dropout": 0.0,
        "embedding_dropout_prob": 0.2,
        "eos_token_id": 30,
    },
}
SETTINGS |= {name: ENCODERS[name] for name in ("deberta-v2", "modernbert")}
SETTINGS |= {name: llama_settings(name) for name in LLAMAS}
HEADS = [
    (model_type, head)
    for model_type in FAMILIES
    for head in parity.heads_of(model_type)
    if model_type != "bert"
]


def make_model(model_type, head, **changes):
    settings = {"model_type": model_type, "max_position_embeddings": 14, **SETTINGS[model_type]}
    settings |= {} if model_type == "distilbert" else EPSILON
    return Transformer(dataclasses.replace(TINY, **settings), head=head, num_labels=(3,), **changes)


def make_family_params(model):
    """Random, but for the bias that a family's classifier does not have."""
    params = make_params(model)
    if model.head == "classification" and not model.config.family.classifier_bias:
        params["classifier"]["bias"] *= 0
    return params


def families_batch(model_type):
    """Padding is each family's own token, which nothing else may be; one segment."""
    batch = make_batch()
    padding = SETTINGS[model_type].get("pad_token_id", 0)
    ids = jnp.where(batch["attention_mask"] > 0, jnp.maximum(batch["input_ids"], 2), padding)
    return {**batch, "input_ids": ids, "token_type_ids": jnp.zeros_like(ids)}


def run_theirs(theirs, batch):
    given = {key: torch.tensor(np.asarray(batch[key])).long() for key in batch}
    del given["token_type_ids"]
    found = theirs(**given)
    return (found[0] if hasattr(found, "last_hidden_state") else found.logits).detach().numpy()


def run_ours(model, params, batch):
    outputs = jax.jit(model)(params, batch)
    return outputs.last_hidden_state if model.head == "encoder" else outputs.logits


def largest_difference(model, params, theirs, batch):
    ours, expected = run_ours(model, params, batch), run_theirs(theirs, batch)
    if ours.ndim == 3:
        mask = np.asarray(batch["attention_mask"])[:, :, None]
        ours, expected = ours * mask, expected * mask
    return np.abs(ours - expected).max()


@pytest.mark.parametrize(("model_type", "head"), HEADS)
def test_it_reads_what_transformers_wrote(tmp_path, model_type, head):
    theirs = parity.write(make_model(model_type, "encoder").config, head, tmp_path, scale=0.2)
    model, params = from_pretrained(str(tmp_path), head)
    assert model.num_labels == (3,)
    assert largest_difference(model, params, theirs, families_batch(model_type)) < 2e-5
    if head == "classification":
        assert has_classifier(str(tmp_path))


@pytest.mark.parametrize(("model_type", "head"), HEADS)
def test_transformers_reads_what_it_wrote(tmp_path, model_type, head):
    model = make_model(model_type, head)
    params = make_family_params(model)
    save_pretrained(tmp_path, model, params)
    kind = parity.class_of(model_type, head)
    theirs, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert (
        type(theirs) is type(transformers.AutoModel.from_pretrained(tmp_path)) or head != "encoder"
    )
    assert largest_difference(model, params, theirs.eval(), families_batch(model_type)) < 2e-5
    again, same = from_pretrained(str(tmp_path), head)
    assert again.config == model.config
    assert_equal(same, params)


@pytest.mark.parametrize("model_type", SETTINGS)
def test_heads_on_mean_pooling_lie_beside_the_encoder(tmp_path, model_type):
    model = make_model(model_type, "classification", pooling="mean")
    params = make_params(model)
    save_pretrained(tmp_path, model, params)
    kind = parity.class_of(model_type, "encoder")
    _, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    again, same = from_pretrained(str(tmp_path), "classification")
    assert again.pooling == "mean"
    assert_equal(same, params)


def test_untied_decoders_of_distilbert_agree(tmp_path):
    model = make_model("distilbert", "masked_lm")
    config = dataclasses.replace(model.config, tie_word_embeddings=False)
    model = model.replace(config=config)
    params = make_params(model)
    save_pretrained(tmp_path, model, params)
    theirs, info = transformers.DistilBertForMaskedLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    batch = families_batch("distilbert")
    assert largest_difference(model, params, theirs.eval(), batch) < 2e-5


def test_electra_without_a_projection_agrees(tmp_path):
    model = make_model("electra", "encoder")
    model = model.replace(config=dataclasses.replace(model.config, embedding_size=None))
    params = make_params(model)
    assert "project" not in params["embeddings"]
    save_pretrained(tmp_path, model, params)
    assert json.loads((tmp_path / "config.json").read_text())["embedding_size"] == TINY.hidden_size
    theirs = transformers.ElectraModel.from_pretrained(tmp_path).eval()
    assert largest_difference(model, params, theirs, families_batch("electra")) < 2e-5


def test_texts_may_be_as_long_as_there_are_positions(tmp_path):
    config = make_model("roberta", "encoder").config
    assert config.to_dict()["max_position_embeddings"] == 14 + 2
    assert TransformerConfig.from_dict(config.to_dict(), "config.json") == config


@pytest.mark.parametrize("model_type", ["deberta", "t5", None, ["bert"]])
def test_other_types_are_refused_by_name(model_type):
    with pytest.raises(InputError, match=r"model_type is .* roberta, .* electra"):
        TransformerConfig.from_dict(TINY.to_dict() | {"model_type": model_type}, "config.json")


@pytest.mark.parametrize("model_type", ["electra", "gpt2", "llama"])
def test_some_have_no_masked_lm_head(model_type):
    with pytest.raises(InputError, match=f"{model_type} has no masked-LM head"):
        make_model(model_type, "masked_lm")


@pytest.mark.parametrize("model_type", ["roberta", "electra"])
def test_encoders_have_no_causal_lm_head(model_type):
    with pytest.raises(InputError, match=f"{model_type} has no causal-LM head; give a decoder"):
        make_model(model_type, "causal_lm")


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [
        ("distilbert", "dim", 0),
        ("distilbert", "activation", "swish"),
        ("electra", "embedding_size", "wide"),
        ("albert", "num_hidden_groups", 2),
        ("albert", "inner_group_num", 2),
        ("roberta", "max_position_embeddings", 2),
        ("mpnet", "relative_attention_num_buckets", 64),
        ("mpnet", "pad_token_id", 0),
        ("modernbert", "hidden_activation", "swish"),
        ("modernbert", "norm_bias", 0),
        ("modernbert", "local_rope_theta", -1.0),
        ("modernbert", "classifier_pooling", "max"),
        ("modernbert", "classifier_activation", "relu"),
        ("modernbert", "global_attn_every_n_layers", 0),
        ("deberta-v2", "position_buckets", -1),
        ("deberta-v2", "position_buckets", 1),
        ("deberta-v2", "position_buckets", 26),
        ("deberta-v2", "relative_attention", False),
        ("deberta-v2", "position_biased_input", True),
        ("deberta-v2", "share_att_key", False),
        ("deberta-v2", "norm_rel_ebd", "none"),
        ("deberta-v2", "pos_att_type", "c2p"),
        ("deberta-v2", "pos_att_type", None),
        ("deberta-v2", "conv_kernel_size", 3),
        ("deberta-v2", "max_relative_positions", 8),
        ("deberta-v2", "type_vocab_size", 2),
        ("deberta-v2", "pooler_hidden_size", 9),
        ("deberta-v2", "embedding_size", 4),
        ("gpt2", "n_embd", "wide"),
        ("gpt2", "n_inner", 0),
        ("gpt2", "embd_pdrop", 1.0),
        ("gpt2", "eos_token_id", [3]),
        ("gpt2", "scale_attn_weights", False),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ],
)
def test_settings_are_called_as_in_the_file(model_type, key, value):
    values = make_model(model_type, "encoder").config.to_dict() | {key: value}
    with pytest.raises(InputError, match=f"config.json: {key} "):
        TransformerConfig.from_dict(values, "config.json")
