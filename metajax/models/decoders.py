"""The families of decoders: GPT-2, and those of Llama's shape."""

from metajax.models.family import Family

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
    block="gpt2",
    final_norm=True,
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
    block="llama",
    final_norm=True,
    position_table=False,
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


DECODERS = {
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
