import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import metajax
from metajax.algorithms.inner_loop import fold_in, inner_loop


def loop(loss_fn, optimizer, num_steps, **settings):
    """`(params, support, rng) -> (adapted, info)`, all of the parameters adapted."""
    run = inner_loop(lambda p, _, batch, rng: loss_fn(p, batch, rng)[0], num_steps, **settings)
    return lambda params, support, rng: run(optimizer, params, None, support, rng)[:2]


def test_no_steps_change_nothing():
    params = jnp.arange(3.0)
    run = loop(problems.quadratic, optax.sgd(0.1), 0)
    adapted, info = run(params, problems.quadratic_task().support, None)
    assert adapted is params
    assert info.support_loss.shape == (0,)


def test_negative_steps_are_refused():
    with pytest.raises(ValueError, match="num_steps is -1; give a number"):
        loop(problems.quadratic, optax.sgd(0.1), -1)


@pytest.mark.parametrize("first_order", [False, True])
def test_support_loss_is_that_before_each_step(x64, first_order):
    params, support = problems.mlp_params(), problems.one_task().support
    run = loop(problems.mlp_loss, optax.sgd(0.1), 3, first_order=first_order)
    adapted, info = run(params, support, None)
    for k in range(3):
        loss, grads = jax.value_and_grad(lambda p: problems.mlp_loss(p, support, None)[0])(params)
        np.testing.assert_allclose(info.support_loss[k], loss, rtol=1e-12)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    assert problems.relative_gap(adapted, params) < 1e-12


def test_each_step_draws_its_own_noise():
    def loss_fn(params, batch, rng):
        return jnp.sum(params) * jax.random.normal(rng), {}

    key = jax.random.key(3)
    adapted, _ = loop(loss_fn, optax.sgd(1.0), 3)(jnp.zeros(1), None, key)
    noise = [jax.random.normal(jax.random.fold_in(key, k)) for k in range(3)]
    np.testing.assert_allclose(adapted, [-sum(noise)], rtol=1e-6)
    assert len(set(map(float, noise))) == 3


def test_no_key_means_no_keys():
    assert fold_in(None, 3) is None


def pull_back():
    """Half of the way back to where the inner loop began, which its state remembers."""

    def update(updates, begin, params):
        back = jax.tree.map(lambda u, p, b: u - (p - b) / 2, updates, params, begin)
        return back, begin

    return optax.GradientTransformation(lambda params: params, update)


def test_first_order_passes_gradients_through_unchanged(x64):
    """Also of optimizers that look at the parameters."""
    optimizer = optax.chain(optax.adamw(0.1, weight_decay=0.5), pull_back())
    params, support = jnp.ones(3), problems.quadratic_task().support
    run = loop(problems.quadratic, optimizer, 3, first_order=True)
    jacobian = jax.jacobian(lambda params: run(params, support, None)[0])(params)
    np.testing.assert_array_equal(jacobian, np.eye(3))
    expected, _ = loop(problems.quadratic, optimizer, 3)(params, support, None)
    np.testing.assert_allclose(run(params, support, None)[0], expected, rtol=1e-12)


@pytest.mark.parametrize(
    "constructor", [metajax.maml, metajax.reptile, metajax.imaml, metajax.meta_sgd]
)
def test_unrolled_steps_are_no_loop(constructor):
    def looped(**settings):
        inner = 0.1 if constructor is metajax.meta_sgd else optax.sgd(0.1)
        algorithm = constructor(problems.quadratic, inner, 3, **settings)
        meta_params, support = algorithm.init(jnp.ones(3)), problems.quadratic_task().support
        return "while" in jax.jit(algorithm.adapt).lower(meta_params, support, None).as_text()

    assert looped()
    assert not looped(unroll=True)


def test_schedules_count_the_inner_steps():
    schedule = optax.schedules.piecewise_constant_schedule(0.1, {1: 0.5})
    run = loop(lambda params, batch, rng: (params, {}), optax.sgd(schedule), 3)
    adapted, _ = run(jnp.float32(0), None, None)
    np.testing.assert_allclose(adapted, -(0.1 + 0.05 + 0.05), rtol=1e-6)
