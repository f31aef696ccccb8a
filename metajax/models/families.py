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
    **DECODERS,
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
