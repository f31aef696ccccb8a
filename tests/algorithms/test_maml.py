import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import metajax

RATE = 0.05
INNER = {
    "sgd": optax.sgd(RATE),
    "momentum": optax.sgd(RATE, momentum=0.9),
    "adam": optax.adam(RATE, eps_root=1e-8),
}


def unrolled(name, params, grad_fn, num_steps):
    """The inner optimizers, from their papers' formulas."""
    first, second = jnp.zeros_like(params), jnp.zeros_like(params)
    for k in range(1, num_steps + 1):
        grad = grad_fn(params)
        if name == "sgd":
            update = grad
        elif name == "momentum":
            first = 0.9 * first + grad
            update = first
        else:
            first = 0.9 * first + 0.1 * grad
            second = 0.999 * second + 0.001 * grad**2
            scale = jnp.sqrt(second / (1 - 0.999**k) + 1e-8) + 1e-8
            update = first / (1 - 0.9**k) / scale
        params = params - RATE * update
    return params


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_quadratic_has_the_closed_form(optimized, x64, num_steps, first_order):
    task = problems.quadratic_task()
    (a, centre), (q, goal) = jax.device_get(task)
    algorithm = metajax.maml(
        problems.quadratic, optax.sgd(RATE), num_steps, first_order=first_order
    )
    params = np.array([0.3, -1.0, 2.0])
    grads, info = algorithm.meta_grad(jnp.asarray(params), task, None)

    shrink = np.linalg.matrix_power(np.eye(3) - RATE * a, num_steps)
    adapted = centre + shrink @ (params - centre)
    at_adapted = q @ (adapted - goal)
    expected = at_adapted if first_order else shrink @ at_adapted
    np.testing.assert_allclose(grads, expected, rtol=1e-12)
    np.testing.assert_allclose(info.query_loss, (adapted - goal) @ at_adapted / 2, rtol=1e-12)
    np.testing.assert_allclose(
        algorithm.adapt(jnp.asarray(params), task.support, None)[0], adapted, rtol=1e-12
    )


@pytest.mark.parametrize("name", INNER)
def test_inner_optimizers_match_their_formulas(x64, name):
    task = problems.quadratic_task()
    (a, centre), _ = task
    params = jnp.array([0.3, -1.0, 2.0])

    def meta_loss(params):
        adapted = unrolled(name, params, lambda p: a @ (p - centre), 3)
        return problems.quadratic(adapted, task.query, None)[0]

    grads, info = metajax.maml(problems.quadratic, INNER[name], 3).meta_grad(params, task, None)
    loss, expected = jax.value_and_grad(meta_loss)(params)
    np.testing.assert_allclose(info.query_loss, loss, rtol=1e-12)
    np.testing.assert_allclose(grads, expected, rtol=1e-10)


@pytest.mark.parametrize("name", INNER)
def test_first_order_is_the_gradient_at_the_adapted_parameters(x64, name):
    algorithm = metajax.maml(problems.mlp_loss, INNER[name], 2, first_order=True)
    params, task = problems.mlp_params(), problems.one_task()
    grads, _ = jax.jit(algorithm.meta_grad)(params, task, None)
    adapted, _ = jax.jit(algorithm.adapt)(params, task.support, None)
    expected = jax.grad(lambda p: problems.mlp_loss(p, task.query, None)[0])(adapted)
    assert problems.relative_gap(grads, expected) < 1e-12


def test_first_order_takes_no_second_derivative():
    """The derivative of this loss's derivative cannot even be traced."""

    @jax.custom_vjp
    def slope(x):
        return 2 * x

    def second_derivative(x, cotangent):
        raise AssertionError("second derivative")

    slope.defvjp(lambda x: (slope(x), x), second_derivative)

    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (square(x), x), lambda x, cotangent: (cotangent * slope(x),))

    def meta_grad(first_order):
        algorithm = metajax.maml(
            lambda params, batch, rng: (square(params - batch), {}),
            optax.adam(0.1, eps_root=1e-8),
            2,
            first_order=first_order,
        )
        return algorithm.meta_grad(jnp.float32(1), metajax.Task(0.0, 0.0), None)

    meta_grad(first_order=True)
    with pytest.raises(AssertionError, match="second derivative"):
        meta_grad(first_order=False)


def test_inner_adam_needs_eps_root_where_a_gradient_is_zero():
    def loss_fn(params, batch, rng):
        return jnp.sum((params - batch) ** 2), {}

    def meta_grad(optimizer):
        task = metajax.Task(support=jnp.array([0.0, 1.0]), query=jnp.ones(2))
        return metajax.maml(loss_fn, optimizer, 2).meta_grad(jnp.zeros(2), task, None)[0]

    assert np.isfinite(meta_grad(INNER["adam"])).all()
    with pytest.warns(UserWarning, match="set eps_root of Adam"):
        assert np.isnan(meta_grad(optax.adam(RATE))[0])


@pytest.mark.parametrize("first_order", [False, True])
def test_start_is_differentiated_through(optimized, x64, first_order):
    task = problems.quadratic_task()
    (a, centre), (q, goal) = jax.device_get(task)
    algorithm = metajax.maml(
        problems.quadratic,
        optax.sgd(RATE),
        1,
        first_order=first_order,
        init_fn=lambda params, support, rng: params * support[1],
    )
    params = np.array([0.3, -1.0, 2.0])
    grads, _ = algorithm.meta_grad(jnp.asarray(params), task, None)

    shrink = np.eye(3) - RATE * a
    at_adapted = q @ (centre + shrink @ (params * centre - centre) - goal)
    expected = centre * (at_adapted if first_order else shrink @ at_adapted)
    np.testing.assert_allclose(grads, expected, rtol=1e-12)


def test_first_order_takes_all_of_a_step_as_constant(x64):
    """What is not adapted, and a batch made from the parameters, are reached by the query alone."""

    def loss_fn(params, batch, rng):
        matrix, centre = batch
        return problems.quadratic(params["body"] * params["head"], (matrix, centre), rng)

    def reduce(params, task):
        bent = metajax.Task(*((a * params["bend"], centre * params["bend"]) for a, centre in task))
        return {key: params[key] for key in ("body", "head")}, bent, None

    task, _, _, q, goal, body = problems.quadratic_numbers()
    params = {"body": jnp.asarray(body), "head": jnp.ones(3), "bend": jnp.float64(0.5)}
    algorithm = metajax.maml(
        loss_fn,
        optax.sgd(RATE),
        2,
        first_order=True,
        trainable=lambda path: path == "head",
        reparametrize=reduce,
    )
    grads, info = algorithm.meta_grad(params, task, None)
    head = np.ones(3)
    a, centre = (0.5 * np.asarray(leaf) for leaf in task.support)
    for _ in range(2):
        head = head - RATE * body * (a @ (body * head - centre))
    gap = body * head - 0.5 * goal
    slope = 0.5 * q @ gap
    np.testing.assert_allclose(info.query_loss, gap @ slope / 2, rtol=1e-12)
    np.testing.assert_allclose(grads["body"], head * slope, rtol=1e-12)
    np.testing.assert_allclose(grads["head"], body * slope, rtol=1e-12)
    np.testing.assert_allclose(grads["bend"], gap @ q @ gap / 2 - goal @ slope, rtol=1e-12)


def test_start_inner_steps_and_query_draw_from_keys_of_their_own():
    """None is derived from another's, and a run's numbers depend on which they are."""
    keys = set()

    def note(rng):
        jax.debug.callback(lambda data: keys.add(tuple(data.tolist())), jax.random.key_data(rng))

    def start(params, support, rng):
        note(rng)
        return params

    def loss_fn(params, batch, rng):
        note(rng)
        return params, {}

    algorithm = metajax.maml(loss_fn, optax.sgd(0.1), 3, init_fn=start)
    key = jax.random.key(0)
    algorithm.meta_grad(jnp.float32(1), metajax.Task(None, None), key)
    jax.effects_barrier()
    at_start, inner, query = (jax.random.fold_in(key, use) for use in range(3))
    expected = [at_start, *(jax.random.fold_in(inner, k) for k in range(3)), query]
    assert keys == {tuple(jax.random.key_data(each).tolist()) for each in expected}


def test_info_is_of_the_query_set_after_adaptation(x64):
    def loss_fn(params, batch, rng):
        return (params - batch) ** 2 / 2, {"params": params}

    algorithm = metajax.maml(loss_fn, optax.sgd(0.5), 2)
    params = jnp.float64(4)
    _, info = algorithm.meta_grad(params, metajax.Task(support=0.0, query=3.0), None)
    assert info.query_aux == {"params": 1.0}  # Halved by each step.
    assert info.query_loss == 2.0
    assert info.support_loss.tolist() == [8.0, 2.0]
    assert algorithm.init(params) is params


def bare_loss(params, batch, rng):
    return jnp.sum((params - batch) ** 2)


@pytest.mark.parametrize(
    "algorithm",
    [
        metajax.maml(bare_loss, optax.sgd(0.1), 1),
        metajax.reptile(bare_loss, optax.sgd(0.1), 0),
        metajax.supervised(bare_loss),
    ],
    ids=["maml", "reptile", "supervised"],
)
def test_a_loss_without_auxiliary_output_is_refused(algorithm):
    task = metajax.Task(jnp.ones(2), jnp.ones(2))
    with pytest.raises(TypeError, match=r"returned float32\[\]; return \(loss, aux\)"):
        algorithm.meta_grad(jnp.zeros(2), task, None)


@pytest.mark.parametrize("low_memory", [False, True])
def test_what_is_frozen_has_no_meta_gradient_and_does_not_adapt(low_memory, x64):
    """As if it were a constant of the loss."""
    params, task, key = problems.mlp_params(), problems.one_task(), jax.random.key(1)
    loss_fn, inner = problems.mlp_loss, INNER["sgd"]
    frozen = lambda path: path.startswith("first/")  # noqa: E731
    found = metajax.maml(loss_fn, inner, 3, low_memory=low_memory, frozen=frozen)

    def loss_of_second(second, batch, rng):
        return loss_fn({**params, "second": second}, batch, rng)

    wanted = metajax.maml(loss_of_second, inner, 3)
    for name, part in found.meta_grad(params, task, key)[0].items():
        expected = wanted.meta_grad(params["second"], task, key)[0]
        expected = jax.tree.map(jnp.zeros_like, part) if name == "first" else expected
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), part, expected)
    adapted, _ = found.adapt(params, task.support, key)
    jax.tree.map(np.testing.assert_array_equal, adapted["first"], params["first"])
    with pytest.raises(ValueError, match="false for all parameters"):
        metajax.maml(loss_fn, inner, 3, trainable=frozen, frozen=frozen).adapt(
            params, task.support, key
        )
