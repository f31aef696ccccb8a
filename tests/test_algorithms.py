"""One table of all algorithms, one set of contract tests: a new algorithm is a new row."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import metajax
from metajax import lora
from metajax.adaptation import adaptation
from metajax.tree import is_norm_or_bias
from metajax.types import MetaAlgorithm, Params

SGD = optax.sgd(0.05)
LOSS = problems.mlp_loss
CLASSES = 3


class Row(NamedTuple):
    """An algorithm, whether its tasks are labelled batches (dicts with masks), and the params."""

    algorithm: MetaAlgorithm
    labelled: bool = False
    params: Callable[[], Params] = problems.mlp_params


def features(params, batch, rng):
    return jnp.tanh(batch["x"] @ params["first"]["kernel"] + params["first"]["bias"])


def head(path):
    return path.startswith("second")


def with_adapters():
    key, chosen = jax.random.key(4), lambda path: path == "first/kernel"
    return lora.init(problems.mlp_params(), rank=1, chosen=chosen, rng=key)


LEOPARD = {"width": 4, "rng": jax.random.key(5)}
ANNEALED = {"step": 3, "multi_step": 9, "first_order_until": 2}
TABLE = {
    "maml": Row(metajax.maml(LOSS, SGD, 3)),
    "first-order maml": Row(metajax.maml(LOSS, SGD, 3, first_order=True)),
    "low-memory maml": Row(metajax.maml(LOSS, SGD, 4, low_memory=True)),
    "maml with adam": Row(metajax.maml(LOSS, optax.adam(0.05, eps_root=1e-8), 3)),
    "anil": Row(metajax.anil(LOSS, SGD, 3, head=head)),
    "low-memory anil": Row(metajax.anil(LOSS, SGD, 3, head=head, low_memory=True)),
    "maml of norms and biases": Row(metajax.maml(LOSS, SGD, 3, adapted=is_norm_or_bias)),
    "maml of lora adapters": Row(
        metajax.maml(lora.loss(LOSS), SGD, 3, adapted=lora.is_adapter), params=with_adapters
    ),
    "low-memory maml of lora adapters": Row(
        metajax.maml(lora.loss(LOSS), SGD, 3, adapted=lora.is_adapter, low_memory=True),
        params=with_adapters,
    ),
    "reptile": Row(metajax.reptile(LOSS, SGD, 3)),
    "meta-sgd": Row(metajax.meta_sgd(LOSS, 0.05, 3)),
    "low-memory meta-sgd": Row(metajax.meta_sgd(LOSS, 0.05, 3, low_memory=True)),
    "maml++": Row(metajax.maml_plus_plus(LOSS, 0.05, 3)),
    "annealed maml++": Row(metajax.maml_plus_plus(LOSS, 0.05, 3, **ANNEALED)),
    "low-memory annealed maml++": Row(
        metajax.maml_plus_plus(LOSS, 0.05, 3, low_memory=True, **ANNEALED)
    ),
    "imaml": Row(metajax.imaml(LOSS, SGD, 3)),
    "imaml by neumann": Row(metajax.imaml(LOSS, SGD, 3, strength=50.0, solver="neumann")),
    "imaml of a part": Row(metajax.imaml(LOSS, SGD, 3, adapted=head)),
    "protonet": Row(metajax.protonet(features, CLASSES), labelled=True),
    "proto-maml": Row(metajax.proto_maml(features, CLASSES, SGD, 3), labelled=True),
    "low-memory proto-maml": Row(
        metajax.proto_maml(features, CLASSES, SGD, 3, low_memory=True), labelled=True
    ),
    "leopard": Row(metajax.leopard(features, 4, CLASSES, SGD, 3, **LEOPARD), labelled=True),
    "low-memory leopard": Row(
        metajax.leopard(features, 4, CLASSES, SGD, 3, low_memory=True, **LEOPARD), labelled=True
    ),
    "supervised": Row(metajax.supervised(LOSS)),
}
# These look at the batches but not at the keys.
DETERMINISTIC = {name for name, row in TABLE.items() if row.labelled}


def _row(name):
    """With its own group: a worker compiles an algorithm once for all tests of it."""
    marks = [pytest.mark.xdist_group(name)]
    if name in TESTED_ELSEWHERE:
        marks.append(pytest.mark.slow)
    return pytest.param(name, marks=marks)


# That saving memory changes nothing: test_hypergrad.py.
TESTED_ELSEWHERE = {
    "low-memory maml",
    "low-memory anil",
    "low-memory maml of lora adapters",
    "low-memory annealed maml++",
}


@pytest.fixture(params=map(_row, TABLE))
def name(request):
    return request.param


def labelled_tasks(num_tasks=4, seed=0):
    """Of 2 or 3 classes, padded to 3 of them and to 9 examples."""
    rng = np.random.default_rng(seed)

    def batch(ways):
        labels = np.repeat(np.arange(CLASSES), 3)
        return {
            "x": rng.normal(size=(9, 2)) + labels[:, None],
            "labels": labels * (labels < ways),
            "example_mask": (labels < ways) * 1.0,
            "class_mask": (np.arange(CLASSES) < ways) * 1.0,
        }

    tasks = [metajax.Task(batch(2 + t % 2), batch(2 + t % 2)) for t in range(num_tasks)]
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *tasks)


def setting(name, num_tasks=4):
    algorithm, labelled, params = TABLE[name]
    tasks = labelled_tasks(num_tasks) if labelled else problems.mlp_tasks(num_tasks)
    return algorithm, algorithm.init(params()), tasks


@functools.cache
def compiled(name):
    traces = []

    def meta_grad(meta_params, task, key):
        traces.append(name)
        assert len(traces) == 1, "traced again"
        return TABLE[name].algorithm.meta_grad(meta_params, task, key)

    return jax.jit(meta_grad)


def test_gradients_have_the_structure_of_the_meta_parameters(x64, name):
    algorithm, meta_params, tasks = setting(name)
    task = problems.nth(tasks, 0)
    grads, info = compiled(name)(meta_params, task, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, meta_params)
    chex.assert_tree_all_finite((grads, info))
    assert info.query_loss.shape == ()
    assert info.support_loss.ndim == 1
    adapted, adapt_info = jax.jit(algorithm.adapt)(meta_params, task.support, jax.random.key(0))
    assert adapt_info.support_loss.shape == info.support_loss.shape
    chex.assert_tree_all_finite(adapted)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads)) > 0


def test_vmap_is_a_loop(x64, name):
    algorithm, meta_params, tasks = setting(name)
    keys = jax.random.split(jax.random.key(1), 4)
    together = jax.jit(jax.vmap(algorithm.meta_grad, (None, 0, 0)))(meta_params, tasks, keys)
    for t in range(4):
        alone = compiled(name)(meta_params, problems.nth(tasks, t), keys[t])
        for one, many in zip(alone, problems.nth(together, t)):
            assert problems.relative_gap(many, one) < 1e-12


def test_it_is_traced_once_and_a_key_decides(x64, name):
    _, meta_params, tasks = setting(name)
    run = compiled(name)  # By all of these tests together, of whatever tasks and keys.
    first, again, other = (
        run(meta_params, problems.nth(tasks, 0), jax.random.key(seed)) for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(first, again)
    same = problems.relative_gap(first[0], other[0]) == 0
    assert same == (name in DETERMINISTIC)
    run(meta_params, problems.nth(tasks, 1), jax.random.key(0))


def test_an_outer_step_lowers_the_query_loss(x64, name):
    algorithm, _, tasks = setting(name)
    outer = metajax.outer_loop(algorithm, optax.adam(1e-2))
    state, losses = outer.init(TABLE[name].params(), jax.random.key(0)), []
    for _ in range(15):
        state, metrics = outer.step(state, tasks)
        losses.append(float(metrics.query_loss))
    assert np.mean(losses[-3:]) < losses[0]


def test_padding_is_ignored(x64, name):
    algorithm, meta_params, tasks = setting(name)
    small, key = problems.nth(tasks, 0), jax.random.key(0)
    expected = compiled(name)(meta_params, small, key)
    if TABLE[name].labelled:
        assert small.support["class_mask"].sum() == 2
        found = compiled(name)(meta_params, metajax.Task(*map(spoil, small)), key)
    else:
        found = jax.jit(algorithm.meta_grad)(meta_params, metajax.Task(*map(pad, small)), key)
    chex.assert_trees_all_close(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("constructor", ["proto_maml", "leopard"])
def test_classes_that_a_task_lacks_are_ignored(x64, constructor):
    """A task of two classes is the same whether or not there is room for a third."""

    def meta_grad(classes, task):
        if constructor == "proto_maml":
            algorithm = metajax.proto_maml(features, classes, SGD, 2)
        else:
            algorithm = metajax.leopard(features, 4, classes, SGD, 2, **LEOPARD)
        return algorithm.meta_grad(algorithm.init(problems.mlp_params()), task, None)

    small = problems.nth(labelled_tasks(), 0)
    bare = metajax.Task(*({k: v for k, v in b.items() if k != "class_mask"} for b in small))
    grads, info = meta_grad(CLASSES, small)
    expected, expected_info = meta_grad(2, bare)
    assert problems.relative_gap(grads, expected) < 1e-12
    np.testing.assert_allclose(info.query_loss, expected_info.query_loss, rtol=1e-12)


def test_a_nan_anywhere_is_a_gap():
    tree = {"a": np.ones(2), "b": np.ones(2)}
    assert np.isnan(problems.relative_gap({**tree, "b": np.array([1, np.nan])}, tree))


def spoil(batch):
    """Other examples where there are none."""
    gone = batch["example_mask"][:, None] == 0
    return {**batch, "x": jnp.where(gone, 7.0, batch["x"])}


def pad(batch):
    """Two examples more that do not count."""
    x, y = (jnp.pad(leaf, ((0, 2), (0, 0)), constant_values=7.0) for leaf in batch)
    return x, y, jnp.ones(len(x)).at[-2:].set(0)


# Closed forms, on quadratics: the gradient is A (p - c) for support and Q (p - g) for query.
RATE = 0.05


@pytest.fixture
def quadratic():
    task = problems.quadratic_task()
    (a, centre), (q, goal) = jax.device_get(task)
    return task, a, centre, q, goal, np.array([0.3, -1.0, 2.0])


def test_reptile_on_a_quadratic(x64, quadratic):
    task, a, centre, _, _, params = quadratic
    algorithm = metajax.reptile(problems.quadratic, optax.sgd(RATE), 4)
    grads, _ = algorithm.meta_grad(jnp.asarray(params), task, None)
    shrink = np.linalg.matrix_power(np.eye(3) - RATE * a, 4)
    np.testing.assert_allclose(grads, params - (centre + shrink @ (params - centre)), rtol=1e-12)


@pytest.mark.parametrize("low_memory", [False, True])
def test_meta_sgd_on_a_quadratic(x64, quadratic, low_memory):
    """After one step p - r * g: the rates' gradient is -g * Q (p - r * g - goal)."""
    task, a, centre, q, goal, params = quadratic
    algorithm = metajax.meta_sgd(problems.quadratic, RATE, 1, low_memory=low_memory)
    rates = np.array([0.1, 0.2, -0.3])
    meta_params = {"params": jnp.asarray(params), "rates": jnp.asarray(rates)}
    grads, _ = algorithm.meta_grad(meta_params, task, None)
    slope = a @ (params - centre)
    at_adapted = q @ (params - rates * slope - goal)
    np.testing.assert_allclose(grads["rates"], -slope * at_adapted, rtol=1e-12)
    expected = at_adapted - a @ (rates * at_adapted)
    np.testing.assert_allclose(grads["params"], expected, rtol=1e-12)


def test_maml_plus_plus_has_a_rate_for_each_step(x64, quadratic):
    task, a, centre, q, goal, params = quadratic
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


def test_maml_plus_plus_takes_no_more_steps_than_it_has_rates_for(x64, quadratic):
    task, a, centre, _, _, params = quadratic
    of_steps = functools.partial(metajax.maml_plus_plus, problems.quadratic, RATE)
    meta_params = of_steps(2).init(jnp.asarray(params)) | {"rates": jnp.array([0.1, 0.3])}
    adapted, _ = of_steps(1).adapt(meta_params, task.support, None)
    np.testing.assert_allclose(adapted, params - 0.1 * a @ (params - centre), rtol=1e-12)
    for use, given in ((of_steps(3).adapt, task.support), (of_steps(3).meta_grad, task)):
        with pytest.raises(ValueError, match="num_steps is 3, but rates were learned for 2"):
            use(meta_params, given, None)


@pytest.mark.parametrize(("solver", "strength"), [("cg", 0.5), ("cg", 3.0), ("neumann", 30.0)])
def test_imaml_on_a_quadratic(x64, quadratic, solver, strength):
    task, a, centre, q, goal, params = quadratic
    algorithm = metajax.imaml(
        problems.quadratic,
        optax.sgd(1 / (strength + 5)),
        500,
        strength=strength,
        solver=solver,
        solver_steps=40,
    )
    grads, _ = algorithm.meta_grad(jnp.asarray(params), task, None)
    inverse = np.linalg.inv(np.eye(3) + a / strength)
    adapted = inverse @ (params + a @ centre / strength)
    np.testing.assert_allclose(grads, inverse @ q @ (adapted - goal), rtol=1e-9)


def test_imaml_shrinks_by_lambda_over_one_plus_lambda(x64):
    """Where the Hessian is the identity."""
    strength = 0.7
    loss = lambda params, batch, rng: (jnp.sum((params - batch) ** 2) / 2, {})  # noqa: E731
    algorithm = metajax.imaml(loss, optax.sgd(0.4), 300, strength=strength)
    task = metajax.Task(support=jnp.array([2.0]), query=jnp.array([-1.0]))
    grads, _ = algorithm.meta_grad(jnp.zeros(1), task, None)
    adapted = 2.0 / (1 + strength)
    np.testing.assert_allclose(grads, strength / (1 + strength) * (adapted + 1), rtol=1e-10)


def test_imaml_refuses_nonsense():
    with pytest.raises(ValueError, match="strength is 0"):
        metajax.imaml(LOSS, SGD, 1, strength=0)
    with pytest.raises(ValueError, match="solver_steps is 0: give 1"):
        metajax.imaml(LOSS, SGD, 1, solver_steps=0)
    with pytest.raises(ValueError, match="num_steps is 0 and"):
        metajax.imaml(LOSS, SGD, 0)
    with pytest.raises(ValueError, match="solver is 'lu': choose"):
        metajax.imaml(LOSS, SGD, 1, solver="lu")


def test_protonet_classifies_by_distance(x64):
    algorithm, params, tasks = setting("protonet")
    task = problems.nth(tasks, 1)
    _, info = algorithm.meta_grad(params, task, None)
    support, query = (np.asarray(features(params, batch, None)) for batch in task)
    means = np.stack([support[task.support["labels"] == c].mean(0) for c in range(3)])
    distances = ((query[:, None] - means) ** 2).sum(-1) / 2
    logs = -distances - np.log(np.exp(-distances).sum(1, keepdims=True))
    labels = np.asarray(task.query["labels"])
    np.testing.assert_allclose(info.query_loss, -logs[np.arange(9), labels].mean(), rtol=1e-12)
    share = np.mean(distances.argmin(1) == labels)
    np.testing.assert_allclose(info.query_aux["accuracy"], share, rtol=1e-12)


def test_anil_leaves_the_body_alone(x64):
    algorithm, params, tasks = setting("anil")
    adapted, _ = algorithm.adapt(params, problems.nth(tasks, 0).support, None)
    chex.assert_trees_all_equal(adapted["first"], params["first"])
    assert not np.array_equal(adapted["second"]["kernel"], params["second"]["kernel"])


@pytest.mark.parametrize(("step", "weights"), [(0, [0.5, 0.5]), (3, [0.35, 0.65]), (10, [0, 1])])
def test_maml_plus_plus_anneals_the_losses_of_early_steps(x64, quadratic, step, weights):
    task, a, centre, q, goal, params = quadratic
    algorithm = metajax.maml_plus_plus(problems.quadratic, RATE, 2, step=step, multi_step=10)
    grads, info = algorithm.meta_grad(algorithm.init(jnp.asarray(params)), task, None)
    shrink = np.eye(3) - RATE * a
    points = [centre + np.linalg.matrix_power(shrink, k) @ (params - centre) for k in (1, 2)]
    expected = sum(
        weight * np.linalg.matrix_power(shrink, k) @ q @ (point - goal)
        for weight, point, k in zip(weights, points, (1, 2))
    )
    np.testing.assert_allclose(grads["params"], expected, rtol=1e-12)
    last = (points[1] - goal) @ q @ (points[1] - goal) / 2
    np.testing.assert_allclose(info.query_loss, last, rtol=1e-12)


def test_maml_plus_plus_begins_in_first_order(x64):
    params, task = problems.mlp_params(), problems.one_task()
    algorithm = functools.partial(metajax.maml_plus_plus, LOSS, 0.05, 2)

    @jax.jit
    def grads_at(step):
        chosen = algorithm(step=step, first_order_until=4, multi_step=2)
        return chosen.meta_grad(chosen.init(params), task, None)[0]

    def expected(first_order=False, **weights):
        learner = adaptation(LOSS, 2, first_order=first_order)
        loss = lambda p: learner.query_loss(optax.sgd(0.05), p, task, None, **weights)[0]  # noqa: E731
        return jax.grad(loss)(params)

    for step, settings in {
        1: {"first_order": True, "step_weights": jnp.array([0.25, 0.75])},
        3: {"first_order": True},
        4: {},
    }.items():
        gap = problems.relative_gap(grads_at(step)["params"], expected(**settings))
        assert gap < 1e-12


def test_an_outer_loop_follows_a_schedule(x64):
    tasks = problems.mlp_tasks(2)
    algorithm = functools.partial(metajax.maml_plus_plus, LOSS, 0.05, 2, multi_step=2)
    outer = metajax.outer_loop(lambda step: algorithm(step=step), optax.sgd(0.1))
    state = outer.init(problems.mlp_params(), jax.random.key(0))
    for step in range(3):
        fixed = metajax.outer_loop(algorithm(step=step), optax.sgd(0.1))
        expected, _ = fixed.step(state, tasks)
        state, _ = outer.step(state, tasks)
        assert problems.relative_gap(state.meta_params, expected.meta_params) < 1e-12


def test_leopard_generates_its_head(x64):
    algorithm = metajax.leopard(features, 4, CLASSES, SGD, 0, width=4, rng=jax.random.key(5))
    _, params, tasks = setting("leopard")
    task = problems.nth(tasks, 1)
    adapted, _ = algorithm.adapt(params, task.support, None)
    assert set(adapted) == {"encoder", "projection", "head"}
    generator = jax.device_get(params["generator"])
    inputs = np.asarray(features(params["encoder"], task.support, None))
    hidden = np.tanh(inputs @ generator["first"]["kernel"] + generator["first"]["bias"])
    generated = hidden @ generator["second"]["kernel"] + generator["second"]["bias"]
    labels = np.asarray(task.support["labels"])
    means = np.stack([generated[labels == c].mean(0) for c in range(CLASSES)])
    np.testing.assert_allclose(adapted["head"]["kernel"], means[:, :-1].T, rtol=1e-10)
    np.testing.assert_allclose(adapted["head"]["bias"], means[:, -1], rtol=1e-10)


def test_norms_and_biases_alone(x64):
    algorithm = metajax.maml(LOSS, SGD, 2, adapted=is_norm_or_bias)
    params = problems.mlp_params()
    adapted, _ = algorithm.adapt(params, problems.one_task().support, None)
    for layer in params:
        chex.assert_trees_all_equal(adapted[layer]["kernel"], params[layer]["kernel"])
        assert not np.array_equal(adapted[layer]["bias"], params[layer]["bias"])


@pytest.mark.parametrize("constructor", [metajax.meta_sgd, metajax.maml_plus_plus])
def test_learned_rates_of_a_part(x64, constructor):
    algorithm = constructor(LOSS, 0.05, 2, adapted=head)
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
    meta_params["rates"]["layers"] = jnp.array([[0.0, 0.5, 1.0], [0.0, 0.5, 0.0]])
    adapted, _ = algorithm.adapt(meta_params, jnp.ones((3, 4)), None)
    np.testing.assert_allclose(adapted["layers"][:, 0], [0, 0.75, 1])


def test_an_inner_loop_without_parameters_is_refused():
    algorithm = metajax.anil(LOSS, SGD, 1, head=lambda path: path == "sceond")
    with pytest.raises(ValueError, match=r"head\) is true of none of first/bias, first/kernel"):
        algorithm.adapt(problems.mlp_params(), problems.one_task().support, None)


def test_maml_plus_plus_refuses_negative_lengths():
    with pytest.raises(ValueError, match="multi_step is -1"):
        metajax.maml_plus_plus(LOSS, 0.05, 1, multi_step=-1)
    with pytest.raises(ValueError, match="first_order_until is -2"):
        metajax.maml_plus_plus(LOSS, 0.05, 1, first_order_until=-2)


def test_maml_plus_plus_takes_no_reduction():
    metajax.maml_plus_plus(LOSS, 0.05, 1, reduce=None)
    with pytest.raises(ValueError, match="takes no reduce"):
        metajax.maml_plus_plus(LOSS, 0.05, 1, reduce=lambda params, task: (params, task, None))


@pytest.mark.parametrize("constructor", [metajax.meta_sgd, metajax.maml_plus_plus])
def test_a_start_that_moves_parameters_is_refused(constructor):
    def start(params, support, rng):
        return {"encoder": params}

    algorithm = constructor(
        lambda p, batch, rng: LOSS(p["encoder"], batch, rng), 0.05, 1, start=start
    )
    with pytest.raises(ValueError, match="start has moved first, second"):
        algorithm.adapt(algorithm.init(problems.mlp_params()), problems.one_task().support, None)


def test_imaml_of_a_part_from_a_start(x64):
    """Against the minimum written out: what is fixed, and the start, move it."""
    task, strength = problems.quadratic_task(), 0.8
    a, centre = task.support

    def loss_fn(params, batch, rng):
        return problems.quadratic(params["body"] * params["head"], batch, rng)

    def start(params, support, rng):
        return {**params, "head": params["head"] * support[1]}

    params = {"body": jnp.array([1.0, -0.5, 2.0]), "head": jnp.array([0.3, -1.0, 0.2])}
    algorithm = metajax.imaml(
        loss_fn,
        optax.sgd(0.05),
        2000,
        strength=strength,
        solver_steps=20,
        start=start,
        adapted=lambda path: path == "head",
    )

    def written_out(params):
        scale = jnp.diag(params["body"])
        left = scale @ a @ scale + strength * jnp.eye(3)
        right = scale @ a @ centre + strength * params["head"] * centre
        return problems.quadratic(params["body"] * jnp.linalg.solve(left, right), task.query, None)[
            0
        ]

    found, info = jax.jit(algorithm.meta_grad)(params, task, None)
    assert problems.relative_gap(found, jax.grad(written_out)(params)) < 1e-9
    np.testing.assert_allclose(info.query_loss, written_out(params), rtol=1e-9)
    # The loss on the support set alone, without the pull.
    begin = loss_fn(start(params, task.support, None), task.support, None)[0]
    np.testing.assert_allclose(info.support_loss[0], begin, rtol=1e-12)
