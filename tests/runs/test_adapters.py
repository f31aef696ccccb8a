"""Adapters: `{"base", "adapters"}`, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models import Transformer
from metajax.runs.adapters import adapts, is_frozen, lora_kernels, make_adapters, upper_mlps
from metajax.runs.inner import DEFAULTS
from metajax.tree import paths
from tests.models.helpers import make_batch, make_params
from tests.models.test_prefix import make_model

KINDS = {
    "lora": {"lora": 2},
    "prefix": {"prefix": 3},
    "norms": {"trainable": "norms"},
    "mlps": {"trainable": "mlps"},
}


def setting(kind):
    return DEFAULTS | KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_what_the_network_reads_is_what_is_merged(kind, model_type, x64):
    """Also with other values of the adapters, which the base does not have."""
    model = make_model(model_type)
    params = make_params(model, dtype=jnp.float64)
    adapters = make_adapters(model, setting(kind))
    split = adapters.split(params)
    if kind != "prefix":
        jax.tree.map(np.testing.assert_array_equal, adapters.merge(split), params)
    own = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(leaf), split["adapters"])
    changed = split | {"adapters": own}
    merged, batch = adapters.merge(changed), make_batch()
    found, wanted = (model(each, batch).pooled for each in (adapters.attach(changed), merged))
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert np.abs(found - model(params, batch).pooled).max() > 1e-3
    again = adapters.split(merged) if kind != "lora" else changed
    jax.tree.map(np.testing.assert_array_equal, again, changed)


def test_the_head_adapts_and_the_rest_of_a_base_is_frozen():
    names = ["adapters/x", "base/classifier/bias", "base/layers/up", "rates/adapters/x"]
    assert [adapts(name) for name in names] == [True, True, False, False]
    assert [is_frozen(name) for name in names] == [False, False, True, False]
    assert [is_frozen(f"params/{name}") for name in names[:3]] == [False, False, True]


def test_the_last_quarter_is_at_least_one_block():
    assert [upper_mlps(blocks) for blocks in (1, 2, 4, 6, 30)] == [0, 1, 3, 4, 22]


def test_qkv_is_query_key_and_value():
    shapes = jax.eval_shape(make_model("llama").init, jax.random.key(0))
    three = {f"layers/{name}/kernel" for name in ("query", "key", "value")}
    assert lora_kernels(shapes, ()) == lora_kernels(shapes, ("qkv",)) == three
    assert lora_kernels(shapes, ("gate", "value")) == {"layers/gate/kernel", "layers/value/kernel"}
    bert = jax.eval_shape(make_model("bert").init, jax.random.key(0))
    assert lora_kernels(bert, ()) == {"layers/qkv/kernel"}


def test_the_base_has_no_copy_of_what_adapts():
    model: Transformer = make_model("bert", num_hidden_layers=4)
    params = make_params(model)
    for kind in ("norms", "mlps"):
        split = make_adapters(model, setting(kind)).split(params)
        sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (split, params)]
        assert sizes[0] == sizes[1]
    split = make_adapters(model, setting("norms")).split(params)
    assert all(path.endswith(("bias", "scale")) for path in paths(split["adapters"]))
    assert not any(path.endswith(("bias", "scale")) for path in paths(split["base"]))
