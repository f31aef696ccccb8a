"""Learned rates: Meta-SGD and MAML++."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import metajax
from metajax.algorithms import lora

LOSS = problems.mlp_loss
RATE = 0.05


@pytest.mark.parametrize(
    "settings", [{}, {"low_memory": True}, {"first_order": True}], ids=lambda each: "".join(each)
)
def test_meta_sgd_on_a_quadratic(x64, settings):
    """After one step p - r * g: the rates' gradient is -g * Q (p - r * g - goal)."""
    task, a, centre, q, goal, params = problems.quadratic_numbers()
    algorithm = metajax.meta_sgd(problems.quadratic, RATE, 1, **settings)
    rates = np.array([0.1, 0.2, -0.3])
    meta_params = {"params": jnp.asarray(params), "rates": jnp.asarray(rates)}
    grads, _ = algorithm.meta_grad(meta_params, task, None)
    slope = a @ (params - centre)
    at_adapted = q @ (params - rates * slope - goal)
    np.testing.assert_allclose(grads["rates"], -slope * at_adapted, rtol=1e-12)
    expected = at_adapted - (0 if "first_order" in settings else a @ (rates * at_adapted))
    np.testing.assert_allclose(grads["params"], expected, rtol=1e-12)


def test_rates_are_reduced_like_the_parameters(x64):
    """Of five inputs two are ever other than zero."""

    def loss_fn(params, batch, rng):
        return jnp.mean((batch[0] @ params - batch[1]) ** 2), {}

    def reduce(params, task):
        fewer = metajax.Task(*(batch and (batch[0][:, used], batch[1]) for batch in task))
        return params[used], fewer, lambda few: params.at[used].set(few)

    used, draw = np.array([1, 3]), np.random.default_rng(0)
    x = draw.normal(size=(2, 6, 5)) * np.isin(np.arange(5), used)
    task = metajax.Task(*((jnp.asarray(each), jnp.arange(6.0)) for each in x))
    plain = metajax.meta_sgd(loss_fn, RATE, 2)
    reduced = metajax.meta_sgd(loss_fn, RATE, 2, reparametrize=reduce)
    meta_params = {"params": jnp.ones(5), "rates": jnp.linspace(0.1, 0.5, 5)}
    expected, found = (each.meta_grad(meta_params, task, None) for each in (plain, reduced))
    assert problems.relative_gap(found, expected) < 1e-12
    expected, found = (each.adapt(meta_params, task.support, None) for each in (plain, reduced))
    assert problems.relative_gap(found, expected) < 1e-12


def test_only_what_the_inner_loop_updates_has_rates(x64):
    """Also where a reparametrization reads all parameters."""

    def loss_fn(params, batch, rng):
        return jnp.mean((batch[0] @ params["kernel"] + params["bias"] - batch[1]) ** 2), {}

    def doubled(params, task):
        return {**params, "bias": 2 * params["bias"]}, task, lambda few: few

    def run(rates, **settings):
        algorithm = metajax.meta_sgd(loss_fn, RATE, 2, reparametrize=doubled, **settings)
        meta_params = algorithm.init(params)
        assert jax.tree.map(lambda rate: rate[0], meta_params["rates"]) == rates
        return algorithm.meta_grad(meta_params, task, None)[0], meta_params["rates"]

    params = {"kernel": jnp.arange(5.0), "bias": jnp.ones(1)}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 5)))
    task = metajax.Task(*((each, jnp.arange(6.0)) for each in x))
    some, rates = run({"kernel": RATE, "bias": None}, trainable=lambda path: path == "kernel")
    chex.assert_trees_all_equal_shapes(some["rates"], rates)
    still = metajax.meta_sgd(loss_fn, RATE, 2, reparametrize=doubled)
    fixed = {"params": params, "rates": {**rates, "bias": jnp.zeros(1)}}
    expected, _ = still.meta_grad(fixed, task, None)
    assert problems.relative_gap(some["params"], expected["params"]) < 1e-12
    assert problems.relative_gap(some["rates"]["kernel"], expected["rates"]["kernel"]) < 1e-12
    assert run({"kernel": RATE, "bias": RATE})[0]["rates"]["bias"].shape == (1,)


def test_the_outer_loop_keeps_nothing_for_a_frozen_base(x64):
    plain = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
    params = lora.init(plain, rank=1, target=lambda path: path == "kernel", rng=jax.random.key(0))
    factors = params["adapters"]["kernel"]
    loss = lora.loss(lambda params, batch, rng: ((batch @ params["kernel"]).sum() ** 2, {}))
    for make, rates in ((metajax.meta_sgd, 7), (metajax.maml_plus_plus, None)):
        algorithm = make(loss, RATE, 2, trainable=lora.is_adapter)
        outer = metajax.outer_loop(algorithm, optax.sgd(0.1, momentum=0.9), frozen=lora.is_base)
        state = outer.init(params, jax.random.key(0))
        if rates:
            assert sum(leaf.size for leaf in jax.tree.leaves(state.meta_params["rates"])) == rates
        trace = state.opt_state[0].trace
        assert not jax.tree.leaves(trace["params"]["base"])
        chex.assert_trees_all_equal_shapes(trace["params"]["adapters"]["kernel"], factors)
        assert jax.tree.leaves(trace["rates"])


def test_maml_plus_plus_has_a_rate_for_each_step(x64):
    task, a, centre, q, goal, params = problems.quadratic_numbers()
    algorithm = metajax.maml_plus_plus(problems.quadratic, RATE, 2)
    meta_params = algorithm.init(jnp.asarray(params))
    np.testing.assert_array_equal(meta_params["rates"], [RATE, RATE])
    rates = np.array([0.1, 0.3])
    grads, _ = algorithm.meta_grad({**meta_params, "rates": jnp.asarray(rates)}, task, None)
    first = params - rates[0] * a @ (params - centre)
    second = first - rates[1] * a @ (first - centre)
    at_adapted = q @ (second - goal)
    np.testing.assert_allclose(grads["rates"][1], -(a @ (first - centre)) @ at_adapted, rtol=1e-12)
    back = at_adapted - rates[1] * a @ at_adapted
    np.testing.assert_allclose(grads["rates"][0], -(a @ (params - centre)) @ back, rtol=1e-12)


def test_each_step_of_maml_plus_plus_takes_its_own_rate(x64):
    task, a, centre, *_, params = problems.quadratic_numbers()
    algorithm = metajax.maml_plus_plus(problems.quadratic, RATE, 4)
    rates = np.array([0.1, 0.3, 0.02, 0.2])
    meta_params = {"params": jnp.asarray(params), "rates": jnp.asarray(rates)}
    adapted, _ = algorithm.adapt(meta_params, task.support, None)
    for rate in rates:
        params = params - rate * a @ (params - centre)
    np.testing.assert_allclose(adapted, params, rtol=1e-12)


def test_the_last_of_three_losses_gains_what_the_others_lose(x64):
    task, a, centre, q, goal, params = problems.quadratic_numbers()
    algorithm = metajax.maml_plus_plus(problems.quadratic, RATE, 3, step=5, multi_step=10)
    grads, _ = algorithm.meta_grad(algorithm.init(jnp.asarray(params)), task, None)
    shrink, expected = np.eye(3) - RATE * a, np.zeros(3)
    for number, weight in ((1, 1 / 6), (2, 1 / 6), (3, 2 / 3)):
        power = np.linalg.matrix_power(shrink, number)
        adapted = centre + power @ (params - centre)
        expected += weight * power @ q @ (adapted - goal)
    np.testing.assert_allclose(grads["params"], expected, rtol=1e-10)


def test_maml_plus_plus_takes_no_more_steps_than_it_has_rates_for(x64):
    task, a, centre, _, _, params = problems.quadratic_numbers()
    of_steps = functools.partial(metajax.maml_plus_plus, problems.quadratic, RATE)
    meta_params = of_steps(2).init(jnp.asarray(params)) | {"rates": jnp.array([0.1, 0.3])}
    adapted, _ = of_steps(1).adapt(meta_params, task.support, None)
    np.testing.assert_allclose(adapted, params - 0.1 * a @ (params - centre), rtol=1e-12)
    for use, given in ((of_steps(3).adapt, task.support), (of_steps(3).meta_grad, task)):
        with pytest.raises(ValueError, match="num_steps is 3, but rates were learned for 2"):
            use(meta_params, given, None)


@pytest.mark.parametrize(
    ("step", "until", "weights"),
    [
        (0, 0, [0.5, 0.5]),
        (3, 0, [0.35, 0.65]),
        (10, 0, [0, 1]),
        (1, 2, [0.45, 0.55]),  # In first order.
        (2, 2, [0.4, 0.6]),
        (10, 11, [0, 1]),
    ],
)
def test_maml_plus_plus_anneals_the_losses_of_early_steps(x64, step, until, weights):
    task, a, centre, q, goal, params = problems.quadratic_numbers()
    algorithm = metajax.maml_plus_plus(
        problems.quadratic, RATE, 2, step=step, multi_step=10, first_order_until=until
    )
    grads, info = algorithm.meta_grad(algorithm.init(jnp.asarray(params)), task, None)
    shrink = np.eye(3) - RATE * a
    points = [centre + np.linalg.matrix_power(shrink, k) @ (params - centre) for k in (1, 2)]
    slope = np.eye(3) if step < until else shrink
    expected = sum(
        weight * np.linalg.matrix_power(slope, k) @ q @ (point - goal)
        for weight, point, k in zip(weights, points, (1, 2))
    )
    np.testing.assert_allclose(grads["params"], expected, rtol=1e-12)
    last = (points[1] - goal) @ q @ (points[1] - goal) / 2
    np.testing.assert_allclose(info.query_loss, last, rtol=1e-12)


def test_an_outer_loop_follows_a_schedule(x64):
    """First order with weighted losses, second order with weighted losses, plain."""
    tasks = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), problems.quadratic_task(0), problems.quadratic_task(1)
    )
    annealing = {"multi_step": 2, "first_order_until": 1}
    algorithm = functools.partial(metajax.maml_plus_plus, problems.quadratic, RATE, 2, **annealing)
    outer = metajax.outer_loop(lambda step: algorithm(step=step), optax.sgd(0.1))
    state = outer.init(jnp.ones(3), jax.random.key(0))
    for step in range(3):
        fixed = algorithm(step=step).meta_grad
        grads = [fixed(state.meta_params, problems.nth(tasks, t), None)[0] for t in range(2)]
        expected = jax.tree.map(lambda p, *g: p - 0.1 * sum(g) / 2, state.meta_params, *grads)
        state, _ = outer.step(state, tasks)
        assert problems.relative_gap(state.meta_params, expected) < 1e-12


@pytest.mark.parametrize("constructor", [metajax.meta_sgd, metajax.maml_plus_plus])
def test_learned_rates_of_a_part(x64, constructor):
    algorithm = constructor(LOSS, 0.05, 2, trainable=lambda path: path.startswith("second"))
    meta_params = algorithm.init(problems.mlp_params())
    task = problems.one_task()
    grads, _ = algorithm.meta_grad(meta_params, task, None)
    adapted, _ = algorithm.adapt(meta_params, task.support, None)
    chex.assert_trees_all_equal(adapted["first"], meta_params["params"]["first"])
    assert not np.any(grads["rates"]["first"]["kernel"])
    assert np.all(grads["rates"]["second"]["kernel"])


def test_stacked_layers_have_rates_of_their_own(x64):
    def loss_fn(params, batch, rng):
        return jnp.sum((params["layers"] - batch) ** 2) / 2, {}

    algorithm = metajax.maml_plus_plus(loss_fn, 0.1, 2, stacked=lambda path: path == "layers")
    meta_params = algorithm.init({"layers": jnp.zeros((3, 4))})
    assert meta_params["rates"]["layers"].shape == (2, 3)
    np.testing.assert_array_equal(meta_params["rates"]["layers"], np.full((2, 3), 0.1))
    meta_params["rates"]["layers"] = jnp.array([[0.0, 0.5, 1.0], [0.0, 0.5, 0.0]])
    adapted, _ = algorithm.adapt(meta_params, jnp.ones((3, 4)), None)
    np.testing.assert_allclose(adapted["layers"][:, 0], [0, 0.75, 1])


def test_maml_plus_plus_refuses_negative_lengths():
    with pytest.raises(ValueError, match="multi_step is -1"):
        metajax.maml_plus_plus(LOSS, 0.05, 1, multi_step=-1)
    with pytest.raises(ValueError, match="first_order_until is -2"):
        metajax.maml_plus_plus(LOSS, 0.05, 1, first_order_until=-2)


@pytest.mark.parametrize("constructor", [metajax.meta_sgd, metajax.maml_plus_plus])
def test_a_start_that_moves_parameters_is_refused(constructor):
    def start(params, support, rng):
        return {"encoder": params}

    algorithm = constructor(
        lambda p, batch, rng: LOSS(p["encoder"], batch, rng), 0.05, 1, init_fn=start
    )
    with pytest.raises(ValueError, match="init_fn: moved first, second"):
        algorithm.adapt(algorithm.init(problems.mlp_params()), problems.one_task().support, None)


@pytest.mark.parametrize("constructor", [metajax.meta_sgd, metajax.maml_plus_plus])
def test_fresh_rates_are_those_of_maml_also_of_a_head_that_the_start_adds(x64, constructor):
    def loss_fn(params, batch, rng):
        return problems.quadratic(params["body"] * params["head"], batch, rng)

    def start(params, support, rng):
        return {**params, "head": support[1] ** 2}

    task, *_, params = problems.quadratic_numbers()
    params = {"body": jnp.asarray(params)}
    plain = metajax.maml(loss_fn, optax.sgd(RATE), 2, init_fn=start)
    learned = constructor(loss_fn, RATE, 2, init_fn=start)
    expected, expected_info = plain.meta_grad(params, task, None)
    grads, info = learned.meta_grad(learned.init(params), task, None)
    assert problems.relative_gap((grads["params"], info), (expected, expected_info)) < 1e-12
    adapted, _ = learned.adapt(learned.init(params), task.support, None)
    assert problems.relative_gap(adapted, plain.adapt(params, task.support, None)[0]) < 1e-12
