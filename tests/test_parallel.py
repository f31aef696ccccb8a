import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from test_outer import MAML, take_steps

import metajax
from metajax.parallel import split_tasks


@functools.cache
def loop_on(count, donate=False):
    return metajax.outer_loop(MAML, optax.adam(0.01), devices=jax.devices()[:count], donate=donate)


def check_devices_agree(tolerance):
    expected, expected_metrics = take_steps(loop_on(1), 10)
    for count in (2, 8):
        state, metrics = take_steps(loop_on(count), 10)
        assert problems.relative_gap(state.meta_params, expected.meta_params) < tolerance
        assert problems.relative_gap(metrics, expected_metrics) < tolerance
        looks = [
            jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
            for tree in ((state, metrics), (expected, expected_metrics))
        ]
        assert looks[0] == looks[1]


def test_devices_agree_after_ten_steps_in_float32():
    check_devices_agree(1e-6)


def test_devices_agree_after_ten_steps_in_float64(x64):
    check_devices_agree(1e-12)


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
    with pytest.raises(ValueError, match=f"{tasks} tasks .* over 8 devices: .*{near}"):
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


@pytest.mark.parametrize("count", [1, 8])
def test_a_state_is_only_used_up_when_donated(count):
    tasks = problems.mlp_tasks()
    keeping, donating = loop_on(count), loop_on(count, donate=True)
    state = keeping.init(problems.mlp_params(), jax.random.key(0))
    first, _ = keeping.step(state, tasks)
    again, _ = keeping.step(state, tasks)
    assert problems.relative_gap(first.meta_params, again.meta_params) == 0

    donated, _ = donating.step(first, tasks)
    kept, _ = keeping.step(again, tasks)
    assert problems.relative_gap(donated.meta_params, kept.meta_params) == 0
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.meta_params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(again.meta_params))
