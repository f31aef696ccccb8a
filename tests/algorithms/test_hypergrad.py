"""Every way to the meta-gradient gives that of plain reverse over reverse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import metajax
from metajax.algorithms.hypergrad import forward_over_reverse, reverse
from metajax.algorithms.scans import checkpointed_scan
from metajax.platforms import compiling_for
from metajax.training.flops import count_flops
from metajax.training.outer import map_tasks, task_keys

# Some measure the memory of programs, which are those of users only if they are optimized.
pytestmark = pytest.mark.usefixtures("optimized", "x64")

OPTIMIZERS = {
    "sgd": optax.sgd(0.05),
    "momentum": optax.sgd(0.05, momentum=0.9),
    "adam": optax.adam(0.05, eps_root=1e-8),
}


# By platform and low_memory: reverse, forward over reverse, reverse that stores products only.
REVERSE, FORWARD, PRODUCTS = ("cpu", False), ("cpu", True), ("gpu", False)


@pytest.mark.parametrize("engine", [FORWARD, PRODUCTS])
@pytest.mark.parametrize(
    ("name", "num_steps"),
    [("sgd", 0), ("adam", 7), ("momentum", 9), pytest.param("sgd", 20, marks=pytest.mark.slow)],
)
def test_engines_are_exact(name, num_steps, engine):
    task, key = problems.one_task(), jax.random.key(0)
    params = problems.mlp_params()

    def run(platform, low_memory):
        algorithm = metajax.maml(
            problems.mlp_loss, OPTIMIZERS[name], num_steps, low_memory=low_memory
        )
        with compiling_for(platform):
            return jax.jit(algorithm.meta_grad)(params, task, key)

    expected, found = run(*REVERSE), run(*engine)
    assert problems.relative_gap(found[0], expected[0]) < 1e-12
    np.testing.assert_allclose(found[1].support_loss, expected[1].support_loss, rtol=1e-12)
    np.testing.assert_allclose(found[1].query_loss, expected[1].query_loss, rtol=1e-12)


def test_a_loss_may_have_an_array_in_its_code():
    """Nothing differentiates a constant of the inner step."""
    task, params = problems.one_task(), problems.mlp_params()
    weights = np.linspace(0.5, 2.0, 3)

    def loss_fn(params, batch, rng):
        loss, aux = problems.mlp_loss(params, batch, rng)
        return loss + weights @ weights[::-1] * jnp.sin(jnp.asarray(weights)).sum() * loss**2, aux

    def run(platform, low_memory):
        algorithm = metajax.maml(loss_fn, optax.sgd(0.05), 3, low_memory=low_memory)
        with compiling_for(platform):
            return jax.jit(algorithm.meta_grad)(params, task, jax.random.key(0))[0]

    for engine in (FORWARD, PRODUCTS):
        assert problems.relative_gap(run(*engine), run(*REVERSE)) < 1e-12


@pytest.mark.parametrize("every", [3, 4])
def test_a_replay_is_a_scan(every):
    """Of any number of steps; all that it gives, and what is closed over, is differentiated."""

    def last_and_sum(run, start, scale):
        def step(state, index):
            x, count = state
            x = jnp.sin(scale * x + index) + count * x
            return (x, count + 1), x * jnp.cos(0.5 * index)

        (x, count), seen = run(step, (start, jnp.int32(0)))
        return x + 3 * (seen @ seen), (seen, count)

    def replayed(length):
        return lambda step, state: checkpointed_scan(step, state, length, every)

    def scanned(length):
        return lambda step, state: jax.lax.scan(step, state, jnp.arange(length))

    def grads(make):
        each = jax.grad(last_and_sum, argnums=(1, 2), has_aux=True)
        inputs = jnp.float64(0.3), jnp.float64(0.7)
        return jax.jit(lambda *x: [each(make(length), *x) for length in range(1, 10)])(*inputs)

    for found, expected in zip(grads(replayed), grads(scanned)):
        assert problems.relative_gap(found, expected) < 1e-12


@pytest.mark.parametrize("low_memory", [False, True])
def test_frozen_parameters_get_their_meta_gradient(low_memory):
    """Against an inner loop written out, with the frozen part's mixed derivatives."""
    params, task = problems.mlp_params(), problems.one_task()
    algorithm = metajax.maml(
        problems.mlp_loss,
        optax.sgd(0.1),
        3,
        trainable=lambda path: path.startswith("second"),
        low_memory=low_memory,
    )

    def written_out(params):
        second = params["second"]
        for _ in range(3):
            loss = lambda s: problems.mlp_loss({**params, "second": s}, task.support, None)[0]  # noqa: E731
            second = jax.tree.map(lambda p, g: p - 0.1 * g, second, jax.grad(loss)(second))
        return problems.mlp_loss({**params, "second": second}, task.query, None)[0]

    found, _ = algorithm.meta_grad(params, task, None)
    assert problems.relative_gap(found, jax.grad(written_out)(params)) < 1e-12
    adapted, _ = algorithm.adapt(params, task.support, None)
    assert problems.relative_gap(adapted["first"], params["first"]) == 0


@pytest.mark.parametrize("first_order_until", [0, 2])
def test_what_is_seen_on_the_way_is_differentiated_too(first_order_until):
    """The query losses after each step, weighted: MAML++'s."""
    params, task = problems.mlp_params(), problems.one_task()

    def grads(low_memory):
        annealing = {"step": 1, "multi_step": 3, "first_order_until": first_order_until}
        algorithm = metajax.maml_plus_plus(
            problems.mlp_loss, 0.05, 6, low_memory=low_memory, **annealing
        )
        return jax.jit(algorithm.meta_grad)(algorithm.init(params), task, jax.random.key(0))[0]

    assert problems.relative_gap(grads(True), grads(False)) < 1e-12


def test_low_memory_under_shard_map():
    tasks, params = problems.mlp_tasks(), problems.mlp_params()
    algorithm = metajax.maml(problems.mlp_loss, optax.sgd(0.1), 6, low_memory=True)

    def mean_grad(params, tasks):
        # Or the gradients' sum over the devices would come with each.
        params = jax.lax.pcast(params, "d", to="varying")
        grads = jax.vmap(lambda task: algorithm.meta_grad(params, task, None)[0])(tasks)
        return jax.tree.map(lambda leaf: jax.lax.pmean(leaf.mean(0), "d"), grads)

    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("d")
    sharded = jax.shard_map(mean_grad, mesh=mesh, in_specs=(whole, split), out_specs=whole)
    found = jax.jit(sharded)(params, tasks)
    plain = metajax.maml(problems.mlp_loss, optax.sgd(0.1), 6)
    each = jax.vmap(lambda task: plain.meta_grad(params, task, None)[0])(tasks)
    assert problems.relative_gap(found, jax.tree.map(lambda leaf: leaf.mean(0), each)) < 1e-12


def test_batches_are_differentiated_too():
    """A batch may come from the meta-parameters: features computed once, say."""

    def loss(adapted, frozen, batch, rng):
        return jnp.sum((adapted * batch["x"] - frozen) ** 3) + batch["count"].sum()

    def outer(engine):
        def run(x, adapted, frozen):
            batch = {"x": x, "count": jnp.arange(3)}
            _, grads = engine(loss)(adapted, frozen, batch, jax.random.key(0))
            return jnp.sum(jnp.sin(grads))

        return jax.grad(run, argnums=(0, 1, 2))(jnp.ones(3), jnp.arange(3.0), jnp.full(3, 0.5))

    expected = outer(reverse)
    assert all(np.abs(leaf).max() > 0.1 for leaf in expected)
    assert problems.relative_gap(outer(forward_over_reverse), expected) < 1e-14
    products_only = functools.partial(reverse, products_only=True)
    assert problems.relative_gap(outer(products_only), expected) < 1e-14


def deep_loss(params, batch, rng):
    for _ in range(6):
        batch = jnp.tanh(batch @ params)
    return jnp.mean(batch**2), {}


def megabytes(algorithm, platform):
    params, batch = algorithm.init(jnp.zeros((64, 64))), jnp.ones((2000, 64))
    with compiling_for(platform):
        lowered = jax.jit(algorithm.meta_grad).lower(params, metajax.Task(batch, batch), None)
    return lowered.compile().memory_analysis().temp_size_in_bytes / 1e6


def maml_of_steps(num_steps, low_memory):
    return metajax.maml(deep_loss, optax.sgd(0.1), num_steps, low_memory=low_memory)


def maml_plus_plus_of_steps(num_steps, low_memory):
    """In first order, with the loss on the query set after each step."""
    annealing = {"step": 0, "multi_step": 9, "first_order_until": 9}
    return metajax.maml_plus_plus(deep_loss, 0.1, num_steps, low_memory=low_memory, **annealing)


def growth(make, platform, low_memory):
    """The memory that six more steps take."""
    return megabytes(make(9, low_memory), platform) - megabytes(make(3, low_memory), platform)


@pytest.mark.parametrize("make", [maml_of_steps, maml_plus_plus_of_steps])
def test_memory_of_a_step(make):
    # A copy of the parameters is 0.033 MB, the result of a product 1.024 MB.
    assert growth(make, *REVERSE) > 6 * 6
    assert growth(make, *FORWARD) < 6 * 0.033 / 2


def test_low_memory_needs_less_for_one_step_too():
    # The activations of a step's gradient, forward and backward, and their tangents.
    assert megabytes(maml_of_steps(3, low_memory=True), "cpu") < 16 * 1.024


def test_on_an_accelerator_a_step_stores_the_results_of_its_products_alone():
    """Six of the forward pass, and five of the backward pass, towards the inputs."""
    assert 6 * 11 <= growth(maml_of_steps, *PRODUCTS) / 1.024 < 6 * 12
    assert growth(maml_of_steps, *REVERSE) / 1.024 > 6 * 20


def test_unrolled_steps_store_products_alone_too():
    def last(num_steps):
        return metajax.maml(deep_loss, optax.sgd(0.1), num_steps, unroll=True)

    looped = megabytes(maml_of_steps(6, low_memory=False), "gpu")
    assert megabytes(last(6), "gpu") < 1.3 * looped


def test_rules_that_are_not_derivatives_are_differentiated_as_written():
    """A gradient that is clipped on its way back is not the gradient of a function."""

    @jax.custom_vjp
    def clipped(x):
        return x

    clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.tanh(5 * g) / 5,))

    def loss_fn(params, batch, rng):
        return problems.mlp_loss(jax.tree.map(clipped, params), batch, rng)

    def meta_grad(platform):
        algorithm = metajax.maml(loss_fn, optax.sgd(0.1), 2)
        with compiling_for(platform):
            return jax.jit(algorithm.meta_grad)(problems.mlp_params(), problems.one_task(), None)[0]

    assert problems.relative_gap(meta_grad("gpu"), meta_grad("cpu")) < 1e-12


def test_a_loss_may_close_over_what_is_differentiated():
    task, params = problems.one_task(), problems.mlp_params()

    def meta_loss(decay):
        def loss_fn(params, batch, rng):
            loss, aux = problems.mlp_loss(params, batch, rng)
            return loss + decay * optax.tree.norm(params, squared=True), aux

        return metajax.maml(loss_fn, optax.sgd(0.1), 2).meta_grad(params, task, None)[1].query_loss

    with compiling_for("gpu"):
        found = jax.jit(jax.grad(meta_loss))(0.1)
    assert abs(found - jax.grad(meta_loss)(0.1)) < 1e-12 * abs(found)


def test_no_product_is_computed_twice_on_an_accelerator():
    params, batch = jnp.zeros((64, 64)), jnp.ones((2000, 64))

    def flops(platform, low_memory):
        meta_grad = maml_of_steps(4, low_memory).meta_grad
        with compiling_for(platform):
            return count_flops(meta_grad, params, metajax.Task(batch, batch), None)

    assert flops(*PRODUCTS) == flops(*REVERSE) < flops(*FORWARD)


@pytest.mark.parametrize(("low_memory", "chunk_size"), [(False, 8), (True, 1), (True, 2)])
def test_chunks_and_engines_together(low_memory, chunk_size):
    tasks, params = problems.mlp_tasks(), problems.mlp_params()
    keys = task_keys(jax.random.key(1), 0, 8)

    def run(chunk_size, low_memory):
        algorithm = metajax.maml(problems.mlp_loss, optax.sgd(0.1), 3, low_memory=low_memory)
        return jax.jit(
            lambda params: map_tasks(
                lambda task, key: algorithm.meta_grad(params, task, key), tasks, keys, chunk_size
            )[0]
        )(params)

    assert problems.relative_gap(run(chunk_size, low_memory), run(1, False)) < 1e-12
