import jax
import numpy as np
import optax
import problems
import pytest

import metajax
from metajax.algorithms.supervised import split_batch


def test_it_is_maml_without_inner_steps(x64):
    params, task = problems.mlp_params(), problems.one_task()
    grads, info = metajax.supervised(problems.mlp_loss).meta_grad(params, task, None)
    expected, expected_info = metajax.maml(problems.mlp_loss, optax.sgd(0.1), 0).meta_grad(
        params, task, None
    )
    assert problems.relative_gap(grads, expected) == 0
    np.testing.assert_array_equal(info.query_loss, expected_info.query_loss)
    assert info.support_loss.shape == expected_info.support_loss.shape == (0,)


def test_adapting_changes_nothing():
    params = problems.mlp_params()
    adapted, info = metajax.supervised(problems.mlp_loss).adapt(params, None, None)
    assert adapted is params
    assert info.support_loss.shape == (0,)


def test_several_batches_a_step_are_one_large_batch(x64):
    """Gradient accumulation."""

    def loss_fn(params, batch, rng):
        return problems.mlp_loss(params, batch, None)  # No noise: only the averaging may differ.

    batch = jax.tree.map(lambda leaf: leaf.reshape(24, -1), problems.mlp_tasks(4).query)
    outer = metajax.outer_loop(metajax.supervised(loss_fn), optax.sgd(0.1))
    state = outer.init(problems.mlp_params(), jax.random.key(0))
    several, _ = outer.step(state, split_batch(batch, 4))
    one, _ = outer.step(state, split_batch(batch, 1))
    assert problems.relative_gap(several.meta_params, one.meta_params) < 1e-12


def test_a_batch_is_split_in_order():
    batch = {"ids": np.arange(12).reshape(6, 2), "labels": np.arange(6)}
    support, query = split_batch(batch, 3)
    assert support is None
    assert query["labels"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert query["ids"][1].tolist() == [[4, 5], [6, 7]]
    with pytest.raises(ValueError, match="batch: 6 examples cannot be split into 4 equal parts"):
        split_batch(batch, 4)
