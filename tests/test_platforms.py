"""A program that is traced for another platform makes that platform's choices."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import problems
import pytest

import metajax
from metajax import platforms
from metajax.config.settings import MetatrainSettings
from metajax.models import Transformer
from metajax.platforms import (
    _LONG_FROM,
    compiling_for,
    full_jit,
    is_short,
    quick_jit,
    target_platform,
    xla_options,
)
from metajax.runs import loop
from metajax.runs.inner import DEFAULTS
from metajax.runs.learner import make_algorithm, make_learner
from metajax.training.flops import count_traced_flops
from metajax.training.outer import map_tasks
from tests.models.helpers import TINY

INNER = DEFAULTS | {"algorithm": "maml", "inner_steps": 2}


def num_scans(function, *arguments):
    return str(jax.jit(function).trace(*arguments).jaxpr).count("scan[")


def test_the_default_is_the_backend_and_contexts_nest():
    assert target_platform() == jax.default_backend()
    with compiling_for("tpu"):
        assert target_platform() == "tpu"
        with compiling_for("gpu"):
            assert target_platform() == "gpu"
        assert target_platform() == "tpu"
    assert target_platform() == jax.default_backend()


@pytest.mark.parametrize(("platform", "loops"), [("cpu", 1), ("gpu", 0), ("tpu", 0)])
def test_tasks_at_once(platform, loops):
    """The same functions for all platforms: caches of `jax.jit` tell them apart."""
    tasks, keys = metajax.Task(None, jnp.ones(3)), jax.random.split(jax.random.key(0), 3)

    def total(tasks, keys):
        return map_tasks(lambda task, _: (task.query, None), tasks, keys, None)[0]

    for wanted, expected in (("cpu", 1), (platform, loops), ("cpu", 1)):
        with compiling_for(wanted):
            assert num_scans(total, tasks, keys) == expected


@pytest.mark.parametrize(("platform", "loops"), [("cpu", 2), ("gpu", 1), ("tpu", 1)])
def test_tokens_at_once(platform, loops):
    """The blocks are a loop; within it, on a CPU, is one over rows of 256 tokens in all."""
    model = Transformer(TINY, remat=True)
    params, ids = jax.eval_shape(model.init, jax.random.key(0)), jnp.ones((32, 12), jnp.int32)
    batch = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids}
    with compiling_for(platform):
        assert num_scans(lambda p: model(p, batch, None).last_hidden_state, params) == loops


@pytest.mark.parametrize(("platform", "unrolled"), [("cpu", True), ("gpu", False), ("tpu", False)])
def test_inner_steps_are_unrolled_on_a_cpu(platform, unrolled):
    model = Transformer(TINY, head="classification", num_labels=(3,))
    with compiling_for(platform):
        assert make_learner(model, INNER).shared.unroll == unrolled


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize(("slim", "in_a_list"), [(False, True), (True, False)])
def test_blocks_are_unrolled_unless_memory_is_saved(platform, slim, in_a_list):
    model = Transformer(TINY, head="classification", num_labels=(3,), remat=slim)
    params = jax.eval_shape(model.init, jax.random.key(0))
    ids = jnp.ones((2, 4), jnp.int32)
    task = metajax.Task({"input_ids": ids, "attention_mask": ids, "token_type_ids": ids}, None)
    with compiling_for(platform):
        reparametrize = make_learner(model, INNER).shared.reparametrize
        blocks = jax.eval_shape(lambda params: reparametrize(params, task)[0], params)["layers"]
    assert isinstance(blocks, list) == in_a_list


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_on_an_accelerator_remat_implies_low_memory(platform):
    model = Transformer(TINY, head="classification", num_labels=(3,), remat=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    ids, labels = jnp.ones((2, 4), jnp.int32), jnp.zeros(2, jnp.int32)
    batch = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids, "labels": labels}

    def program(low_memory):
        inner = INNER | {"low_memory": low_memory}
        with compiling_for(platform):
            algorithm = make_algorithm(model, inner, jax.random.key(0))
            traced = jax.jit(algorithm.meta_grad).trace(shapes, metajax.Task(batch, batch), None)
        return count_traced_flops(traced.jaxpr.jaxpr, 1)

    assert (program(False) == program(True)) == (platform == "gpu")


@pytest.mark.parametrize(
    ("platform", "long", "short", "small"),
    [
        ("cpu", {}, {}, {"xla_cpu_enable_concurrency_optimized_scheduler": False}),
        ("gpu", *[{"xla_disable_hlo_passes": "triton-softmax-rewriter"}] * 3),
        ("tpu", {}, {"exec_time_optimization_effort": -1.0}, {}),
        ("of tomorrow", {}, {}, {}),
    ],
)
def test_compiler_options_of_a_run(platform, long, short, small):
    """Of a long one, a short one, and of those that save memory."""
    settings = MetatrainSettings(model="m", tasks=("t",), workdir="w")
    with compiling_for(platform):
        assert loop.compiler_options(settings) == long
        assert loop.compiler_options(settings, short=is_short(1)) == short
        for name in ("remat", "low_memory"):
            saving = dataclasses.replace(settings, **{name: True})
            assert loop.compiler_options(saving) == small
            assert loop.compiler_options(saving, short=is_short(1)) == small


def test_options_that_the_user_has_set_stay(monkeypatch):
    """XLA's own flag for passes would be replaced, not extended."""
    with compiling_for("tpu"):
        jax.config.update("jax_exec_time_optimization_effort", -0.5)
        try:
            assert xla_options(quick=True) == {}
        finally:
            jax.config.update("jax_exec_time_optimization_effort", 0.0)
        assert xla_options(quick=True)
    with compiling_for("gpu"):
        monkeypatch.setenv(
            "XLA_FLAGS", "--xla_disable_hlo_passes=algsimp --xla_cpu_enable_fast_math"
        )
        assert xla_options(quick=True) == {}
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math")
        assert xla_options(quick=True)


def test_programs_that_run_often_have_their_options(monkeypatch):
    monkeypatch.setitem(platforms._ALWAYS, "cpu", {"xla_that_is_not_there": True})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_that_is_not_there"):
        full_jit(lambda x: x)(jnp.ones(2))
    loss_fn, init_fn = problems.mlp_loss, problems.mlp_params
    algorithm = metajax.maml(loss_fn, optax.sgd(0.1), 1)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_that_is_not_there"):
        metajax.evaluate(algorithm, init_fn(), problems.mlp_tasks(), jax.random.key(0))


def test_runs_of_few_tasks_on_a_tpu_are_short():
    for platform, shortest in (("cpu", False), ("gpu", False), ("tpu", True)):
        with compiling_for(platform):
            found = [is_short(number) for number in (1, _LONG_FROM - 1, _LONG_FROM)]
        assert found == [shortest, shortest, False]


def test_quick_compilation_has_its_options_on_a_cpu(monkeypatch):
    given, jit = [], jax.jit
    monkeypatch.setattr(jax, "jit", lambda *a, **k: given.append(k) or jit(*a, **k))
    x = jnp.ones(2)
    assert quick_jit(lambda x, y: x + y, donate_argnums=0)(x, 1).tolist() == [2, 2]
    assert x.is_deleted()
    assert given[-1]["compiler_options"] == {"xla_cpu_use_fusion_emitters": False}


def test_quick_compilation_only_asks_for_what_xla_knows(monkeypatch, request):
    request.addfinalizer(platforms._is_known.cache_clear)
    platforms._is_known.cache_clear()
    monkeypatch.setitem(platforms._QUICK, "cpu", {"xla_cpu_that_is_not_there": False})
    assert xla_options(quick=True) == {}
    assert quick_jit(lambda x, y: x + y)(jnp.ones(2), 1).tolist() == [2, 2]
