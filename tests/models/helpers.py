"""Tiny models, batches and directories that the tests of metajax.models share."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from metajax.models import Transformer, TransformerConfig
from metajax.models.families import FAMILIES

TINY = TransformerConfig(
    vocab_size=31,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=16,
)
LLAMAS = ("llama", "mistral", "qwen2", "qwen3")
# Settings of tiny encoders whose blocks are not BERT's.
ENCODERS = {
    "mpnet": {"pad_token_id": 1, "type_vocab_size": 0},
    "albert": {"embedding_size": 6, "hidden_act": "gelu_new", "num_hidden_layers": 3},
    "deberta-v2": {"type_vocab_size": 0, "position_buckets": 8},
    # Its last block is global but not the first, and its biases are as in the released models.
    "modernbert": {
        "type_vocab_size": 0,
        "num_hidden_layers": 3,
        "global_attn_every_n_layers": 2,
        "local_attention": 4,
        "rope_theta": 50.0,
        "local_rope_theta": 7.0,
        "classifier_pooling": "mean",
        "classifier_dropout": 0.0,
        **dict.fromkeys(("norm_bias", "mlp_bias", "classifier_bias"), False),
    },
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(26))]


def llama_settings(model_type):
    """Settings of a tiny model of Llama's shape, with what its family can have."""
    own = {
        "llama": {"attention_bias": True},
        "mistral": {"sliding_window": 3},
        "qwen2": {},
        "qwen3": {"attention_bias": True, "rope_theta": 100.0},
    }
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
    return {
        "model_type": model_type,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        **FAMILIES[model_type].fixed,
        **sizes,
        **own[model_type],
    }


def make_batch(seed=0, batch=3, length=7, vocab=31):
    """Random tokens of several lengths, in two segments.

    Never a padding token among them: PyTorch leaves its embedding out of the gradient.
    """
    random = np.random.RandomState(seed)
    lengths = np.linspace(length, 2, batch).astype(int)
    mask = np.arange(length) < lengths[:, None]
    return {
        "input_ids": jnp.asarray(random.randint(1, vocab, (batch, length)) * mask, jnp.int32),
        "attention_mask": jnp.asarray(mask, jnp.int32),
        "token_type_ids": jnp.asarray(
            np.broadcast_to(np.arange(length) > 2, mask.shape) & mask, jnp.int32
        ),
    }


def make_params(model: Transformer, seed=0, dtype=jnp.float32):
    """Every parameter random, biases and norms included, so that each of them shows."""
    random = np.random.RandomState(seed)

    def draw(path, leaf):
        one = path[-1].key == "scale"
        return jnp.asarray(one + 0.2 * random.standard_normal(leaf.shape), dtype)

    template = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(draw, template)
    if not model.config.family.first_norm:  # Its parameters have no effect, and are not saved.
        norm = params["layers"]["attention_norm"]
        norm |= {name: leaf.at[0].set(name == "scale") for name, leaf in norm.items()}
    return params


def write_directory(directory: Path, tensors, config=None, **changes):
    """A Hugging Face directory of these tensors."""
    directory.mkdir(exist_ok=True)
    values = {**(config or TINY).to_dict(), **changes}
    (directory / "config.json").write_text(json.dumps(values))
    tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    return str(directory)


def write_tokenizer(directory: Path):
    """A word-piece vocabulary, as old BERTs have it."""
    (directory / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')


def assert_equal(left, right):
    """The same trees to the bit."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)
