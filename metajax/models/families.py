"""The supported families of models: how their settings, tensors and layers differ from BERT's.

A family is data. Its names are translated to BERT's when a directory is read, and back when one is
written; all code in between uses BERT's names. `*` stands for the number of a layer.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from metajax.errors import InputError


class Family(NamedTuple):
    """How a model type of transformers differs from BERT.

    Attributes:
        classes: prefix of its class names in transformers.
        prefix: of the encoder's tensors in a model with a head.
        settings: names of settings in config.json, from BERT's names to the family's.
        fixed: settings that have only one value in the family.
        defaults: of settings, if they differ from BERT's, by the family's names.
        derived: settings that, if null, are a multiple of another, by the family's names.
        demanded: the only supported values of settings that change the network, by the family's
            names.
        tensors: names of tensors (without `.weight` or `.bias`, unless they differ), from BERT's to
            the family's. If several have the same name there, that tensor is split along its last
            axis.
        transposed: whether the kernels of the layers are `[in, out]`, like those of metajax.
        classifier: like `tensors`, for a model with a classification head.
        classifier_bias: whether that head has a bias.
        pooler: whether the encoder alone has a pooler.
        pooler_act: the activation of the pooler, or of the layer that replaces it in a classifier.
        lm_act: the activation of the masked-LM head; None is the encoder's.
        masked_lm: whether the family has a masked-LM head.
        positions_after_padding: whether the first token's position is `pad_token_id` + 1.
        decoder: whether attention is causal, norms come before their layers (and one after the last
            block instead of the embeddings), and classifiers read the last token without a pooler.
    """

    classes: str
    prefix: str
    settings: Mapping[str, str] = {}
    fixed: Mapping[str, Any] = {}
    defaults: Mapping[str, Any] = {}
    derived: Mapping[str, tuple[int, str]] = {}
    demanded: Mapping[str, Any] = {}
    tensors: Mapping[str, str] = {}
    transposed: bool = False
    classifier: Mapping[str, str] = {}
    classifier_bias: bool = True
    pooler: bool = True
    pooler_act: str = "tanh"
    lm_act: str | None = None
    masked_lm: bool = True
    positions_after_padding: bool = False
    decoder: bool = False


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
_GPT2 = Family(
    classes="GPT2",
    prefix="transformer.",
    settings={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "hidden_act": "activation_function",
        "hidden_dropout_prob": "resid_pdrop",
        "embedding_dropout_prob": "embd_pdrop",
        "attention_probs_dropout_prob": "attn_pdrop",
        "max_position_embeddings": "n_positions",
        "layer_norm_eps": "layer_norm_epsilon",
        "bos_token_id": "bos_token_id",
        "eos_token_id": "eos_token_id",
    },
    fixed={"type_vocab_size": 0, "classifier_dropout": 0.0},
    defaults={
        "activation_function": "gelu_new",
        "embd_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    # There is no padding token: the end of text, which nothing sees there, is used for it.
    derived={"n_inner": (4, "n_embd"), "pad_token_id": (1, "eos_token_id")},
    demanded={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    tensors={
        "embeddings.word_embeddings": "wte",
        "embeddings.position_embeddings": "wpe",
        "encoder.layer.*.attention.self.query": "h.*.attn.c_attn",
        "encoder.layer.*.attention.self.key": "h.*.attn.c_attn",
        "encoder.layer.*.attention.self.value": "h.*.attn.c_attn",
        "encoder.layer.*.attention.output.dense": "h.*.attn.c_proj",
        "encoder.layer.*.attention.output.LayerNorm": "h.*.ln_1",
        "encoder.layer.*.intermediate.dense": "h.*.mlp.c_fc",
        "encoder.layer.*.output.dense": "h.*.mlp.c_proj",
        "encoder.layer.*.output.LayerNorm": "h.*.ln_2",
        "final_norm": "ln_f",
        "cls.predictions.decoder": "lm_head",
    },
    transposed=True,
    classifier={"classifier": "score"},
    classifier_bias=False,
    pooler=False,
    masked_lm=False,
    decoder=True,
)
_TABLE = "embeddings.word_embeddings"  # Every model has one.
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
    "gpt2": _GPT2,
}


def unwrapped(
    tensors: Mapping[str, np.ndarray], model_type: str, where: str
) -> Mapping[str, np.ndarray]:
    """The tensors without the prefix of a wrapper such as DistributedDataParallel in their names.

    Args:
        tensors: by name.
        model_type: the family.
        where: the directory, for error messages.

    Raises:
        InputError: some names have the prefix, and others not.
    """
    family = FAMILIES[model_type]
    table = family.tensors.get(_TABLE, _TABLE) + ".weight"
    before = [name.removesuffix(table) for name in tensors if f".{name}".endswith(f".{table}")]
    if not before or {"", family.prefix} & {*before}:
        return tensors
    prefix = before[0].removesuffix(family.prefix)
    others = [name for name in tensors if not name.startswith(prefix)]
    if others:
        raise InputError(
            f"{where}: the names of the model's tensors begin with {prefix!r}, but {others[0]} is "
            "another model's; save those of the model alone, each as "
            f"name.removeprefix({prefix!r})"
        )
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


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
    names: dict[str, list[str]] = {}
    for ours, theirs in {**family.tensors, **family.classifier}.items():
        names.setdefault(theirs, []).append(ours)
    renamed = {}
    # A classifier's replacement of the pooler comes after the pooler and overwrites it.
    for name in sorted(tensors, key=lambda name: _stem(name) in family.classifier.values()):
        several = _translate(name.removeprefix(family.prefix), names)
        value = tensors[name]
        parts = np.array_split(value, len(several), axis=-1) if value.ndim else [value]
        for ours, part in zip(several, parts):
            renamed[ours] = _turned(part, ours, family)
    if "embeddings.position_embeddings.weight" in renamed:
        table = renamed["embeddings.position_embeddings.weight"]
        renamed["embeddings.position_embeddings.weight"] = table[offset:]
    if "classifier.weight" in renamed and not family.classifier_bias:
        weight = renamed["classifier.weight"]
        renamed["classifier.bias"] = np.zeros(weight.shape[:1], weight.dtype)
    return renamed


def from_bert(
    tensors: Mapping[str, np.ndarray], model_type: str, offset: int, head: str
) -> dict[str, np.ndarray]:
    """The inverse of `to_bert`, for a class with a head; the left-out rows are zero.

    Args:
        tensors: by BERT's names, without a prefix.
        model_type: the family.
        offset: see `to_bert`.
        head: "encoder", "masked_lm" or "classification".
    """
    family = FAMILIES[model_type]
    of_head = family.classifier if head == "classification" else {}
    names = {ours: [theirs] for ours, theirs in {**family.tensors, **of_head}.items()}
    prefix = "" if head == "encoder" else family.prefix
    parts_of: dict[str, list[np.ndarray]] = {}
    for name, value in tensors.items():
        if name == "classifier.bias" and not family.classifier_bias:
            continue
        if offset and name == "embeddings.position_embeddings.weight":
            value = np.concatenate([np.zeros_like(value, shape=(offset, value.shape[1])), value])
        outside = name.startswith(("cls.", "classifier.")) or _stem(name) in of_head
        theirs = ("" if outside else prefix) + _translate(name, names)[0]
        # Outside the layers two names hold one tensor twice: the bias of an untied decoder.
        before = parts_of.get(theirs, []) if name.startswith("encoder.layer.") else []
        parts_of[theirs] = [*before, _turned(value, name, family)]
    # safetensors writes the memory of an array and ignores its strides.
    return {
        name: np.ascontiguousarray(np.concatenate(parts, axis=-1) if parts[1:] else parts[0])
        for name, parts in parts_of.items()
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


def _turned(value: np.ndarray, name: str, family: Family) -> np.ndarray:
    """A tensor, by BERT's name, with its axes turned from BERT's order to the family's or back."""
    kernel = name.startswith("encoder.layer.") and value.ndim == 2
    return value.T if family.transposed and kernel else value


def _translate(name: str, names: Mapping[str, list[str]]) -> list[str]:
    """The names of a tensor in the other naming scheme; unknown names stay as they are."""
    number = re.search(r"\.(\d+)\.", name)
    general = name if number is None else f"{name[: number.start()]}.*.{name[number.end() :]}"
    stem, _, kind = general.rpartition(".")
    translated = names.get(general) or [f"{each}.{kind}" for each in names.get(stem, ())]
    if not translated:
        return [name]
    return [each if number is None else each.replace("*", number[1]) for each in translated]


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
