"""Encoders of BERT's shape under other names: what each calls BERT's settings and tensors.

A family is data. Its names are translated to BERT's as a directory is read, and back as one is
written; everything between speaks of BERT alone. `*` stands for the number of a layer.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from metajax.errors import InputError


class Family(NamedTuple):
    """How a model type of transformers differs from BERT.

    Attributes:
        classes: what the names of its classes in transformers begin with.
        prefix: of the encoder's tensors in a model with a head.
        settings: BERT's names of settings in config.json, and the family's.
        fixed: settings that the family has no choice of.
        defaults: of settings, where they are not BERT's.
        tensors: BERT's names of tensors (without `.weight` or `.bias`, unless they differ) and the
            family's.
        classifier: the same for a model with a classification head.
        pooler: whether the encoder by itself has a pooler.
        pooler_act: the activation of the pooler, or of what a classifier has in its place.
        lm_act: that of the masked-LM head; None is the encoder's.
        masked_lm: whether there is such a head.
        positions_after_padding: whether the first token's position is `pad_token_id` + 1.
    """

    classes: str
    prefix: str
    settings: Mapping[str, str] = {}
    fixed: Mapping[str, Any] = {}
    defaults: Mapping[str, Any] = {}
    tensors: Mapping[str, str] = {}
    classifier: Mapping[str, str] = {}
    pooler: bool = True
    pooler_act: str = "tanh"
    lm_act: str | None = None
    masked_lm: bool = True
    positions_after_padding: bool = False


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
}


def to_bert(
    tensors: Mapping[str, np.ndarray], model_type: str, offset: int
) -> dict[str, np.ndarray]:
    """A family's tensors by BERT's names, with or without the family's prefix.

    Args:
        tensors: by name.
        model_type: the family.
        offset: rows of the position table before that of the first token; they are left out.
    """
    family = FAMILIES[model_type]
    names = {theirs: ours for ours, theirs in {**family.tensors, **family.classifier}.items()}
    found = {}
    # What stands in for the pooler comes after one, and wins.
    for name in sorted(tensors, key=lambda name: _stem(name) in family.classifier.values()):
        ours = _translate(name.removeprefix(family.prefix), names)
        value = tensors[name]
        found[ours] = value[offset:] if ours == "embeddings.position_embeddings.weight" else value
    return found


def from_bert(
    tensors: Mapping[str, np.ndarray], model_type: str, offset: int, head: str
) -> dict[str, np.ndarray]:
    """The reverse, under the names of the family's class for a head; the left-out rows are zero.

    Args:
        tensors: by BERT's names, without a prefix.
        model_type: the family.
        offset: see `to_bert`.
        head: "encoder", "masked_lm" or "classification".
    """
    family = FAMILIES[model_type]
    of_head = family.classifier if head == "classification" else {}
    names, prefix = {**family.tensors, **of_head}, "" if head == "encoder" else family.prefix
    found = {}
    for name, value in tensors.items():
        if offset and name == "embeddings.position_embeddings.weight":
            value = np.concatenate([np.zeros_like(value, shape=(offset, value.shape[1])), value])
        outside = name.startswith(("cls.", "classifier.")) or _stem(name) in of_head
        found[("" if outside else prefix) + _translate(name, names)] = value
    return found


def family_of(model_type: object, where: str) -> Family:
    """The family of a model type.

    Raises:
        InputError: it is none of them.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(
            f"{where}: model_type is {model_type!r}, which is not supported: give a model of type "
            + ", ".join(FAMILIES)
        )
    return FAMILIES[model_type]


def _translate(name: str, names: Mapping[str, str]) -> str:
    """A tensor's name in other names: its own, that of its layer, or else as it is."""
    number = re.search(r"\.(\d+)\.", name)
    general = name if number is None else f"{name[: number.start()]}.*.{name[number.end() :]}"
    stem, _, kind = general.rpartition(".")
    translated = names.get(general) or (f"{names[stem]}.{kind}" if stem in names else general)
    return translated if number is None else translated.replace("*", number[1])


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
