"""Weights are read one tensor at a time: memory, bits and dtypes."""

import dataclasses
import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from metajax.models import Transformer, convert, from_pretrained, save_config
from metajax.models.renaming import from_bert
from metajax.models.stored import Stored
from tests.models.helpers import TINY, assert_equal, llama_settings, make_params

# Thirty tensors of 64 kB and more, the largest stack a twelfth of all.
CONFIG = dataclasses.replace(
    TINY,
    **llama_settings("llama") | {"head_dim": 32, "num_key_value_heads": 4, "attention_bias": False},
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    vocab_size=500,
)
MODEL = Transformer(CONFIG, head="causal_lm")


def write_shards(directory, params, count=3):
    """A directory with the tensors in `count` files."""
    tensors = from_bert(convert.to_hugging_face(params), "llama", 0, "causal_lm")
    save_config(directory, MODEL)
    index = {}
    for number in range(count):
        shard = dict(list(tensors.items())[number::count])
        name = f"model-{number + 1:05}-of-{count:05}.safetensors"
        safetensors.numpy.save_file(shard, directory / name)
        index |= dict.fromkeys(shard, name)
    content = json.dumps({"metadata": {}, "weight_map": index})
    (directory / "model.safetensors.index.json").write_text(content)
    return sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize(
    ("dtype", "param_dtype"),
    [
        (jnp.float32, jnp.float32),
        (jnp.bfloat16, jnp.bfloat16),
        (jnp.float32, jnp.bfloat16),
        (jnp.bfloat16, jnp.float32),
    ],
)
def test_shards_are_read_one_tensor_at_a_time(tmp_path, dtype, param_dtype):
    """NumPy never holds more than one parameter and one tensor, in any dtype."""
    params = make_params(MODEL, dtype=dtype)
    size = write_shards(tmp_path, params)
    from_pretrained(str(tmp_path), "causal_lm", param_dtype=param_dtype)  # Imports, compilation.
    tracemalloc.start()
    _, found = from_pretrained(str(tmp_path), "causal_lm", param_dtype=param_dtype)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(found))
    # JAX may keep NumPy's memory as its own.
    assert peak < kept + 0.4 * size
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(param_dtype)}
    assert_equal(found, jax.tree.map(lambda leaf: leaf.astype(param_dtype), params))


def test_a_part_of_a_tensor_is_that_of_the_array():
    array = np.arange(24.0).reshape(4, 6)
    stored = Stored.of(array)
    assert (stored.shape, stored.ndim, stored.T.shape) == ((4, 6), 2, (6, 4))
    np.testing.assert_array_equal(stored.T.read(), array.T)
    np.testing.assert_array_equal(stored.map(lambda rows: rows[1:]).read(), array[1:])
    for part, expected in zip(stored.split(3), np.array_split(array, 3), strict=True):
        assert part.shape == expected.shape
        np.testing.assert_array_equal(part.read(), expected)
    assert Stored.of(np.array(1.0)).split(3)[0].read() == 1
