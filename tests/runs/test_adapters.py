"""Adapters: `{"base", "adapters"}`, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metajax.config.groups import ModelSettings
from metajax.config.inner import InnerSettings
from metajax.config.plan import PlanSettings
from metajax.errors import InputError
from metajax.models import Transformer
from metajax.runs.adapters import (
    adapter_kind,
    adapts,
    is_frozen,
    lora_kernels,
    make_adapters,
    upper_mlps,
)
from metajax.runs.few_shot import describe_few_shot, open_few_shot
from metajax.runs.inner import DEFAULTS
from metajax.runs.source import open_source
from metajax.tree import paths
from tests.models.helpers import make_batch, make_params
from tests.models.test_prefix import make_model
from tests.workdirs import write_workdir

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


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("bert"))


def opened(model, **inner):
    settings = ModelSettings(model=str(model))
    return open_few_shot(settings.model, settings, InnerSettings(**inner), 3)


def test_the_base_of_adapters_keeps_its_vectors_before_the_text(bert, tmp_path):
    prefix = write_workdir(tmp_path / "prefix", bert, "metatrain", network=None, prefix=3)
    assert "prefix" not in open_source(str(prefix)).params  # Each task begins with new ones.
    prefix = tmp_path / "frozen"
    write_workdir(prefix, bert, "metatrain", network=None, prefix=3, freeze=True)
    lora = tmp_path / "lora"
    write_workdir(lora, prefix, "metatrain", network=None, lora=2, freeze=True)
    for head in ({}, {"head": "encoder"}):
        base = open_source(str(lora), **head).split["base"]
        tiny.assert_same_bits(base, open_source(str(prefix), **head).params)
        assert "prefix" not in open_source(str(prefix), **head).split["base"]
    assert opened(prefix, prefix=3).start["adapters"]["prefix"]["vectors"].shape[0] == 3
    with pytest.raises(InputError, match="--prefix 5: the model has 3 vectors before the text; gi"):
        opened(prefix, prefix=5)


def test_a_plan_for_an_adapted_run_has_its_adapters(bert, tmp_path):
    meta, run = tmp_path / "meta", tmp_path / "run"
    write_workdir(meta, bert, "metatrain", network=None, lora=2, freeze=True)
    write_workdir(run, meta, "adapt", network=None)
    settings = PlanSettings(model=str(run))
    found = describe_few_shot(settings.model, settings, settings, 3).inner
    assert (found["lora"], found["freeze"]) == (2, True)
    assert {name: found[name] for name in DEFAULTS} == {
        name: opened(run).inner[name] for name in DEFAULTS
    }


def test_the_base_has_no_norm_that_adapts(bert, tmp_path):
    """Also if it belongs to a part of the network that has nothing else."""
    own = {"trainable": "norms", "freeze": True}
    run = write_workdir(tmp_path / "run", bert, "metatrain", network=None, **own)
    split = open_source(str(run), head="encoder").split
    assert not set(paths(split["base"])) & set(paths(split["adapters"]))


def test_a_setting_that_the_run_had_changes_nothing(bert, tmp_path):
    run, own = tmp_path / "run", {"lora": 2, "lora_kernels": ("out",), "freeze": True}
    write_workdir(run, bert, "metatrain", network=None, **own)
    assert opened(run, lora=2).inner == opened(run).inner
    assert opened(run).inner["freeze"]
    other = opened(run, lora=3).inner
    assert (other["lora"], other["lora_kernels"], other["freeze"]) == (3, (), None)


def test_learned_rates_of_adapters_are_for_these_adapters(bert, tmp_path):
    own = {"lora": 2, "algorithm": "meta-sgd"}
    run = write_workdir(tmp_path / "run", bert, "metatrain", network=None, **own)
    for name, value in (("layers", 0), ("lora", 3), ("lora_kernels", ("out",))):
        shown = f"--{name.replace('_', '-')} {value if name != 'lora_kernels' else 'out'}"
        with pytest.raises(InputError, match=f"{shown}: meta-sgd has learned rates for other par"):
            opened(run, **{name: value})


def test_names_of_the_same_kernels_are_the_same_adapters():
    kinds = [
        adapter_kind({"lora": 2, "lora_kernels": kernels})
        for kernels in (None, (), ["qkv"], ("value", "query", "key"))
    ]
    assert len(set(kinds)) == 1
    assert adapter_kind({"lora": 2, "lora_kernels": ("query",)}) not in kinds
    assert adapter_kind({"lora": 2, "lora_kernels": ("qkv", "up")}) not in kinds
