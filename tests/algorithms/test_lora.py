"""Adapters add a product of two factors to a kernel, and the inner loop can move them alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import metajax
from metajax.algorithms import lora


@pytest.fixture
def params(x64):
    return lora.init(
        problems.mlp_params(),
        rank=2,
        target=lambda path: path.endswith("kernel"),
        rng=jax.random.key(0),
    )


def test_fresh_adapters_change_nothing(params):
    chex.assert_trees_all_equal(lora.merge(params), problems.mlp_params())
    assert params["adapters"]["first"]["bias"] is None


def test_a_merge_adds_the_product(params):
    factors = params["adapters"]["first"]["kernel"]
    factors["up"] = jnp.ones_like(factors["up"])
    found = lora.merge(params)["first"]["kernel"]
    expected = np.asarray(params["base"]["first"]["kernel"]) + np.asarray(
        factors["down"]
    ) @ np.ones(factors["up"].shape)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_stacked_layers_have_an_adapter_each(x64):
    kernel = jnp.ones((3, 4, 5), jnp.float32)
    params = lora.init({"kernel": kernel}, rank=2, target=lambda _: True, rng=jax.random.key(0))
    factors = params["adapters"]["kernel"]
    assert (factors["down"].shape, factors["up"].shape) == ((3, 4, 2), (3, 2, 5))
    assert factors["down"].dtype == factors["up"].dtype == jnp.float32


def test_first_factors_are_drawn_each_from_a_key_of_its_own_at_the_scale_given(x64):
    plain = {"a": jnp.ones((2, 400, 7)), "b": jnp.ones((2, 400, 7)), "c": jnp.ones((900, 3))}

    def downs(seed=0, **settings):
        key = jax.random.key(seed)
        made = lora.init(plain, rank=5, target=lambda _: True, rng=key, **settings)
        assert made["base"] is plain
        return {name: np.asarray(made["adapters"][name]["down"]) for name in plain}

    drawn = downs()
    for name, size in {"a": 400, "b": 400, "c": 900}.items():
        np.testing.assert_allclose(drawn[name].std(), size**-0.5, rtol=0.05)
        np.testing.assert_allclose(downs(scale=3.0)[name], 3 * drawn[name], rtol=1e-12)
        assert np.abs(np.corrcoef(drawn[name].ravel(), downs(1)[name].ravel())[0, 1]) < 0.1
    assert np.abs(np.corrcoef(drawn["a"].ravel(), drawn["b"].ravel())[0, 1]) < 0.1


def moved(params):
    """With adapters that change something."""
    ups = lambda path, leaf: leaf + 0.3 if path[-1].key == "up" else leaf  # noqa: E731
    return {**params, "adapters": jax.tree_util.tree_map_with_path(ups, params["adapters"])}


def scaled_by_hidden(params, support, rng):
    """A start that looks at a kernel and the key, and adds a parameter."""
    hidden = jnp.tanh(support[0] @ params["first"]["kernel"]).mean()
    return {**params, "scale": hidden * (1 if rng is None else problems.noise(rng, hidden.dtype))}


def scaled_loss(params, batch, rng):
    loss, aux = problems.mlp_loss(params, batch, rng)
    return loss * (1 + params["scale"]) ** 2, aux


def test_a_start_sees_the_kernels_with_their_adapters(params):
    """Without inner steps all is as of the merged parameters, the gradients too."""
    params, task, key = moved(params), problems.one_task(), jax.random.key(1)
    algorithm = metajax.maml(
        lora.loss(scaled_loss), optax.sgd(0.1), 0, init_fn=lora.init_fn(scaled_by_hidden)
    )
    grads, info = jax.jit(algorithm.meta_grad)(params, task, key)
    plain = metajax.maml(scaled_loss, optax.sgd(0.1), 0, init_fn=scaled_by_hidden)
    expected, expected_info = jax.jit(plain.meta_grad)(lora.merge(params), task, key)
    assert problems.relative_gap((grads["base"], info), (expected, expected_info)) < 1e-12
    factors = params["adapters"]["first"]["kernel"]
    product = expected["first"]["kernel"] @ factors["up"].T
    np.testing.assert_allclose(grads["adapters"]["first"]["kernel"]["down"], product, rtol=1e-10)
    adapted, _ = jax.jit(algorithm.adapt)(params, task.support, key)
    chex.assert_trees_all_equal(
        {**adapted["base"], "scale": None}, {**params["base"], "scale": None}
    )


def test_a_reduction_is_of_the_base_alone(x64):
    """Of a bias whose last two numbers the loss does not see."""

    def loss_fn(params, batch, rng):
        found = batch[0] @ params["kernel"] + params["bias"][:2]
        return jnp.mean((found - batch[1]) ** 2), {}

    def two_numbers(params, task):
        few = {**params, "bias": params["bias"][:2]}
        undo = lambda few: {**few, "bias": params["bias"].at[:2].set(few["bias"])}  # noqa: E731
        return few, metajax.Task(*(batch and (2 * batch[0], batch[1]) for batch in task)), undo

    draw = np.random.default_rng(0)
    task = metajax.Task(*(jnp.asarray(draw.normal(size=(2, 5, 2))) for _ in range(2)))
    task = metajax.Task(*map(tuple, task))
    params = {"kernel": jnp.asarray(draw.normal(size=(2, 2))), "bias": jnp.arange(4.0)}
    key, target = jax.random.key(0), lambda path: path == "kernel"
    params = moved(lora.init(params, rank=1, target=target, rng=key))
    plain, reduced = (
        metajax.maml(lora.loss(loss_fn), optax.sgd(0.1), 2, reparametrize=reduce)
        for reduce in (None, lora.reparametrize(two_numbers))
    )
    doubled = metajax.Task(*((2 * x, y) for x, y in task))

    def run(algorithm, task):
        meta_grad, adapt = algorithm.meta_grad, algorithm.adapt
        both = lambda params: (meta_grad(params, task, None), adapt(params, task.support, None))  # noqa: E731
        return jax.jit(both)(params)

    assert problems.relative_gap(run(reduced, task), run(plain, doubled)) < 1e-12


@pytest.mark.parametrize("low_memory", [False, True])
def test_the_inner_loop_moves_adapters_and_the_outer_everything(params, low_memory):
    algorithm = metajax.maml(
        lora.loss(problems.mlp_loss),
        optax.sgd(0.1),
        3,
        trainable=lora.is_adapter,
        low_memory=low_memory,
    )
    task = problems.one_task()
    adapted, _ = jax.jit(algorithm.adapt)(params, task.support, None)
    chex.assert_trees_all_equal(adapted["base"], params["base"])
    assert np.abs(adapted["adapters"]["first"]["kernel"]["up"]).max() > 0
    meta_grad = jax.jit(lambda params: algorithm.meta_grad(params, task, None))
    grads, _ = meta_grad(params)
    assert np.abs(grads["base"]["first"]["kernel"]).max() > 0
    loss = lambda p: meta_grad(p)[1].query_loss  # noqa: E731
    direction = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(1), leaf.shape), params)
    at = lambda size: loss(optax.tree.add_scale(params, size, direction))  # noqa: E731
    slope = optax.tree.vdot(grads, direction)
    np.testing.assert_allclose((at(1e-5) - at(-1e-5)) / 2e-5, slope, rtol=1e-6)


@pytest.mark.parametrize(("rank", "target"), [(0, "kernel"), (2, "bias"), (2, "nothing")])
def test_nonsense_is_refused(x64, rank, target):
    with pytest.raises(ValueError, match="give a rank of at least 1 and kernels"):
        lora.init(
            problems.mlp_params(),
            rank=rank,
            target=lambda path: path.endswith(target),
            rng=jax.random.key(0),
        )
