"""Several examples in a row give what each gives alone."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.data.packing import Shape, pack
from metajax.models import Transformer, classification_loss
from tests.models.helpers import TINY, llama_settings, make_batch, make_params

LLAMA = dataclasses.replace(TINY, **llama_settings("qwen3"))
MISTRAL = dataclasses.replace(TINY, **llama_settings("mistral"))
GPT2 = dataclasses.replace(TINY, model_type="gpt2", type_vocab_size=0)
SHAPES = [Shape(3, 7), Shape(2, 9), Shape(1, 16), Shape(4, 12)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("pooling", "config", "shape"),
    [
        ("mean", TINY, SHAPES[0]),
        ("pooler", TINY, SHAPES[1]),
        ("pooler", GPT2, SHAPES[1]),
        ("pooler", LLAMA, SHAPES[1]),
        ("mean", MISTRAL, SHAPES[2]),
        ("cls", TINY, SHAPES[1]),
        ("last", TINY, SHAPES[1]),
        ("weighted-mean", TINY, SHAPES[0]),
        *(
            pytest.param(*setting, marks=pytest.mark.slow)
            for setting in itertools.product(["mean", "pooler"], [TINY, GPT2], SHAPES[2:])
        ),
    ],
)
def test_packed_rows_change_nothing(pooling, config, shape):
    model = Transformer(config, head="classification", num_labels=(3,), pooling=pooling)
    params = make_params(model, dtype=jnp.float64)
    rest = {"labels": jnp.array([2, 0, 1]), "example_mask": jnp.array([1.0, 1.0, 0.5])}
    plain = make_batch()
    packed = pack({key: np.asarray(value) for key, value in plain.items()}, shape)
    run = jax.jit(jax.value_and_grad(classification_loss(model), has_aux=True))
    expected, found = (run(params, batch | rest, None) for batch in (plain, packed))

    def close(a, b):
        assert np.abs(a - b).max() <= 1e-12 * max(1, np.abs(b).max())

    jax.tree.map(close, found, expected)
    close(jax.jit(model)(params, packed).pooled, jax.jit(model)(params, plain).pooled)


@pytest.mark.parametrize("pooling", ["mean", "pooler"])
@pytest.mark.parametrize("config", [TINY, GPT2], ids=["bert", "gpt2"])
def test_an_example_without_tokens_is_harmless(pooling, config):
    model = Transformer(
        config, head="classification", num_labels=(3,), pooling=pooling, feature_norm=2.0
    )
    params = make_params(model)
    plain = make_batch()
    plain["attention_mask"] = plain["attention_mask"].at[1].set(0)
    packed = pack({key: np.asarray(value) for key, value in plain.items()}, Shape(2, 7))
    rest = {"labels": jnp.array([2, 0, 1]), "example_mask": jnp.array([1.0, 0.0, 1.0])}
    run = jax.jit(jax.value_and_grad(classification_loss(model), has_aux=True))
    (loss, _), grads = run(params, packed | rest, None)
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    moved = packed | {"labels": jnp.array([2, 2, 1])}
    assert run(params, moved | rest, None)[0][0] == loss
