"""The supported families of models: how their settings, tensors and layers differ from BERT's.

A family is data. `metajax/models/renaming.py` translates its names to BERT's when a directory is
read, and back when one is written. `*` stands for the number of a layer.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

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
        causal_lm: the ending of the class with a causal-LM head; None: there is no such class.
        rotary: whether the blocks are Llama's, and positions are rotations instead of a table.
        query_key_norm: whether Llama's blocks normalize queries and keys.
        relative: whether attention also has a bias by relative position, the same in all blocks.
        output_bias: whether `attention_bias` is also about the output layer of attention.
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
    causal_lm: str | None = None
    rotary: bool = False
    query_key_norm: bool = False
    relative: bool = False
    output_bias: bool = True


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
    causal_lm="LMHeadModel",
    decoder=True,
)
_LLAMA = Family(
    classes="Llama",
    prefix="model.",
    settings={
        "attention_probs_dropout_prob": "attention_dropout",
        "layer_norm_eps": "rms_norm_eps",
        **{name: name for name in ("bos_token_id", "eos_token_id", "rope_theta", "rope_scaling")},
        **{name: name for name in ("num_key_value_heads", "head_dim", "attention_bias")},
    },
    fixed={"type_vocab_size": 0, "hidden_dropout_prob": 0.0, "classifier_dropout": 0.0},
    defaults={
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    derived={"pad_token_id": (1, "eos_token_id")},  # As in GPT-2.
    demanded={"mlp_bias": False},
    tensors={
        "embeddings.word_embeddings": "embed_tokens",
        "encoder.layer.*.attention.self.query": "layers.*.self_attn.q_proj",
        "encoder.layer.*.attention.self.key": "layers.*.self_attn.k_proj",
        "encoder.layer.*.attention.self.value": "layers.*.self_attn.v_proj",
        "encoder.layer.*.attention.output.dense": "layers.*.self_attn.o_proj",
        "encoder.layer.*.attention.output.LayerNorm": "layers.*.input_layernorm",
        "encoder.layer.*.intermediate.gate": "layers.*.mlp.gate_proj",
        "encoder.layer.*.intermediate.dense": "layers.*.mlp.up_proj",
        "encoder.layer.*.output.dense": "layers.*.mlp.down_proj",
        "encoder.layer.*.output.LayerNorm": "layers.*.post_attention_layernorm",
        "final_norm": "norm",
        "cls.predictions.decoder": "lm_head",
    },
    classifier={"classifier": "score"},
    classifier_bias=False,
    pooler=False,
    masked_lm=False,
    causal_lm="ForCausalLM",
    decoder=True,
    rotary=True,
)
_QWEN = _LLAMA._replace(
    defaults={
        **_LLAMA.defaults,
        "bos_token_id": None,
        "eos_token_id": None,
        "num_key_value_heads": 32,
    },
    demanded={"use_sliding_window": False},
)


def _without(name: str) -> dict[str, str]:
    """Return Llama's settings without one."""
    return {ours: theirs for ours, theirs in _LLAMA.settings.items() if ours != name}


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
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA._replace(
        classes="Mistral",
        settings=_without("attention_bias") | {"sliding_window": "sliding_window"},
        defaults={**_LLAMA.defaults, "num_key_value_heads": 8, "sliding_window": 4096},
        demanded={},
    ),
    "qwen2": _QWEN._replace(
        classes="Qwen2",
        settings=_without("attention_bias"),
        fixed={**_LLAMA.fixed, "attention_bias": True},
        output_bias=False,
    ),
    "qwen3": _QWEN._replace(
        classes="Qwen3",
        defaults={**_QWEN.defaults, "head_dim": 128},
        tensors={
            **_LLAMA.tensors,
            "encoder.layer.*.attention.self.query_norm": "layers.*.self_attn.q_norm",
            "encoder.layer.*.attention.self.key_norm": "layers.*.self_attn.k_norm",
        },
        query_key_norm=True,
    ),
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
