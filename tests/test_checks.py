"""Mistakes of users are named; what only looks like a mistake works."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.algorithms import lora
from metajax.algorithms.checks import is_elementwise
from metajax.models import Transformer, TransformerConfig, classification_loss, prototype_init
from metajax.training.parallel import task_mesh

SGD = optax.sgd(0.5)
TASKS = metajax.Task(jnp.ones((4, 3)), jnp.ones((4, 3)))


def square_loss(params, batch, rng):
    """With slope w - 1 where the batch is of ones."""
    return jnp.sum((params["w"] - batch) ** 2) / 2, {}


def loop(algorithm=None, **settings):
    algorithm = algorithm or metajax.maml(square_loss, SGD, 1)
    return metajax.outer_loop(
        algorithm, optax.adam(0.1), **{"devices": jax.devices()[:1]} | settings
    )


def step(outer=None, params=None, tasks=TASKS):
    outer = outer or loop()
    return outer.step(outer.init(params or {"w": jnp.zeros(3)}, jax.random.key(0)), tasks)


@pytest.mark.parametrize(
    ("tasks", "error", "said"),
    [
        (TASKS._asdict(), TypeError, r"tasks: a dict is not .*pass metajax.Task\(\*\*tasks\)"),
        ([TASKS, TASKS], TypeError, r"tasks: a list is not .*stack them: jax.tree.map\(lambda"),
        (
            tuple(TASKS),
            TypeError,
            r"tasks: a tuple is not .*metajax.Task\(support=..., query=...\)",
        ),
        (jax.tree.map(lambda x: x[:0], TASKS), ValueError, "tasks: the batch has no tasks"),
    ],
    ids=["dict", "list", "tuple", "none"],
)
def test_what_is_no_batch_of_tasks_is_named(tasks, error, said):
    with pytest.raises(error, match=said):
        step(tasks=tasks)
    with pytest.raises(error, match=said):
        step(loop(devices=jax.devices()[:2]), tasks=tasks)
    algorithm = metajax.maml(square_loss, SGD, 1)
    with pytest.raises(error, match=said):
        metajax.evaluate(algorithm, {"w": jnp.zeros(3)}, tasks, jax.random.key(0))


@pytest.mark.parametrize("make", [metajax.maml, metajax.reptile, metajax.imaml])
def test_one_task_as_a_dict_is_named(make):
    with pytest.raises(TypeError, match=r"a dict is not a metajax\.Task"):
        make(square_loss, SGD, 1).meta_grad({"w": jnp.zeros(3)}, TASKS._asdict(), None)


@pytest.mark.parametrize("chunk_size", [1, 2, 4])
def test_numbers_in_aux_are_arrays(chunk_size):
    def loss_fn(params, batch, rng):
        return square_loss(params, batch, rng)[0], {"weight": 0.5, "seen": [3, True]}

    _, metrics = step(loop(metajax.maml(loss_fn, SGD, 1), chunk_size=chunk_size))
    assert jax.tree.map(float, metrics.query_aux) == {"weight": 0.5, "seen": [3.0, 1.0]}


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda loss: (loss, {"a": {"name": "x"}}), "returned a str in aux, at 'a/name'; return"),
        (lambda loss: (loss * jnp.ones(2), {}), r"a loss of shape \(2,\); return a scalar"),
    ],
)
def test_what_a_loss_may_not_return_is_named(returned, said):
    algorithm = metajax.maml(lambda *inputs: returned(square_loss(*inputs)[0]), SGD, 1)
    with pytest.raises(TypeError, match=said):
        step(loop(algorithm))


WITH_COUNT = {"w": jnp.zeros(3), "n": jnp.int32(2**24 + 1), "key": jax.random.key(3)}
LEAVES_ALONE = {
    "maml": metajax.maml(square_loss, SGD, 1, trainable=lambda path: path == "w"),
    "low memory": metajax.maml(
        square_loss, SGD, 6, trainable=lambda path: path == "w", low_memory=True
    ),
    "imaml": metajax.imaml(square_loss, SGD, 1, trainable=lambda path: path == "w"),
    "supervised": metajax.supervised(square_loss),
}


@pytest.mark.parametrize("place", ["chunks", "devices", "shards"])
@pytest.mark.parametrize("name", LEAVES_ALONE)
def test_leaves_that_are_no_floats_stay_as_they_are(name, place):
    where = {
        "chunks": {"chunk_size": 2},
        "devices": {"devices": jax.devices()[:2]},
        "shards": {"devices": None, "mesh": task_mesh(2, jax.devices()[:2])},
    }
    outer = loop(LEAVES_ALONE[name], **where[place])
    state, plain = outer.init(WITH_COUNT, jax.random.key(0)), loop(LEAVES_ALONE[name])
    expected = plain.init({"w": jnp.zeros(3)}, jax.random.key(0))
    for _ in range(2):
        state, metrics = outer.step(state, TASKS)
        expected, expected_metrics = plain.step(expected, TASKS)
    assert (state.meta_params["n"].dtype, int(state.meta_params["n"])) == (jnp.int32, 2**24 + 1)
    assert jax.random.key_data(state.meta_params["key"]).tolist() == [0, 3]
    np.testing.assert_array_equal(state.meta_params["w"], expected.meta_params["w"])
    assert float(metrics.grad_norm) == float(expected_metrics.grad_norm) > 0
    adapted, _ = LEAVES_ALONE[name].adapt(WITH_COUNT, TASKS.support[0], None)
    assert int(adapted["n"]) == 2**24 + 1


def test_the_gradient_of_an_integer_is_a_zero_without_a_dtype():
    task = jax.tree.map(lambda leaf: leaf[0], TASKS)
    grads, _ = LEAVES_ALONE["maml"].meta_grad(WITH_COUNT, task, None)
    assert grads["n"].dtype == jax.dtypes.float0
    np.testing.assert_array_equal(grads["w"], [-0.25] * 3)


@pytest.mark.parametrize("make", [metajax.maml, metajax.reptile, metajax.imaml])
def test_an_integer_that_the_inner_steps_would_change_is_named(make):
    algorithm = make(square_loss, SGD, 1)
    params = {"w": jnp.zeros(3), "net": {"steps": jnp.int32(2)}}
    with pytest.raises(
        TypeError, match=r"leaf 'net/steps' is int32, but inner steps .*`trainable`"
    ):
        step(loop(algorithm), params)
    with pytest.raises(TypeError, match="leaf 'net/steps' is int32"):
        algorithm.adapt(params, TASKS.support[0], None)


@pytest.mark.parametrize("low_memory", [False, True])
def test_python_numbers_are_parameters(low_memory):
    def loss_fn(params, batch, rng):
        return params["a"] ** 2 * batch.sum() / 2, {}

    algorithm = metajax.maml(loss_fn, optax.sgd(0.1), 5, low_memory=low_memory)
    adapted, _ = algorithm.adapt({"a": 1.0}, jnp.ones(5), None)
    np.testing.assert_allclose(adapted["a"], 0.5**5, rtol=1e-6)
    grads, _ = algorithm.meta_grad({"a": 1.0}, metajax.Task(jnp.ones(5), jnp.ones(5)), None)
    np.testing.assert_allclose(grads["a"], 5 * 0.5**10, rtol=1e-6)
    outer = loop(algorithm)
    state = outer.init({"a": 1.0}, jax.random.key(0))
    state, _ = outer.step(state, TASKS)
    outer.step(state, TASKS)
    assert outer.step._cache_size() == 1  # A weakly typed first state would be compiled separately.


@pytest.mark.parametrize(
    ("params", "where"),
    [
        (
            {"net": [{"activation": jax.nn.relu, "w": 1.0}]},
            "leaf 'net/0/activation' is of type custom_jvp",
        ),
        (object(), "the value is of type object"),
        ({"w": "glorot"}, "leaf 'w' is of type str"),
    ],
    ids=["function", "module", "text"],
)
def test_a_module_is_answered_with_how_to_split_it(params, where):
    said = rf"params: {where}, not an array; .*`eqx.partition\(.*`nnx.split\("
    for algorithm in (metajax.maml(square_loss, SGD, 1), metajax.meta_sgd(square_loss, 0.1, 1)):
        with pytest.raises(TypeError, match=said):
            loop(algorithm).init(params, jax.random.key(0))
    algorithm = metajax.maml(square_loss, SGD, 1)
    with pytest.raises(TypeError, match=said):
        algorithm.adapt(params, jnp.ones(3), None)
    with pytest.raises(TypeError, match=said):
        algorithm.meta_grad(params, TASKS, None)


@pytest.fixture
def strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def features(params, batch, rng):
    return jnp.tanh(batch["x"] @ params["w"])


def feature_loss(params, batch, rng):
    return jnp.mean(jnp.square(features(params, batch, rng))), {}


SETTINGS = {
    "maml": metajax.maml(feature_loss, SGD, 2),
    "low memory": metajax.maml(feature_loss, SGD, 5, low_memory=True),
    "reptile": metajax.reptile(feature_loss, SGD, 2),
    "meta-sgd": metajax.meta_sgd(feature_loss, 0.1, 2),
    "maml++": lambda n: metajax.maml_plus_plus(feature_loss, 0.1, 2, step=n, multi_step=5),
    "imaml": metajax.imaml(feature_loss, SGD, 2),
    "neumann": metajax.imaml(feature_loss, SGD, 2, solver="neumann"),
    "proto-maml": metajax.proto_maml(features, 2, SGD, 2),
    "leopard": metajax.leopard(features, 5, 2, SGD, 2, width=4, rng=jax.random.key(0)),
    "lora": metajax.maml(lora.loss(feature_loss), SGD, 2, trainable=lora.is_adapter),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SETTINGS)
def test_strict_promotion(strict, name, dtype):
    """The library's arithmetic does not mix dtypes, for example masks of integers and booleans."""
    batch = {
        "x": jnp.ones((2, 4, 3), dtype),
        "labels": jnp.array([[0, 1, 0, 1]] * 2),
        "example_mask": jnp.ones((2, 4), int),
        "class_mask": jnp.ones((2, 2), bool),
    }
    params = {"w": jnp.full((3, 5), 0.1, dtype)}
    if name == "lora":
        params = lora.init(params, rank=1, target=lambda path: True, rng=jax.random.key(0))
    outer = metajax.outer_loop(SETTINGS[name], SGD, chunk_size=1, devices=jax.devices()[:1])
    state = outer.init(params, jax.random.key(0))
    _, metrics = outer.step(state, metajax.Task(batch, batch))
    assert not metrics.skipped


def test_strict_promotion_of_a_model(strict):
    config = TransformerConfig(9, hidden_size=12, num_hidden_layers=1)
    model = Transformer(config, head="classification", pooling="mean")
    ids = jnp.ones((2, 5), int)
    batch = {"input_ids": ids, "attention_mask": ids, "token_type_ids": 0 * ids}
    batch |= {"labels": jnp.array([0, 1]), "example_mask": jnp.ones(2, bool)}

    @jax.jit
    def loss(rng):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.init(rng))
        return classification_loss(model)(prototype_init(model)(params, batch, None), batch, None)

    assert np.isfinite(loss(jax.random.key(0))[0])


def test_an_inner_adam_without_eps_root_is_named():
    tasks = metajax.Task(jnp.zeros((2, 3)).at[:, 0].set(1), jnp.ones((2, 3)))
    with pytest.warns(UserWarning, match=r"inner_optimizer: .*optax.adam\(rate, eps_root=1e-8\)"):
        _, metrics = step(loop(metajax.maml(square_loss, optax.adam(0.1), 2)), tasks=tasks)
    assert metrics.skipped
    for quiet in (
        metajax.maml(square_loss, optax.adam(0.1, eps_root=1e-8), 2),
        metajax.maml(square_loss, optax.adam(0.1), 2, first_order=True),
        metajax.maml(square_loss, optax.chain(optax.clip_by_global_norm(1.0), SGD), 2),
    ):
        assert not step(loop(quiet), tasks=tasks)[1].skipped


ADAM = optax.adam(0.1, eps_root=1e-8)
BY_ENTRY = {
    "sgd": SGD,
    "schedule": optax.sgd(optax.linear_schedule(0.5, 0.1, 5)),
    "nesterov": optax.sgd(0.1, 0.9, nesterov=True),
    "adam": ADAM,
    "global norm": optax.chain(optax.clip_by_global_norm(1.0), ADAM),
}
OTHERWISE = {
    "weight decay": optax.adamw(0.1, eps_root=1e-8),
    "norms of arrays": optax.lars(0.1),
    "root mean square of arrays": optax.chain(optax.clip_by_block_rms(1.0), SGD),
    "ratio to the parameter": optax.chain(optax.adaptive_grad_clip(0.1), SGD),
    "mask": optax.masked(SGD, lambda params: jax.tree.map(lambda _: True, params)),
    "parts": optax.partition({"all": SGD}, lambda params: jax.tree.map(lambda _: "all", params)),
    "matrices": optax.contrib.muon(0.1),
    "late weight decay": optax.adamw(
        optax.join_schedules([optax.constant_schedule(0.0), optax.constant_schedule(0.1)], [2])
    ),
    "paths": optax.chain(
        SGD,
        optax.stateless(
            lambda updates, params: jax.tree_util.tree_map_with_path(
                lambda path, leaf: leaf * (len(path) > 3), updates
            )
        ),
    ),
    "names": optax.GradientTransformation(
        lambda params: (), lambda updates, state, params=None: ({"w": -updates["w"]}, state)
    ),
}


@pytest.mark.parametrize("name", BY_ENTRY | OTHERWISE)
def test_which_optimizers_do_not_depend_on_the_layout(name):
    assert is_elementwise((BY_ENTRY | OTHERWISE)[name], 3) is (name in BY_ENTRY)


def test_traced_rates_do_not_pass():
    seen = []
    jax.jit(lambda rate: seen.append(is_elementwise(optax.sgd(rate), 1)) or rate)(0.5)
    assert seen == [False]
