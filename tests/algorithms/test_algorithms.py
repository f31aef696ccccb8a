"""One table of all algorithms, one set of contract tests: a new algorithm is a new row.

Each row says what the inner loop descends, from where and how; `written_out` does it step by step,
with the keys as documented. Closed forms are in the tests of each algorithm.
"""

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
from metajax.algorithms import lora
from metajax.models import is_prefix
from metajax.platforms import compiling_for
from metajax.tree import is_norm_or_bias, mask
from metajax.types import InitFn, LossFn, MetaAlgorithm, Params

SGD = optax.sgd(0.05)
LOSS = problems.mlp_loss
CLASSES = 3


def features(params, batch, rng):
    """With a key, scaled at random: see `problems.mlp_loss`."""
    hidden = jnp.tanh(batch["x"] @ params["first"]["kernel"] + params["first"]["bias"])
    return hidden if rng is None else hidden * problems.noise(rng, hidden.dtype)


def prototypes(params, support, rng):
    """The means of the classes' features, as a head."""
    means = mean_of_classes(features(params, support, rng), support)
    return {"encoder": params, "head": {"kernel": means.T, "bias": -(means**2).sum(1) / 2}}


def generated(params, support, rng):
    """LEOPARD's head: the mean of what a network makes of the features."""
    made = two_layers(params["generator"], features(params["encoder"], support, rng))
    means = mean_of_classes(made, support)
    head = {"kernel": means[:, :-1].T, "bias": means[:, -1]}
    return {"encoder": params["encoder"], "projection": params["projection"], "head": head}


def mean_of_classes(features, batch):
    chosen = [(batch["labels"] == c) & (batch["example_mask"] > 0) for c in range(CLASSES)]
    sums = [jnp.where(one[:, None], features, 0).sum(0) for one in chosen]
    return jnp.stack([total / max(1, one.sum()) for total, one in zip(sums, chosen)])


def two_layers(params, inputs):
    first, second = params["first"], params["second"]
    hidden = jnp.tanh(inputs @ first["kernel"] + first["bias"])
    return hidden @ second["kernel"] + second["bias"]


def cross_entropy(params, batch, rng):
    """Of the classes and the examples that the task has."""
    inputs = features(params["encoder"], batch, rng)
    if "projection" in params:
        inputs = two_layers(params["projection"], inputs)
    logits = inputs @ params["head"]["kernel"] + params["head"]["bias"]
    ours, labels = batch["example_mask"] > 0, batch["labels"]
    logits = jnp.where(batch["class_mask"] > 0, logits, -jnp.inf)
    logs = jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
    right = logits.argmax(1) == labels
    return -logs.mean(where=ours), {"accuracy": right.mean(where=ours)}


def squared_error_of_merged(params, batch, rng):
    adapters = params["adapters"]["first"]["kernel"]
    first = params["base"]["first"]
    merged = {**first, "kernel": first["kernel"] + adapters["down"] @ adapters["up"]}
    return LOSS({**params["base"], "first": merged}, batch, rng)


def attached_loss(params, batch, rng):
    """Of a network that reads the factors that `lora.attach` puts next to a kernel."""
    first, (x, *_) = params["first"], batch
    hidden = jnp.tanh(x @ first["kernel"] + x @ first["down"] @ first["up"] + first["bias"])
    return problems.second_loss(params, hidden, batch, rng)


def prefix_loss(params, batch, rng):
    """Attention from each example to the vectors changes the hidden layer."""
    vectors = params["prefix"]["vectors"]
    queries = batch[0] @ params["first"]["kernel"] + params["first"]["bias"]
    hidden = jnp.tanh(queries + jax.nn.softmax(queries @ vectors.T) @ vectors)
    return problems.second_loss(params, hidden, batch, rng)


def with_prefix():
    vectors = jnp.asarray(np.random.default_rng(3).normal(size=(2, 4)))
    return {**problems.mlp_params(), "prefix": {"vectors": vectors}}


def head(path):
    return path.startswith("second")


def with_adapters():
    """Also of the second factors, which are zero at first."""
    key, target = jax.random.key(4), lambda path: path == "first/kernel"
    params = lora.init(problems.mlp_params(), rank=1, target=target, rng=key)
    params["adapters"]["first"]["kernel"]["up"] = jnp.linspace(-0.5, 0.5, 4)[None]
    return params


class Row(NamedTuple):
    """An algorithm, and what it does to a task.

    The defaults are those of plain MAML; `exact` says whether the meta-gradient is that of
    `query_loss`, `constant` of how many first steps the gradients are constants, `frozen` which
    parameters get no meta-gradient, and `stream` whether step k takes batch k of the support set.
    """

    algorithm: MetaAlgorithm
    num_steps: int = 3
    optimizer: optax.GradientTransformation = SGD
    trainable: Callable[[str], bool] = lambda path: True
    exact: bool = True
    constant: int = 0
    frozen: Callable[[str], bool] = lambda path: False
    pull: float = 0.0  # Implicit MAML's, back to the start.
    loss: LossFn = LOSS
    init_fn: InitFn = lambda params, support, rng: params
    params: Callable[[], Params] = problems.mlp_params
    stream: bool = False
    test_time: bool = False  # The meta-loss is the mean over all batches.

    @property
    def labelled(self):
        """Whether its tasks are labelled batches: dicts with masks."""
        return self.loss is cross_entropy


LEOPARD = {"width": 4, "rng": jax.random.key(5)}
OF_ADAPTERS = {
    "trainable": lambda path: path.startswith("adapters"),
    "loss": squared_error_of_merged,
    "params": with_adapters,
}
# Of the network that reads the factors, with a base that nobody changes.
ATTACHED = (lora.loss(attached_loss, lora.freeze(lora.attach)),)
OF_ATTACHED = {**OF_ADAPTERS, "frozen": lora.is_base}
IN_ADAPTERS = {"trainable": lora.is_adapter}
OF_PREFIX = {"trainable": is_prefix, "loss": prefix_loss, "params": with_prefix}
PROTOTYPES = {"loss": cross_entropy, "init_fn": prototypes}
GENERATED = {"loss": cross_entropy, "init_fn": generated}
STREAM = {"stream": True}
TEST_TIME = {"stream": True, "test_time": True}
ADAM = optax.adam(0.05, eps_root=1e-8)
MOMENTUM = optax.sgd(0.05, momentum=0.9)
CLIPPED = optax.chain(optax.clip_by_global_norm(0.5), ADAM)
ANNEALED = {"step": 3, "multi_step": 9, "first_order_until": 2}
TABLE = {
    "maml": Row(metajax.maml(LOSS, SGD, 3)),
    "fomaml": Row(metajax.maml(LOSS, SGD, 3, first_order=True), exact=False, constant=3),
    "low-memory maml": Row(metajax.maml(LOSS, SGD, 4, low_memory=True), num_steps=4),
    "maml with adam": Row(metajax.maml(LOSS, ADAM, 3), optimizer=ADAM),
    "anil": Row(metajax.anil(LOSS, SGD, 3, head=head), trainable=head),
    "low-memory anil": Row(metajax.anil(LOSS, SGD, 3, head=head, low_memory=True), trainable=head),
    "maml of norms and biases": Row(
        metajax.maml(LOSS, SGD, 3, trainable=is_norm_or_bias),
        trainable=lambda path: path.endswith("bias"),
    ),
    "maml of lora adapters": Row(
        metajax.maml(lora.loss(LOSS), SGD, 3, trainable=lora.is_adapter), **OF_ADAPTERS
    ),
    "low-memory maml of lora adapters": Row(
        metajax.maml(lora.loss(LOSS), SGD, 3, trainable=lora.is_adapter, low_memory=True),
        **OF_ADAPTERS,
    ),
    "maml of attached adapters": Row(metajax.maml(*ATTACHED, SGD, 3, **IN_ADAPTERS), **OF_ATTACHED),
    "low-memory maml of attached adapters": Row(
        metajax.maml(*ATTACHED, SGD, 3, low_memory=True, **IN_ADAPTERS), **OF_ATTACHED
    ),
    "fomaml of attached adapters": Row(
        metajax.maml(*ATTACHED, SGD, 3, first_order=True, **IN_ADAPTERS),
        exact=False,
        constant=3,
        **OF_ATTACHED,
    ),
    "meta-sgd of attached adapters": Row(
        metajax.meta_sgd(*ATTACHED, 0.05, 3, **IN_ADAPTERS), **OF_ATTACHED
    ),
    "maml++ of attached adapters": Row(
        metajax.maml_plus_plus(*ATTACHED, 0.05, 3, **IN_ADAPTERS), **OF_ATTACHED
    ),
    "maml of a prefix": Row(metajax.maml(prefix_loss, SGD, 3, trainable=is_prefix), **OF_PREFIX),
    "low-memory maml of a prefix": Row(
        metajax.maml(prefix_loss, SGD, 3, trainable=is_prefix, low_memory=True), **OF_PREFIX
    ),
    "fomaml of a prefix": Row(
        metajax.maml(prefix_loss, SGD, 3, trainable=is_prefix, first_order=True),
        exact=False,
        constant=3,
        **OF_PREFIX,
    ),
    "reptile": Row(metajax.reptile(LOSS, SGD, 3), exact=False),
    "meta-sgd": Row(metajax.meta_sgd(LOSS, 0.05, 3)),
    "low-memory meta-sgd": Row(metajax.meta_sgd(LOSS, 0.05, 3, low_memory=True)),
    "maml++": Row(metajax.maml_plus_plus(LOSS, 0.05, 3)),
    "annealed maml++": Row(metajax.maml_plus_plus(LOSS, 0.05, 3, **ANNEALED), exact=False),
    "low-memory annealed maml++": Row(
        metajax.maml_plus_plus(LOSS, 0.05, 3, low_memory=True, **ANNEALED), exact=False
    ),
    "imaml": Row(metajax.imaml(LOSS, SGD, 3), pull=1.0, exact=False),
    "imaml by neumann": Row(
        metajax.imaml(LOSS, SGD, 3, prox_weight=50.0, solver="neumann"), pull=50.0, exact=False
    ),
    "imaml of a part": Row(
        metajax.imaml(LOSS, SGD, 3, trainable=head), trainable=head, pull=1.0, exact=False
    ),
    "protonet": Row(metajax.protonet(features, CLASSES), num_steps=0, **PROTOTYPES),
    "proto-maml": Row(metajax.proto_maml(features, CLASSES, SGD, 3), **PROTOTYPES),
    "low-memory proto-maml": Row(
        metajax.proto_maml(features, CLASSES, SGD, 3, low_memory=True), **PROTOTYPES
    ),
    "leopard": Row(metajax.leopard(features, 4, CLASSES, SGD, 3, **LEOPARD), **GENERATED),
    "low-memory leopard": Row(
        metajax.leopard(features, 4, CLASSES, SGD, 3, low_memory=True, **LEOPARD), **GENERATED
    ),
    "supervised": Row(metajax.supervised(LOSS), num_steps=0),
    "maml of streams": Row(metajax.maml(LOSS, SGD, 3, stream=True), **STREAM),
    "low-memory maml of streams": Row(
        metajax.maml(LOSS, ADAM, 6, stream=True, low_memory=True),
        num_steps=6,
        optimizer=ADAM,
        **STREAM,
    ),
    "fomaml of streams": Row(
        metajax.maml(LOSS, SGD, 3, first_order=True, stream=True),
        exact=False,
        constant=3,
        **STREAM,
    ),
    "maml of streams with momentum": Row(
        metajax.maml(LOSS, MOMENTUM, 3, stream=True), optimizer=MOMENTUM, **STREAM
    ),
    "low-memory maml of streams with momentum": Row(
        metajax.maml(LOSS, MOMENTUM, 3, stream=True, low_memory=True),
        optimizer=MOMENTUM,
        **STREAM,
    ),
    "maml of streams with clipped adam": Row(
        metajax.maml(LOSS, CLIPPED, 3, stream=True), optimizer=CLIPPED, **STREAM
    ),
    "low-memory maml of streams with clipped adam": Row(
        metajax.maml(LOSS, CLIPPED, 3, stream=True, low_memory=True),
        optimizer=CLIPPED,
        **STREAM,
    ),
    "meta-sgd of streams": Row(metajax.meta_sgd(LOSS, 0.05, 3, stream=True), **STREAM),
    "maml++ of streams": Row(metajax.maml_plus_plus(LOSS, 0.05, 3, stream=True), **STREAM),
    "anil of streams": Row(
        metajax.anil(LOSS, SGD, 3, head=head, stream=True), trainable=head, **STREAM
    ),
    "reptile of streams": Row(metajax.reptile(LOSS, SGD, 3, stream=True), exact=False, **STREAM),
    "test-time-training": Row(metajax.test_time_training(LOSS, SGD, 3), **TEST_TIME),
    "low-memory test-time training": Row(
        metajax.test_time_training(LOSS, SGD, 6, trainable=head, low_memory=True),
        num_steps=6,
        trainable=head,
        **TEST_TIME,
    ),
    "truncated test-time training": Row(
        metajax.test_time_training(LOSS, SGD, 3, truncate=1),
        exact=False,
        constant=2,
        **TEST_TIME,
    ),
    "first-order-test-time-training": Row(
        metajax.test_time_training(LOSS, SGD, 3, truncate=0),
        exact=False,
        constant=3,
        **TEST_TIME,
    ),
    "test-time training of attached adapters": Row(
        metajax.test_time_training(*ATTACHED, SGD, 3, **IN_ADAPTERS), **OF_ATTACHED, **TEST_TIME
    ),
}


def _row(name, slow=False):
    """With its own group: a worker compiles an algorithm once for all tests of it."""
    marks = [pytest.mark.xdist_group(name)]
    if slow or name in TESTED_ELSEWHERE:
        marks.append(pytest.mark.slow)
    return pytest.param(name, marks=marks)


# That saving memory changes nothing: test_hypergrad.py.
TESTED_ELSEWHERE = {
    "low-memory maml",
    "low-memory anil",
    "low-memory maml of lora adapters",
    "low-memory annealed maml++",
}
# That an inner step takes its own batch: the rows of maml.
TESTED_ELSEWHERE |= {f"{name} of streams" for name in ("meta-sgd", "maml++", "anil", "reptile")}
# Their meta-gradient, and so all that low memory could change: the test of nested gradients.
TESTED_ELSEWHERE |= {
    "low-memory maml of attached adapters",
    "low-memory maml of a prefix",
    "low-memory maml of streams with momentum",
    "low-memory maml of streams with clipped adam",
    "fomaml of a prefix",
    "first-order-test-time-training",
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
    row = TABLE[name]
    if row.stream:
        tasks = problems.mlp_streams(num_tasks, row.num_steps)
    else:
        tasks = labelled_tasks(num_tasks) if row.labelled else problems.mlp_tasks(num_tasks)
    return row.algorithm, row.algorithm.init(row.params()), tasks


@functools.cache
def compiled(name):
    traces = []

    def meta_grad(meta_params, task, key):
        traces.append(name)
        assert len(traces) == 1, "traced again"
        return TABLE[name].algorithm.meta_grad(meta_params, task, key)

    return jax.jit(meta_grad)


@functools.cache
def value_and_grad(loss):
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def written_out(name, meta_params, task, key):
    """The adapted parameters, the losses before the steps, and the query set's loss and aux."""
    row = TABLE[name]
    rates = meta_params.get("rates")
    params = meta_params["params"] if rates else meta_params
    if name == "supervised":  # The query set is its only use of the key.
        return params, [], *row.loss(params, task.query, key)
    start = params = row.init_fn(params, task.support, jax.random.fold_in(key, 0))
    keep = mask(params, lambda path: not row.trainable(path))
    state, losses = row.optimizer.init(params), []
    for k in range(row.num_steps):
        step_key = jax.random.fold_in(jax.random.fold_in(key, 1), k)
        support = problems.nth(task.support, k) if row.stream else task.support
        (loss, _), grads = value_and_grad(row.loss)(params, support, step_key)
        grads = jax.lax.stop_gradient(grads) if k < row.constant else grads
        grads = jax.tree.map(lambda g, p, s: g + row.pull * (p - s), grads, params, start)
        updates, state = row.optimizer.update(grads, state, params)
        if rates:
            updates = jax.tree.map(functools.partial(descent, name, k), grads, rates)
        params = jax.tree.map(lambda p, u, kept: p if kept else p + u, params, updates, keep)
        losses.append(loss)
    query_key = jax.random.fold_in(key, 2)
    loss, aux = value_and_grad(row.loss)(params, task.query, query_key)[0]
    return params, losses, sum([*losses, loss]) / (1 + len(losses)) if row.test_time else loss, aux


def descent(name, k, grad, rate):
    """Of step k; MAML++ has a rate for each step. What is not adapted may have no rate."""
    if rate is None:
        return grad * 0
    return -(rate[k] if "maml++" in name else rate) * grad


def test_it_does_what_its_steps_written_out_do(x64, name):
    """Values here; their derivatives below."""
    algorithm, meta_params, tasks = setting(name)
    task, key = problems.nth(tasks, 0), jax.random.key(1)
    if "rates" in meta_params:
        assert {
            rate for leaf in jax.tree.leaves(meta_params["rates"]) for rate in np.ravel(leaf)
        } == {0.05}
    params, losses, loss, aux = written_out(name, meta_params, task, key)
    _, info = compiled(name)(meta_params, task, key)
    assert problems.relative_gap((info.query_loss, info.query_aux), (loss, aux)) < 1e-12
    np.testing.assert_allclose(info.support_loss, losses, rtol=1e-12)
    adapted, info = jax.jit(algorithm.adapt)(meta_params, task.support, key)
    assert problems.relative_gap(adapted, params) < 1e-12
    np.testing.assert_allclose(info.support_loss, losses, rtol=1e-12)


def test_the_meta_gradient_is_the_slope_of_the_query_loss(x64, name):
    """By central differences of fourth order, along a direction that moves every number."""
    _, meta_params, tasks = setting(name)
    task, key = problems.nth(tasks, 1), jax.random.key(0)
    leaves, treedef = jax.tree.flatten(meta_params)
    draw = np.random.default_rng(2)
    direction = jax.tree.unflatten(treedef, [draw.normal(size=leaf.shape) for leaf in leaves])
    frozen = mask(direction, TABLE[name].frozen)
    direction = jax.tree.map(lambda leaf, fixed: leaf * (not fixed), direction, frozen)

    def query_loss(size):
        moved = optax.tree.add_scale(meta_params, size, direction)
        return compiled(name)(moved, task, key)[1].query_loss

    h = 1e-4
    near, far = (query_loss(size) - query_loss(-size) for size in (h, 2 * h))
    slope = optax.tree.vdot(compiled(name)(meta_params, task, key)[0], direction)
    is_slope = abs(slope - (8 * near - far) / 12 / h) < 1e-6 * abs(slope)
    assert is_slope == TABLE[name].exact


def is_nested(row):
    """Whether the meta-gradient is that of `written_out`, which has no annealed losses."""
    return row.exact or row.constant > 0


def of_language_models(name):
    return any(word in name for word in ("attached", "prefix", "streams", "test-time"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if of_language_models(name) else [pytest.mark.slow])
        for name, row in TABLE.items()
        if is_nested(row)
    ],
)
def test_the_meta_gradient_is_that_of_nested_gradients(x64, name):
    """Of every number, by `jax.grad` of the steps written out; zero for what is frozen."""
    _, meta_params, tasks = setting(name)
    task, key = problems.nth(tasks, 1), jax.random.key(0)
    grads, _ = compiled(name)(meta_params, task, key)
    loss = lambda meta_params: written_out(name, meta_params, task, key)[2]  # noqa: E731
    frozen = mask(meta_params, TABLE[name].frozen)
    expected = jax.tree.map(lambda g, fixed: g * (not fixed), jax.grad(loss)(meta_params), frozen)
    assert problems.relative_gap(grads, expected) < 1e-11


# With first order there is one engine for all platforms.
@pytest.mark.parametrize(
    "name",
    [
        _row(name, slow=name not in ("test-time-training", "meta-sgd", "maml of attached adapters"))
        for name, row in TABLE.items()
        if row.exact and not name.startswith("low-memory")
    ],
)
def test_on_an_accelerator_the_meta_gradient_is_the_same(x64, name):
    algorithm, meta_params, tasks = setting(name)
    task, key = problems.nth(tasks, 1), jax.random.key(0)
    with compiling_for("gpu"):
        found, info = jax.jit(algorithm.meta_grad)(meta_params, task, key)
    expected, on_cpu = compiled(name)(meta_params, task, key)
    assert problems.relative_gap(found, expected) < 1e-11
    np.testing.assert_allclose(info.query_loss, on_cpu.query_loss, rtol=1e-12)


def test_gradients_have_the_structure_of_the_meta_parameters(x64, name):
    _, meta_params, tasks = setting(name)
    task = problems.nth(tasks, 0)
    grads, info = compiled(name)(meta_params, task, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, meta_params)
    chex.assert_tree_all_finite((grads, info))
    assert info.query_loss.shape == ()
    assert info.support_loss.ndim == 1
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads)) > 0


# Tasks stacked in a program of each kind.
STACKED = {
    "maml", "maml with adam", "maml of attached adapters", "reptile", "meta-sgd", "maml++",
    "annealed maml++", "imaml", "imaml by neumann", "protonet", "proto-maml", "leopard",
    "supervised", "low-memory maml of streams", "test-time-training",
    "truncated test-time training",
}  # fmt: skip


@pytest.mark.parametrize("name", [_row(name, slow=name not in STACKED) for name in TABLE])
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
    assert problems.relative_gap(first[0], other[0]) > 0
    run(meta_params, problems.nth(tasks, 1), jax.random.key(0))


# One that is the slope of the query loss leads down.
@pytest.mark.parametrize("name", [_row(name, slow=row.exact) for name, row in TABLE.items()])
def test_an_outer_step_lowers_the_query_loss(x64, name):
    algorithm, _, tasks = setting(name)
    outer = metajax.outer_loop(algorithm, optax.adam(1e-2), frozen=TABLE[name].frozen)
    state, losses = outer.init(TABLE[name].params(), jax.random.key(0)), []
    for _ in range(15):
        state, metrics = outer.step(state, tasks)
        losses.append(float(metrics.query_loss))
    assert np.mean(losses[-3:]) < losses[0]


# Of other batches an algorithm knows no examples: the loss does.
@pytest.mark.parametrize(
    "name", [_row(name, slow=not row.labelled and name != "maml") for name, row in TABLE.items()]
)
def test_padding_is_ignored(x64, name):
    algorithm, meta_params, tasks = setting(name)
    small, key = problems.nth(tasks, 0), jax.random.key(0)
    expected = compiled(name)(meta_params, small, key)
    if TABLE[name].labelled:
        assert small.support["class_mask"].sum() == 2
        found = compiled(name)(meta_params, metajax.Task(*map(spoil, small)), key)
    else:
        support = jax.vmap(pad)(small.support) if TABLE[name].stream else pad(small.support)
        padded = metajax.Task(support, pad(small.query))
        found = jax.jit(algorithm.meta_grad)(meta_params, padded, key)
    chex.assert_trees_all_close(found, expected, rtol=1e-11, atol=1e-13)


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


def test_reptile_on_a_quadratic(x64):
    """From a start elsewhere, which the way to the adapted parameters includes."""
    task, a, centre, _, _, params = problems.quadratic_numbers()
    start = lambda params, support, rng: params * support[1]  # noqa: E731
    algorithm = metajax.reptile(problems.quadratic, SGD, 4, init_fn=start)
    grads, _ = algorithm.meta_grad(jnp.asarray(params), task, None)
    shrink = np.linalg.matrix_power(np.eye(3) - 0.05 * a, 4)
    adapted = centre + shrink @ (params * centre - centre)
    np.testing.assert_allclose(grads, params - adapted, rtol=1e-12)


def test_an_inner_loop_without_parameters_is_refused():
    algorithm = metajax.anil(LOSS, SGD, 1, head=lambda path: path == "sceond")
    with pytest.raises(
        ValueError, match=r"head of anil\): false for all parameters \(first/bias, first/kernel"
    ):
        algorithm.adapt(problems.mlp_params(), problems.one_task().support, None)
