"""Programs for machines that are not there. Those that need a compiler are skipped without it."""

import importlib.util

import jax
import jax.numpy as jnp
import optax
import problems
import pytest
from jax.sharding import SingleDeviceSharding

import metajax
from metajax.errors import InputError
from metajax.platforms import compiling_for, xla_options
from metajax.training import targets
from metajax.training.outer import initial_state
from metajax.training.parallel import task_mesh
from metajax.training.targets import CHIPS, compile_for_target, find_target
from metajax.training.traffic import read_traffic
from tests.training.test_outer import MAML

GPUS = ("a100", "h100", "h200", "b200")


def test_an_unknown_chip():
    with pytest.raises(InputError, match="--target v9: is not a known chip; choose from v4, v5e"):
        find_target("v9")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5e:2x2", "--target v5e:2x2: needs libtpu; install metajax[plan-tpu]"),
        ("h100", "--target h100: needs JAX's CUDA wheels; install metajax[plan-cuda]"),
    ],
)
def test_a_compiler_that_is_not_installed(monkeypatch, text, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as raised:
        find_target(text)
    assert str(raised.value) == message


def test_the_time_is_that_of_the_products_and_then_of_the_bytes():
    chip = CHIPS["h100"]
    assert chip.seconds(989e12, 3350e9 / 2, "bfloat16") == pytest.approx(1.5)
    assert chip.seconds(989e12, 0, "float32") == pytest.approx(989 / 494)


def test_what_xla_is_told_of_a_gpu():
    told = targets._gpu_config(CHIPS["h100"], CHIPS["h100"].gpu)
    for field in (
        "core_count: 132",
        "device_memory_size: 80000000000",
        "memory_bandwidth: 3350000000000",
        "shared_memory_per_block_optin: 232448",
        "cuda_compute_capability { major: 9 }",
        'device_description_str: "NVIDIA H100 80GB HBM3"',
    ):
        assert field in told


def test_the_persistent_cache_is_used_again_afterwards():
    before = jax.config.jax_enable_compilation_cache
    compile_for_target(jax.jit(lambda x: x + 1).lower(1.0))
    assert jax.config.jax_enable_compilation_cache == before


def collectives(target, shards):
    """The large collectives of a step of MAML on a target, and the bytes of its parameters."""
    with compiling_for(target.chip.platform):
        optimizer, tasks = optax.adam(0.01), problems.mlp_tasks()
        mesh = task_mesh(shards, target.devices)
        outer = metajax.outer_loop(MAML, optimizer, mesh=mesh, donate=True)
        state = initial_state(MAML, optimizer, problems.mlp_params(), jax.random.key(0), None)
        shapes = jax.eval_shape(lambda *each: each, state, tasks)
        traffic = read_traffic(compile_for_target(outer.lower(*shapes)).as_text())
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.meta_params))
    return traffic.collectives, size


def check_one_mean(target):
    found, size = collectives(target, 1)
    (mean,) = found
    # Of each task: losses of the query set and of the inner steps, and the worst.
    scalars = 4 * 4 * problems.NUM_TASKS
    assert (mean.kind, mean.times) == ("all-reduce", 1)
    assert size <= mean.size <= size + scalars
    kinds = {each.kind for each in collectives(target, 4)[0]}
    assert kinds <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert "all-gather" in kinds


def test_described_devices_get_the_program_of_a_run():
    check_one_mean(targets.Target(CHIPS["h100"], jax.devices()[:4]))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_step_on_four_tpus_has_one_all_reduce():
    check_one_mean(find_target("v5e:2x2"))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize(
    ("text", "devices", "processes"),
    [
        ("v4", 1, 1),
        ("v5e", 1, 1),
        ("v5p:2x2x1", 4, 1),
        ("v6e:2x4", 8, 1),
        ("tpu7x", 2, 1),
        ("v5e:16x16", 256, 64),
    ],
)
def test_slices_of_tpus(text, devices, processes):
    target = find_target(text)
    assert (len(target.devices), target.num_processes) == (devices, processes)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize("text", ["v5e:3x3", "v5e:many", "v4:"])
def test_slices_that_do_not_exist(text):
    if text == "v4:":
        assert len(find_target(text).devices) == 1
        return
    with pytest.raises(InputError, match=f"--target {text}: is not a machine .* such as v5e:2x4"):
        find_target(text)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs CUDA")
@pytest.mark.parametrize("name", GPUS)
def test_a_step_on_four_gpus_has_one_all_reduce(name):
    check_one_mean(find_target(f"{name}:4"))


def compiled_softmax(target, **options):
    x = jax.ShapeDtypeStruct(
        (4, 128, 128), jnp.bfloat16, sharding=SingleDeviceSharding(target.devices[0])
    )
    program = jax.jit(lambda x: jax.nn.softmax(2 * x), compiler_options=options)
    return compile_for_target(program.trace(x).lower()).as_text()


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_tpus_compiler_knows_its_options():
    with compiling_for("tpu"):
        options = xla_options(quick=True)
    assert options
    assert "HloModule" in compiled_softmax(find_target("v5e"), **options)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs CUDA")
def test_a_gpus_compiler_leaves_out_the_fusions_whose_tiles_it_would_search():
    target = find_target("h100")
    with compiling_for("gpu"):
        options = xla_options(quick=False)
    assert "__triton" in compiled_softmax(target)
    assert "__triton" not in compiled_softmax(target, **options)
