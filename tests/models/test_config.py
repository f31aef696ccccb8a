"""Every setting under its name: as transformers' own configurations have it."""

import dataclasses

import pytest

from metajax.models import TransformerConfig
from metajax.models.families import FAMILIES
from metajax.models.rotary import RopeScaling
from tests.models.helpers import LLAMAS

transformers = pytest.importorskip("transformers")

# No two alike, and none a default.
SIZES = {
    "vocab_size": 60,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 40,
}
OTHERS = {
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.21,
    "attention_probs_dropout_prob": 0.22,
    "classifier_dropout": 0.23,
    "embedding_dropout_prob": 0.24,
    "type_vocab_size": 4,
    "layer_norm_eps": 0.03,
    "pad_token_id": 5,
    "bos_token_id": 6,
    "eos_token_id": 7,
    "initializer_range": 0.04,
    "embedding_size": 9,
    "tie_word_embeddings": False,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "attention_bias": True,
    "sliding_window": 11,
    "rope_theta": 123.0,
    "rope_scaling": RopeScaling("linear", 3.0),
    "local_rope_theta": 124.0,
    "global_attn_every_n_layers": 2,
    "local_attention": 14,
    "norm_bias": True,
    "mlp_bias": True,
    "classifier_bias": True,
    "decoder_bias": False,
    "classifier_pooling": "mean",
    "position_buckets": 6,
}
ROPE = {key: {"rope_theta": 123.0, "rope_type": "linear", "factor": 3.0} for key in LLAMAS}
ROPE["modernbert"] = {
    "full_attention": {"rope_theta": 123.0, "rope_type": "default"},
    "sliding_attention": {"rope_theta": 124.0, "rope_type": "default"},
}
# By BERT's names, which transformers' configurations of other families mostly know too.
THEIR_NAMES = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "distilbert": {
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "classifier_dropout": "seq_classif_dropout",
    },
    "mpnet": {},
    "deberta-v2": {"classifier_dropout": "cls_dropout"},
    "modernbert": {
        "hidden_act": "hidden_activation",
        "hidden_dropout_prob": "mlp_dropout",
        "embedding_dropout_prob": "embedding_dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "layer_norm_eps": "norm_eps",
    },
    "electra": {},
    "albert": {"classifier_dropout": "classifier_dropout_prob"},
    "gpt2": {
        "intermediate_size": "n_inner",
        "hidden_act": "activation_function",
        "hidden_dropout_prob": "resid_pdrop",
        "attention_probs_dropout_prob": "attn_pdrop",
        "embedding_dropout_prob": "embd_pdrop",
        "layer_norm_eps": "layer_norm_epsilon",
    },
}
THEIR_NAMES |= {
    model_type: {
        "layer_norm_eps": "rms_norm_eps",
        "attention_probs_dropout_prob": "attention_dropout",
    }
    for model_type in LLAMAS
}
# What the families have no setting for, or do not use.
UNKNOWN = {
    "bert": {"embedding_size", "embedding_dropout_prob", "bos_token_id", "eos_token_id"},
    "distilbert": {
        *("embedding_size", "embedding_dropout_prob", "bos_token_id", "eos_token_id"),
        *("type_vocab_size", "layer_norm_eps"),
    },
    "electra": {"embedding_dropout_prob", "bos_token_id", "eos_token_id"},
    "albert": {"embedding_dropout_prob", "bos_token_id", "eos_token_id"},
    "gpt2": {"embedding_size", "type_vocab_size", "classifier_dropout"},
}
UNKNOWN |= dict.fromkeys(("roberta", "xlm-roberta"), UNKNOWN["bert"])
UNKNOWN["mpnet"] = UNKNOWN["bert"] | {"type_vocab_size", "classifier_dropout"}
OF_LLAMA = {"num_key_value_heads", "head_dim", "attention_bias", "sliding_window"}
OF_LLAMA |= {"rope_theta", "rope_scaling"}
UNKNOWN["deberta-v2"] = UNKNOWN["bert"] | {"type_vocab_size", "tie_word_embeddings"}
UNKNOWN = {model_type: names | OF_LLAMA for model_type, names in UNKNOWN.items()}
OF_BERT = {"type_vocab_size", "hidden_dropout_prob", "classifier_dropout", "embedding_size"}
OF_BERT |= {"embedding_dropout_prob"}
UNKNOWN |= {
    "llama": {*OF_BERT, "sliding_window"},
    "mistral": {*OF_BERT, "attention_bias"},
    "qwen2": {*OF_BERT, "sliding_window", "attention_bias"},
    "qwen3": {*OF_BERT, "sliding_window"},
}
OF_MODERNBERT = {"local_rope_theta", "global_attn_every_n_layers", "local_attention"}
OF_MODERNBERT |= {"norm_bias", "mlp_bias", "classifier_bias", "decoder_bias", "classifier_pooling"}
UNKNOWN = {model_type: names | OF_MODERNBERT for model_type, names in UNKNOWN.items()}
UNKNOWN["modernbert"] = {"embedding_size", "type_vocab_size", *OF_LLAMA}
UNKNOWN["modernbert"] -= {"attention_bias", "rope_theta"}
for model_type in UNKNOWN.keys() - {"deberta-v2"}:
    UNKNOWN[model_type].add("position_buckets")


def class_of(model_type):
    return getattr(transformers, FAMILIES[model_type].classes + "Config")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_transformers_and_ours_read_the_same_settings(model_type):
    values = {name: value for name, value in OTHERS.items() if name not in UNKNOWN[model_type]}
    if model_type == "mpnet":  # Its only value.
        values["pad_token_id"] = 1
    if model_type in LLAMAS:  # By default they are not tied.
        values["tie_word_embeddings"] = True
    own = TransformerConfig(model_type=model_type, **SIZES, **values, **FAMILIES[model_type].fixed)
    theirs = class_of(model_type)(**own.to_dict())
    rows = {"max_position_embeddings": 40 + own.first_position}
    assert theirs.to_dict().get("rope_parameters") == ROPE.get(model_type)
    if model_type == "modernbert":
        assert theirs.layer_types == ["full_attention", "sliding_attention", "full_attention"]
    for name, value in (SIZES | values | rows).items():
        if "rope_" in name or name == "global_attn_every_n_layers":
            continue
        assert getattr(theirs, THEIR_NAMES[model_type].get(name, name)) == value, name
    assert TransformerConfig.from_dict(theirs.to_dict(), "theirs") == own


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_a_file_leaves_out_is_transformers_default(model_type):
    sizes = TransformerConfig(model_type=model_type, **SIZES | {"vocab_size": 60000})
    spelled, theirs = sizes.to_dict(), class_of(model_type)
    names = FAMILIES[model_type].settings
    given = {name: spelled[name] for name in (names.get(name, name) for name in SIZES)}
    if model_type in LLAMAS:  # By default they have more of these than heads.
        given["num_key_value_heads"] = 1
    if model_type == "deberta-v2":  # Its usual values are not the defaults.
        given |= {name: spelled[name] for name in FAMILIES[model_type].defaults}
        given["position_buckets"] = 6
    full = theirs(**given).to_dict()
    expected = TransformerConfig.from_dict(full, "theirs")
    assert TransformerConfig.from_dict(given | {"model_type": model_type}, "ours") == expected


def test_sizes_and_rates_by_default_are_berts():
    theirs = transformers.BertConfig()
    same = {field.name for field in dataclasses.fields(TransformerConfig)} - UNKNOWN["bert"]
    for name in same:
        assert getattr(TransformerConfig(), name) == getattr(theirs, name), name
    # As transformers writes it: some values are null.
    assert TransformerConfig.from_dict(theirs.to_dict(), "theirs") == TransformerConfig()


@pytest.mark.parametrize("name", ["hidden_dropout_prob", "classifier_dropout"])
def test_a_rate_of_zero_is_a_rate(name):
    config = TransformerConfig(**SIZES, **{name: 0.0})
    values = config.to_dict()
    assert values[name] == 0.0
    assert getattr(TransformerConfig.from_dict(values, "config.json"), name) == 0.0


def test_a_rate_of_zero_is_one_where_another_would_take_its_place():
    gpt2 = TransformerConfig(
        model_type="gpt2", **SIZES, embedding_dropout_prob=0.0, **FAMILIES["gpt2"].fixed
    )
    assert gpt2.to_dict()["embd_pdrop"] == 0.0
    distilbert = TransformerConfig(
        model_type="distilbert", **SIZES, classifier_dropout=0.0, type_vocab_size=0
    )
    assert distilbert.to_dict()["seq_classif_dropout"] == 0.0
    for config in (gpt2, distilbert):
        assert TransformerConfig.from_dict(config.to_dict(), "config.json") == config
    unsaid = dataclasses.replace(distilbert, classifier_dropout=None)
    assert unsaid.to_dict()["seq_classif_dropout"] == 0.1
