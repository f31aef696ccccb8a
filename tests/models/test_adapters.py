"""Low-rank adapters that the network applies next to kernels that all tasks share."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.algorithms import lora
from metajax.models import Transformer, classification_loss, prototype_init, separate_layers
from tests.models.helpers import TINY, make_batch, make_params

MODEL = Transformer(TINY, head="classification", num_labels=(3,), pooling="mean")
NAMES = ("qkv", "out", "up", "down")


def with_adapters(dtype, seed=3):
    """Both factors random, so that the adapters change the features."""
    params = make_params(MODEL, dtype=dtype)
    del params["pooler"]
    paths = tuple(f"layers/{name}/kernel" for name in NAMES)
    adapted = lora.init(params, rank=2, target=lambda path: path in paths, rng=jax.random.key(0))
    random = np.random.RandomState(seed)
    draw = lambda leaf: jnp.asarray(random.normal(size=leaf.shape) * 0.3, dtype)  # noqa: E731
    return adapted | {"adapters": jax.tree.map(draw, adapted["adapters"])}


def labelled(seed=0):
    return make_batch(seed) | {"labels": jnp.array([0, 2, 1])}


def algorithm(combine, **settings):
    loss_fn = classification_loss(MODEL)
    return metajax.maml(
        lora.loss(lambda params, batch, rng: loss_fn(params, batch, None), combine),
        optax.sgd(0.3),
        2,
        trainable=lambda path: lora.is_adapter(path) or path.startswith("base/classifier"),
        **settings,
    )


@pytest.mark.parametrize("separate", [False, True])
def test_the_network_computes_what_merged_kernels_give(x64, separate):
    params, batch = with_adapters(jnp.float64), make_batch()
    merged, attached = lora.merge(params), lora.attach(params)
    if separate:
        attached, _, undo = separate_layers()(attached, metajax.Task(None, None))
        assert undo(attached)["layers"]["qkv"]["up"].shape == (2, 2, 24)
    expected = jax.jit(MODEL)(merged, batch).logits
    np.testing.assert_allclose(jax.jit(MODEL)(attached, batch).logits, expected, atol=1e-12)
    assert np.abs(jax.jit(MODEL)(params["base"], batch).logits - expected).max() > 1e-3


@pytest.mark.parametrize("low_memory", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_meta_gradient_is_that_of_merged_kernels(x64, low_memory):
    params, task = with_adapters(jnp.float64), metajax.Task(labelled(1), labelled(2))
    settings = {"low_memory": low_memory}

    def both(combine):
        head = lambda path: path.startswith("classifier")  # noqa: E731
        frozen = algorithm(lora.freeze(combine, head), **settings).meta_grad
        return algorithm(combine, **settings).meta_grad(params, task, None)[0], frozen(
            params, task, None
        )[0]

    (merged, merged_frozen), (attached, attached_frozen) = map(
        jax.jit(both, static_argnums=0), (lora.merge, lora.attach)
    )
    close = lambda one, other: np.testing.assert_allclose(one, other, atol=1e-11)  # noqa: E731
    jax.tree.map(close, attached, merged)
    jax.tree.map(close, attached_frozen["adapters"], merged["adapters"])
    jax.tree.map(close, merged_frozen["adapters"], merged["adapters"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(attached_frozen["base"]["embeddings"]))


def compiled_text(combine, tasks, count):
    params = jax.tree.map(jnp.float32, with_adapters(jnp.float32))
    begin = prototype_init(MODEL)
    own = algorithm(combine, init_fn=lora.init_fn(begin, combine))

    def mean(params, tasks):
        grads = jax.vmap(lambda task: own.meta_grad(params, task, None)[0]["adapters"])(tasks)
        return jax.tree.map(lambda leaf: leaf.mean(0), grads)

    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), tasks)
    return jax.jit(mean).lower(params, tasks).as_text()


def test_no_kernel_is_repeated_for_each_task(optimized):
    """Of eight tasks at once; the kernels are [8, 24], [8, 8], [8, 12] and [12, 8]."""
    task = metajax.Task(labelled(1), labelled(2))
    repeated = re.compile(r"tensor<8x(2x)?(8x24|12x8|8x12)xf32>")
    assert repeated.search(compiled_text(lora.merge, task, 8))
    assert not repeated.search(compiled_text(lora.freeze(lora.attach), task, 8))
