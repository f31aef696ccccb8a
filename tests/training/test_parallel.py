import collections
import functools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
import tiny

import metajax
from metajax import platforms
from metajax.training.parallel import split_tasks, task_mesh
from tests.training.test_outer import MAML, take_steps

pytestmark = pytest.mark.xdist_group("parallel")  # One worker compiles each loop once for all.

# On how many devices, and over how many of them the state is sharded; 0 is pmap's replication.
PLACES = [
    *[(2, 0), (8, 0), (8, 4), (8, 8)],
    *(pytest.param(*each, marks=pytest.mark.slow) for each in [(4, 0), (2, 2), (4, 2), (8, 1)]),
]
ALGORITHMS = {
    "maml": MAML,
    # Another algorithm at each step.
    "reptile": lambda step: metajax.reptile(problems.mlp_loss, optax.sgd(0.1 / (1 + step)), 2),
    "meta-sgd": metajax.meta_sgd(problems.mlp_loss, 0.1, 2),
    "supervised": metajax.supervised(problems.mlp_loss),
}


@functools.cache
def loop_on(count, shards=0, name="maml", donate=False):
    devices = jax.devices()[:count]
    place = {"mesh": task_mesh(shards, devices)} if shards else {"devices": devices}
    return metajax.outer_loop(ALGORITHMS[name], optax.adam(0.01), donate=donate, **place)


def check_devices_agree(name, count, shards, tolerance):
    expected, expected_metrics = take_steps(loop_on(1, name=name), 10)
    state, metrics = take_steps(loop_on(count, shards, name), 10)
    assert problems.relative_gap(state.meta_params, expected.meta_params) < tolerance
    assert problems.relative_gap(metrics, expected_metrics) < tolerance
    looks = [
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
        for tree in ((state, metrics), (expected, expected_metrics))
    ]
    assert looks[0] == looks[1]


@pytest.mark.parametrize("given", [{"compiler_options": {"xla_that_is_not_there": True}}, {}])
@pytest.mark.parametrize(("count", "shards"), [(1, 0), (2, 0), (2, 2)])
def test_a_step_is_compiled_with_its_options(count, shards, given, monkeypatch):
    """Those that are given, or those of the platform."""
    if not given:
        monkeypatch.setitem(platforms._ALWAYS, "cpu", {"xla_that_is_not_there": True})
    devices = jax.devices()[:count]
    place = {"mesh": task_mesh(shards, devices)} if shards else {"devices": devices}
    outer = metajax.outer_loop(MAML, optax.adam(0.01), **given, **place)
    state = outer.init(problems.mlp_params(), jax.random.key(0))
    tasks = problems.mlp_tasks()
    for compiled in (lambda: outer.step(state, tasks), outer.lower(state, tasks).compile):
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_that_is_not_there"):
            compiled()


@pytest.mark.parametrize(("count", "shards"), [(8, 0), (8, 4)])
def test_devices_agree_after_ten_steps_in_float32(count, shards):
    check_devices_agree("maml", count, shards, 1e-6)


@pytest.mark.parametrize(("count", "shards"), PLACES)
def test_devices_agree_after_ten_steps_in_float64(x64, count, shards):
    check_devices_agree("maml", count, shards, 1e-12)


@pytest.mark.parametrize("name", ["reptile", "meta-sgd", "supervised"])
@pytest.mark.parametrize(("count", "shards"), [(8, 0), (8, 4)])
def test_every_algorithm_agrees(x64, name, count, shards):
    check_devices_agree(name, count, shards, 1e-12)


def test_a_state_is_sharded(x64):
    state, _ = take_steps(loop_on(8, 4), 1)
    kernel = state.meta_params["first"]["kernel"]
    moment = state.opt_state[0].mu["first"]["kernel"]
    for leaf in (kernel, moment):
        assert leaf.shape == (2, 4)
        assert {shard.data.shape for shard in leaf.addressable_shards} == {(2, 1)}


def test_the_largest_axis_that_can_be_is_sharded():
    outer = metajax.outer_loop(
        metajax.supervised(problems.mlp_loss), optax.sgd(0.1), mesh=task_mesh(4, jax.devices())
    )
    shapes = {(4, 8): (4, 2), (8, 4): (2, 4), (12, 5): (3, 5), (4, 9): (1, 9), (3, 5): (3, 5)}
    params = {str(shape): np.ones(shape) for shape in shapes}
    state = outer.init(params, jax.random.key(0))
    for shape, split in shapes.items():
        leaf = state.meta_params[str(shape)]
        assert {shard.data.shape for shard in leaf.addressable_shards} == {split}


def collectives(lowered):
    """Of each kind, the bytes of its results that are more than scalars."""
    sizes = collections.Counter()
    for line in lowered.compile().as_text().splitlines():
        found = re.search(r"= (.*) (all-reduce|all-gather|reduce-scatter|all-to-all)\(", line)
        assert "collective-permute(" not in line
        if found:
            shapes = re.findall(r"f32\[([\d,]*)\]", found[1])
            sizes[found[2]] += sum(4 * math.prod(map(int, s.split(","))) for s in shapes if s)
    return dict(sizes)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_one_mean_of_the_gradients_and_no_other_traffic(name):
    tasks = problems.mlp_tasks()
    loops = {shards: loop_on(8, shards, name) for shards in (0, 4)}
    states = {k: loop.init(problems.mlp_params(), jax.random.key(0)) for k, loop in loops.items()}
    leaves = jax.tree.leaves(states[0].meta_params)
    size = sum(4 * leaf.size for leaf in leaves)
    split = sum(4 * leaf.size for leaf in leaves if any(n % 4 == 0 for n in leaf.shape))
    # Reported of each of the 8 tasks: the loss, the worst, and two losses of inner steps.
    losses = 4 * 8 * (2 if name == "supervised" else 4)
    found = {k: collectives(loop.lower(states[k], tasks)) for k, loop in loops.items()}
    assert found[0] == {"all-reduce": size + losses}
    # Parameters to all, a shard of the gradients' sum to each, its mean over the other axis.
    assert found[4] == {
        "all-gather": split,
        "reduce-scatter": split // 4,
        "all-reduce": split // 4 + size - split + losses,
    }


def test_a_mesh_of_one_shard_only_names_devices():
    state = loop_on(8).init(problems.mlp_params(), jax.random.key(0))
    programs = [
        loop_on(8, shards).lower(state, problems.mlp_tasks()).as_text() for shards in (0, 1)
    ]
    assert programs[0] == programs[1]


def test_a_mesh_that_does_not_divide_the_devices_is_refused():
    with pytest.raises(ValueError, match="over 3 of 8 devices; give a divisor"):
        task_mesh(3, jax.devices())


def test_a_state_moves_between_device_counts(x64):
    """From eight devices to one, to evaluation, and back."""
    state, _ = take_steps(loop_on(8), 1)
    tasks = problems.mlp_tasks()
    on_one, _ = loop_on(1).step(jax.device_put(state, jax.devices()[0]), tasks)
    on_eight, _ = loop_on(8).step(state, tasks)
    assert problems.relative_gap(on_one.meta_params, on_eight.meta_params) < 1e-12
    loop_on(8).step(on_one, tasks)
    metajax.evaluate(MAML, on_eight.meta_params, tasks, jax.random.key(0))


@pytest.mark.parametrize(("tasks", "near"), [(10, "8 or 16"), (3, "use 8"), (15, "8 or 16")])
def test_tasks_that_cannot_be_split_name_the_nearest_that_can(tasks, near):
    with pytest.raises(ValueError, match=f"{tasks} tasks .* over 8 devices; .*{near}"):
        split_tasks(problems.mlp_tasks(tasks), 8)


@pytest.mark.parametrize("count", [1, 8])
def test_one_trace_a_shape(count):
    traces = []

    def loss_fn(params, batch, rng):
        traces.append(batch.shape)
        return jnp.sum((params - batch) ** 2), {}

    algorithm = metajax.maml(loss_fn, optax.sgd(0.1), 1)
    outer = metajax.outer_loop(algorithm, optax.adam(0.1), devices=jax.devices()[:count])
    state = outer.init(jnp.zeros(2), jax.random.key(0))

    def step(state, num_tasks):
        # As NumPy, which is how data arrives.
        return outer.step(state, metajax.Task(np.ones((num_tasks, 2)), np.ones((num_tasks, 2))))[0]

    state = step(state, 8)
    after_one = len(traces)
    state = step(step(state, 8), 8)
    state = step(jax.device_put(state, jax.devices()[0]), 8)  # As restored from a checkpoint.
    assert len(traces) == after_one
    step(state, 16)
    assert len(traces) > after_one


@pytest.mark.parametrize(("count", "shards"), [(1, 0), (8, 0), (8, 4)])
def test_a_state_is_only_used_up_when_donated(count, shards):
    tasks = problems.mlp_tasks()
    keeping, donating = loop_on(count, shards), loop_on(count, shards, donate=True)
    state = keeping.init(problems.mlp_params(), jax.random.key(0))
    first, _ = keeping.step(state, tasks)
    again, _ = keeping.step(state, tasks)
    assert problems.relative_gap(first.meta_params, again.meta_params) == 0

    donated, _ = donating.step(first, tasks)
    kept, _ = keeping.step(again, tasks)
    assert problems.relative_gap(donated.meta_params, kept.meta_params) == 0
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.meta_params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(again.meta_params))


def test_two_processes_agree_with_one_device():
    """Four devices each, over loopback, in float64."""
    port = tiny.free_port()
    script = Path(__file__).parents[1] / "two_processes.py"
    both = [
        subprocess.Popen(
            [sys.executable, script, str(port), str(number)], stdout=subprocess.PIPE, text=True
        )
        for number in (0, 1)
    ]
    outs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    for out in outs:
        gaps = json.loads(out.strip().splitlines()[-1])
        assert len(gaps) == 8
        assert max(gaps.values()) < 1e-12


def frozen_loop(count, shards):
    devices = jax.devices()[:count]
    place = {"mesh": task_mesh(shards, devices)} if shards else {"devices": devices}
    frozen = lambda path: path.startswith("first")  # noqa: E731
    return metajax.outer_loop(MAML, optax.adam(0.01), frozen=frozen, **place)


@pytest.mark.parametrize(("count", "shards"), [(1, 0), (2, 0), (8, 4)])
def test_what_is_frozen_stays_and_has_no_moments(count, shards):
    begin = problems.mlp_params()
    state, metrics = take_steps(frozen_loop(count, shards), 3)
    for name, leaf in begin["first"].items():
        np.testing.assert_array_equal(state.meta_params["first"][name], leaf)
    moments = {np.shape(leaf) for leaf in jax.tree.leaves(state.opt_state)} - {()}
    assert moments == {np.shape(leaf) for leaf in jax.tree.leaves(begin["second"])}

    # Adam moves each parameter by its own gradients: the first step is that of the whole loop.
    one, whole = take_steps(frozen_loop(count, shards), 1)[0], take_steps(loop_on(1), 1)[0]
    for name, leaf in whole.meta_params["second"].items():
        np.testing.assert_allclose(one.meta_params["second"][name], leaf, atol=1e-6)
    assert 0 < float(metrics.grad_norm) < float(take_steps(loop_on(1), 3)[1].grad_norm)
