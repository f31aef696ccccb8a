"""The supported families of models, and the tables of the encoders.

A family is data. `metajax/models/renaming.py` translates its names to BERT's when a directory is
read, and back when one is written.
"""

from metajax.errors import InputError
from metajax.models.decoders import DECODERS
from metajax.models.family import Family

_ROBERTA = Family(
    classes="Roberta",
    prefix="roberta.",
    defaults={"pad_token_id": 1},
    tensors={
        "cls.predictions.transform.dense": "lm_head.dense",
        "cls.predictions.transform.LayerNorm": "lm_head.layer_norm",
        "cls.predictions": "lm_head",
        "cls.predictions.decoder": "lm_head.decoder",
    },
    classifier={"pooler.dense": "classifier.dense", "classifier": "classifier.out_proj"},
    lm_act="gelu",
    positions_after_padding=True,
)
_MPNET = _ROBERTA._replace(
    classes="MPNet",
    prefix="mpnet.",
    fixed={"type_vocab_size": 0, "classifier_dropout": None},
    # Its class of transformers uses these, whatever config.json says.
    demanded={"relative_attention_num_buckets": 32, "pad_token_id": 1},
    tensors={
        **_ROBERTA.tensors,
        "encoder.layer.*.attention.self.query": "encoder.layer.*.attention.attn.q",
        "encoder.layer.*.attention.self.key": "encoder.layer.*.attention.attn.k",
        "encoder.layer.*.attention.self.value": "encoder.layer.*.attention.attn.v",
        "encoder.layer.*.attention.output.dense": "encoder.layer.*.attention.attn.o",
        "encoder.layer.*.attention.output.LayerNorm": "encoder.layer.*.attention.LayerNorm",
    },
    block="mpnet",
    relative=True,
)
_DISTILBERT = Family(
    classes="DistilBert",
    prefix="distilbert.",
    settings={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "classifier_dropout": "seq_classif_dropout",
    },
    fixed={"type_vocab_size": 0, "layer_norm_eps": 1e-12},
    defaults={"seq_classif_dropout": 0.2},
    tensors={
        "encoder.layer.*.attention.self.query": "transformer.layer.*.attention.q_lin",
        "encoder.layer.*.attention.self.key": "transformer.layer.*.attention.k_lin",
        "encoder.layer.*.attention.self.value": "transformer.layer.*.attention.v_lin",
        "encoder.layer.*.attention.output.dense": "transformer.layer.*.attention.out_lin",
        "encoder.layer.*.attention.output.LayerNorm": "transformer.layer.*.sa_layer_norm",
        "encoder.layer.*.intermediate.dense": "transformer.layer.*.ffn.lin1",
        "encoder.layer.*.output.dense": "transformer.layer.*.ffn.lin2",
        "encoder.layer.*.output.LayerNorm": "transformer.layer.*.output_layer_norm",
        "cls.predictions.transform.dense": "vocab_transform",
        "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
        "cls.predictions.decoder": "vocab_projector",
        "cls.predictions.bias": "vocab_projector.bias",
    },
    classifier={"pooler.dense": "pre_classifier"},
    pooler=False,
    pooler_act="relu",
)
_ALBERT_BLOCK = "encoder.albert_layer_groups.*.albert_layers.0."
_ALBERT = Family(
    classes="Albert",
    prefix="albert.",
    settings={
        "embedding_size": "embedding_size",
        "classifier_dropout": "classifier_dropout_prob",
    },
    defaults={
        "embedding_size": 128,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": 0.1,
    },
    demanded={"num_hidden_groups": 1, "inner_group_num": 1},
    tensors={
        "embeddings_project": "encoder.embedding_hidden_mapping_in",
        "encoder.layer.*.attention.self.query": _ALBERT_BLOCK + "attention.query",
        "encoder.layer.*.attention.self.key": _ALBERT_BLOCK + "attention.key",
        "encoder.layer.*.attention.self.value": _ALBERT_BLOCK + "attention.value",
        "encoder.layer.*.attention.output.dense": _ALBERT_BLOCK + "attention.dense",
        "encoder.layer.*.attention.output.LayerNorm": _ALBERT_BLOCK + "attention.LayerNorm",
        "encoder.layer.*.intermediate.dense": _ALBERT_BLOCK + "ffn",
        "encoder.layer.*.output.dense": _ALBERT_BLOCK + "ffn_output",
        "encoder.layer.*.output.LayerNorm": _ALBERT_BLOCK + "full_layer_layer_norm",
        "pooler.dense": "pooler",
        "cls.predictions.transform.dense": "predictions.dense",
        "cls.predictions.transform.LayerNorm": "predictions.LayerNorm",
        "cls.predictions": "predictions",
        "cls.predictions.decoder": "predictions.decoder",
    },
    one_block=True,
    projects_embeddings=True,
)
_DEBERTA = Family(
    classes="DebertaV2",
    prefix="deberta.",
    settings={"classifier_dropout": "cls_dropout", "position_buckets": "position_buckets"},
    fixed={"type_vocab_size": 0},
    defaults={
        "layer_norm_eps": 1e-7,
        "position_buckets": -1,
        "relative_attention": False,
        "position_biased_input": True,
        "share_att_key": False,
        "norm_rel_ebd": "none",
        "pos_att_type": [],
    },
    # As in all of DeBERTa-v3.
    demanded={
        "relative_attention": True,
        "position_biased_input": False,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "pos_att_type": ["c2p", "p2c"],
        "max_relative_positions": -1,
        "conv_kernel_size": 0,
        "type_vocab_size": 0,
        "pooler_dropout": 0,
        "pooler_hidden_act": "gelu",
        "tie_word_embeddings": True,
    },
    tensors={
        "encoder.relative_attention_bias": "encoder.rel_embeddings",
        "encoder.relative_norm": "encoder.LayerNorm",
        "encoder.layer.*.attention.self.query": "encoder.layer.*.attention.self.query_proj",
        "encoder.layer.*.attention.self.key": "encoder.layer.*.attention.self.key_proj",
        "encoder.layer.*.attention.self.value": "encoder.layer.*.attention.self.value_proj",
    },
    # The same head, which transformers calls not legacy.
    aliases={
        "lm_predictions.lm_head.dense": "cls.predictions.transform.dense",
        "lm_predictions.lm_head.LayerNorm": "cls.predictions.transform.LayerNorm",
        "lm_predictions.lm_head": "cls.predictions",
    },
    classifier={"pooler.dense": "pooler.dense"},
    pooler=False,
    pooler_act="gelu",
    block="deberta",
    position_table=False,
    relative=True,
)
_MODERNBERT = Family(
    classes="ModernBert",
    prefix="model.",
    settings={
        "hidden_act": "hidden_activation",
        "hidden_dropout_prob": "mlp_dropout",
        "embedding_dropout_prob": "embedding_dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "classifier_dropout": "classifier_dropout",
        "layer_norm_eps": "norm_eps",
        "rope_theta": "global_rope_theta",
        **{name: name for name in ("bos_token_id", "eos_token_id", "attention_bias", "norm_bias")},
        **{name: name for name in ("mlp_bias", "classifier_bias", "decoder_bias")},
        **{name: name for name in ("local_attention", "local_rope_theta", "classifier_pooling")},
        "global_attn_every_n_layers": "global_attn_every_n_layers",
    },
    fixed={"type_vocab_size": 0},
    defaults={
        **dict.fromkeys(("mlp_dropout", "embedding_dropout", "attention_dropout"), 0.0),
        **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), False),
        "classifier_dropout": 0.0,
        "norm_eps": 1e-5,
        "global_rope_theta": 160000.0,
        "bos_token_id": 50281,
        "eos_token_id": 50282,
        "pad_token_id": 50283,
    },
    demanded={"classifier_activation": "gelu"},
    tensors={
        "embeddings.word_embeddings": "embeddings.tok_embeddings",
        "embeddings.LayerNorm": "embeddings.norm",
        "encoder.layer.*.attention.self.query": "layers.*.attn.Wqkv",
        "encoder.layer.*.attention.self.key": "layers.*.attn.Wqkv",
        "encoder.layer.*.attention.self.value": "layers.*.attn.Wqkv",
        "encoder.layer.*.attention.output.dense": "layers.*.attn.Wo",
        "encoder.layer.*.attention.output.LayerNorm": "layers.*.attn_norm",
        "encoder.layer.*.intermediate.dense": "layers.*.mlp.Wi",
        "encoder.layer.*.output.dense": "layers.*.mlp.Wo",
        "encoder.layer.*.output.LayerNorm": "layers.*.mlp_norm",
        "cls.predictions.transform.dense": "head.dense",
        "cls.predictions.transform.LayerNorm": "head.norm",
        "cls.predictions.decoder": "decoder",
        "cls.predictions.bias": "decoder.bias",
    },
    classifier={"pooler.dense": "head.dense", "pooler.norm": "head.norm"},
    pooler=False,
    pooler_act="gelu",
    lm_act="gelu",
    block="modernbert",
    numbered=True,
    position_table=False,
    final_norm=True,
    first_norm=False,
    rotary=True,
)


FAMILIES = {
    "bert": Family(classes="Bert", prefix="bert."),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA._replace(classes="XLMRoberta"),
    "distilbert": _DISTILBERT,
    "mpnet": _MPNET,
    "electra": Family(
        classes="Electra",
        prefix="electra.",
        settings={"embedding_size": "embedding_size"},
        defaults={"embedding_size": 128},
        classifier={"pooler.dense": "classifier.dense", "classifier": "classifier.out_proj"},
        pooler=False,
        pooler_act="gelu",
        masked_lm=False,
    ),
    "albert": _ALBERT,
    **DECODERS,
    "modernbert": _MODERNBERT,
    "deberta-v2": _DEBERTA,
}


def family_of(model_type: object, where: str) -> Family:
    """The family of a model type.

    Raises:
        InputError: the model type is not supported.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(
            f"{where}: model_type is {model_type!r}, which is not supported; give a model of type "
            + ", ".join(FAMILIES)
        )
    return FAMILIES[model_type]
