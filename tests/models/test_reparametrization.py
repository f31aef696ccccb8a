"""What the inner steps cannot change, computed once: exactly the plain meta-gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import relative_gap

import metajax
from metajax.algorithms import lora
from metajax.data.packing import Shape, pack
from metajax.models import Transformer, bert, classification_loss, prototype_init
from metajax.models.reparametrization import compose, mentioned_rows, separate_layers, upper_layers
from metajax.platforms import compiling_for
from metajax.training.outer import map_tasks, task_keys
from tests.models.helpers import TINY, make_batch, make_params

pytestmark = pytest.mark.usefixtures("x64")

MODEL = Transformer(TINY, head="classification", num_labels=(3,), pooling="mean", feature_norm=2.0)
LOSS = classification_loss(MODEL)
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.01, eps_root=1e-10),
}


def unequal_task(packed=False):
    """Support of two classes and a padding example, query of three examples; lengths differ."""

    def batch(seed, mask):
        tokens = make_batch(seed, length=4, vocab=13)
        if packed:
            tokens = pack({k: np.asarray(v) for k, v in tokens.items()}, Shape(2, 6))
        return tokens | {
            "labels": jnp.array([0, 1, 0]),
            "example_mask": jnp.array(mask),
            "class_mask": jnp.array([1.0, 1.0, 0.0]),
        }

    return metajax.Task(batch(0, [1.0, 1.0, 0.0]), batch(1, [1.0, 1.0, 1.0]))


def algorithm(optimizer="sgd", model=MODEL, steps=2, **settings):
    loss_fn = classification_loss(model)
    return metajax.maml(
        lambda params, batch, rng: loss_fn(params, batch, None),
        OPTIMIZERS[optimizer],
        steps,
        init_fn=prototype_init(model),
        **settings,
    )


def assert_same_meta_gradient(params, task, optimizer, plain, **settings):
    (found, info), (expected, expected_info) = (
        jax.jit(which.meta_grad)(params, task, None)
        for which in (algorithm(optimizer, **settings), algorithm(plain))
    )
    assert relative_gap(found, expected) < 1e-10
    np.testing.assert_allclose(info.query_loss, expected_info.query_loss, rtol=1e-10)
    np.testing.assert_allclose(info.support_loss, expected_info.support_loss, rtol=1e-10)


def assert_same_adaptation(params, task, optimizer, plain, **settings):
    found, expected = (
        jax.jit(which.adapt)(params, task.support, None)[0]
        for which in (algorithm(optimizer, **settings), algorithm(plain))
    )
    assert relative_gap(found, expected) < 1e-10


@pytest.fixture(scope="module")
def params():
    with jax.enable_x64(True):
        made = make_params(MODEL, dtype=jnp.float64)
    return {key: value for key, value in made.items() if key != "classifier"}


@pytest.mark.parametrize(
    ("optimizer", "low_memory", "packed"),
    [
        ("momentum", True, True),
        pytest.param("adam", False, False, marks=pytest.mark.slow),
        pytest.param("sgd", False, True, marks=pytest.mark.slow),
    ],
)
def test_mentioned_rows_are_enough(params, optimizer, low_memory, packed):
    task, reduce = unequal_task(packed), mentioned_rows(MODEL)
    assert reduce(params, task)[0]["embeddings"]["word"].shape[0] == 24 < TINY.vocab_size
    settings = {"reparametrize": reduce, "low_memory": low_memory}
    assert_same_meta_gradient(params, task, optimizer, optimizer, **settings)


@pytest.mark.parametrize("chunk_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_batch_of_unequal_tasks(params, chunk_size, monkeypatch):
    """All that saves memory or time at once, in chunks, against each task alone and plain."""
    monkeypatch.setitem(bert._CHUNK_TOKENS, "cpu", 8)  # Blocks too, a few rows at a time.
    whole = {"labels": jnp.arange(3), "example_mask": jnp.ones(3), "class_mask": jnp.ones(3)}
    # Of two classes and of three.
    tasks = [unequal_task(), metajax.Task(*(batch | whole for batch in unequal_task()))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)
    model = MODEL.replace(remat=True)
    small = algorithm(model=model, low_memory=True, reparametrize=mentioned_rows(model))
    plain = jax.jit(algorithm().meta_grad)
    expected = [plain(params, task, None)[0] for task in tasks]
    total, _ = jax.jit(
        lambda params: map_tasks(
            lambda task, key: small.meta_grad(params, task, None),
            stacked,
            task_keys(jax.random.key(0), 0, 2),
            chunk_size,
        )
    )(params)
    assert relative_gap(total, jax.tree.map(jnp.add, *expected)) < 1e-10


def texts(*rows):
    """A batch of these tokens alone."""
    ids = jnp.array(rows)
    return {"input_ids": ids, "attention_mask": jnp.ones_like(ids), "token_type_ids": 0 * ids}


@pytest.mark.parametrize(
    "task",
    [
        metajax.Task(texts([3, 5, 3], [9, 5, 3]), texts([5, 12, 3], [9, 9, 9])),
        metajax.Task(texts([0, 30, 30], [7, 0, 30]), None),
        metajax.Task(None, texts([30, 1, 1])),
    ],
    ids=["neither the first row nor the last", "both", "the last, no support set"],
)
def test_rows_that_no_text_mentions_stay_as_they_are(params, task):
    """Whatever the inner steps do to the small table; and the model sees the same texts."""
    small, moved, restore = mentioned_rows(MODEL)(params, task)
    ids = [np.asarray(batch["input_ids"]) for batch in task if batch is not None]
    mentioned = np.unique(np.concatenate([each.reshape(-1) for each in ids]))
    assert len(small["embeddings"]["word"]) == sum(each.size for each in ids) < TINY.vocab_size
    for before, after in zip(task, moved):
        assert (before is None) == (after is None)
        if after is not None:
            rows = small["embeddings"]["word"][after["input_ids"]]
            np.testing.assert_array_equal(rows, params["embeddings"]["word"][before["input_ids"]])
            assert after.keys() == before.keys()
            assert after["attention_mask"] is before["attention_mask"]
    changed = jax.tree.map(lambda leaf: leaf + 1, small)
    expected = np.array(params["embeddings"]["word"])
    expected[mentioned] += 1
    restored = restore(changed)
    np.testing.assert_array_equal(restored["embeddings"]["word"], expected)
    np.testing.assert_array_equal(
        restored["embeddings"]["position"], params["embeddings"]["position"] + 1
    )
    assert restored["layers"] is changed["layers"]


def test_the_gradient_goes_through_rows_out_and_back(params):
    """Of weights times the square of the mentioned rows, and the others."""
    weights = np.random.RandomState(0).standard_normal((31, 8))
    task = metajax.Task(texts([30, 5, 3]), texts([5, 12, 12]))

    def energy(table):
        embeddings = params["embeddings"] | {"word": table}
        small, _, restore = mentioned_rows(MODEL)(params | {"embeddings": embeddings}, task)
        word = jnp.square(small["embeddings"]["word"])
        back = restore(small | {"embeddings": small["embeddings"] | {"word": word}})
        return (weights * back["embeddings"]["word"]).sum()

    table = np.asarray(params["embeddings"]["word"])
    expected = weights.copy()
    expected[[3, 5, 12, 30]] *= 2 * table[[3, 5, 12, 30]]
    np.testing.assert_allclose(jax.grad(energy)(jnp.asarray(table)), expected, rtol=1e-12)


def test_a_text_longer_than_the_table_keeps_it(params):
    ids = jnp.arange(31).reshape(1, 31)
    task = metajax.Task({"input_ids": ids}, None)
    small, moved, restore = mentioned_rows(MODEL)(params, task)
    assert small is params
    assert moved is task
    assert restore(small) is small
    small, _, _ = mentioned_rows(MODEL)(params, metajax.Task({"input_ids": ids[:, 1:]}, None))
    assert small["embeddings"]["word"].shape == (30, 8)


def _only_upper(updates, state, params=None):
    layers = jax.tree.map(lambda leaf: leaf.at[:1].set(0), updates["layers"])
    embeddings = jax.tree.map(jnp.zeros_like, updates["embeddings"])
    return {**updates, "layers": layers, "embeddings": embeddings}, state


# All layers in the loop, the updates of the lower one and of the embeddings set to zero.
OPTIMIZERS["masked"] = optax.chain(
    optax.sgd(0.1), optax.GradientTransformation(lambda params: (), _only_upper)
)


@pytest.mark.parametrize(
    ("low_memory", "packed", "remat"),
    [(True, True, True), pytest.param(False, False, False, marks=pytest.mark.slow)],
)
def test_upper_layers_alone(params, low_memory, packed, remat):
    settings = {
        "reparametrize": upper_layers(MODEL.replace(remat=remat), 1),
        "low_memory": low_memory,
    }
    assert_same_meta_gradient(params, unequal_task(packed), "sgd", "masked", **settings)


@pytest.mark.parametrize(
    ("count", "separate", "packed"), [(2, False, False), (1, True, True), (0, False, True)]
)
def test_the_layers_below_are_computed_once_and_put_back(count, separate, packed):
    """Each set has its own features; of three blocks, so that their order shows."""
    model = MODEL.replace(config=dataclasses.replace(TINY, num_hidden_layers=3))
    whole, task = make_params(model, dtype=jnp.float64), unequal_task(packed)
    reduce = upper_layers(model, count)
    small, moved, restore = (compose(separate_layers(), reduce) if separate else reduce)(
        whole, task
    )
    assert "embeddings" not in small
    assert len(jax.tree.leaves(small["layers"])) == 12 * (count if separate else 1)
    for before, after in zip(task, moved):
        expected, found = (jax.jit(model)(*given) for given in ((whole, before), (small, after)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), found, expected)
        gone = {"input_ids", "token_type_ids", "position_ids"}
        assert after.keys() == before.keys() - gone | {"hidden"}
    restored = restore(jax.tree.map(lambda leaf: leaf + 1, small))
    expected = jax.tree.map(lambda leaf: leaf.at[3 - count :].add(1), whole["layers"])
    jax.tree.map(np.testing.assert_array_equal, restored["layers"], expected)
    assert restored["embeddings"] is whole["embeddings"]
    np.testing.assert_array_equal(restored["pooler"]["bias"], whole["pooler"]["bias"] + 1)


def test_an_absent_set_stays_absent(params):
    task = metajax.Task(None, unequal_task().query)
    _, moved, _ = upper_layers(MODEL, 1)(params, task)
    assert moved.support is None
    assert "hidden" in moved.query


def test_reparametrizations_are_undone_in_reverse():
    def appending(name):
        def reduce(params, task):
            return [*params, name], [*task, name], lambda reduced: [*reduced, f"no {name}"]

        return reduce

    params, task, restore = compose(appending("a"), appending("b"))([], [])
    assert (params, task) == (["a", "b"], ["a", "b"])
    assert restore(params) == ["a", "b", "no b", "no a"]


@pytest.mark.parametrize(
    ("other", "plain"),
    [
        pytest.param(upper_layers(MODEL, 1), "masked", marks=pytest.mark.slow),
        pytest.param(mentioned_rows(MODEL), "sgd", marks=pytest.mark.slow),
    ],
)
def test_separate_layers_and_unrolled_steps(params, other, plain):
    task, reduce = unequal_task(packed=True), compose(separate_layers(), other)
    assert_same_meta_gradient(params, task, "sgd", plain, reparametrize=reduce, unroll=True)
    assert_same_adaptation(params, task, "sgd", plain, reparametrize=reduce)


SGD = OPTIMIZERS["sgd"]
START = {"init_fn": prototype_init(MODEL)}


def features(params, batch, rng):
    return MODEL.features(params, batch)


ALGORITHMS = {
    "reptile": lambda **settings: metajax.reptile(LOSS, SGD, 2, **START, **settings),
    "meta-sgd": lambda **settings: metajax.meta_sgd(LOSS, 0.1, 1, **START, **settings),
    "imaml": lambda **settings: metajax.imaml(LOSS, SGD, 1, prox_weight=9.0, **START, **settings),
    "proto-maml": lambda **settings: metajax.proto_maml(features, 3, SGD, 1, **settings),
    "leopard": lambda **settings: metajax.leopard(
        features, TINY.hidden_size, 3, SGD, 1, width=4, rng=jax.random.key(0), **settings
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        "reptile",
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ("meta-sgd", "leopard", "imaml", "proto-maml")
        ),
    ],
)
def test_other_algorithms_of_a_reduced_task(params, name):
    reduce = compose(separate_layers(), mentioned_rows(MODEL))
    plain, reduced = ALGORITHMS[name](), ALGORITHMS[name](reparametrize=reduce)
    task, meta_params = unequal_task(packed=True), plain.init(params)
    expected, found = (
        jax.jit(each.meta_grad)(meta_params, task, None) for each in (plain, reduced)
    )
    assert relative_gap(found[0], expected[0]) < 1e-10
    np.testing.assert_allclose(found[1].query_loss, expected[1].query_loss, rtol=1e-10)
    expected, found = (
        jax.jit(each.adapt)(meta_params, task.support, None)[0] for each in (plain, reduced)
    )
    assert relative_gap(found, expected) < 1e-10


@pytest.mark.slow
def test_lora_of_a_reduced_task(params):
    """With a head of prototypes, which the adapters change the features of."""
    key, target = jax.random.key(2), lambda path: path == "layers/qkv/kernel"
    with_adapters = lora.init(params, rank=2, target=target, rng=key)

    def run(**settings):
        algorithm = metajax.maml(
            lora.loss(lambda params, batch, rng: LOSS(params, batch, None)),
            SGD,
            1,
            trainable=lambda path: lora.is_adapter(path) or path.startswith("base/classifier"),
            init_fn=lora.init_fn(prototype_init(MODEL)),
            **settings,
        )
        return jax.jit(algorithm.meta_grad)(with_adapters, unequal_task(packed=True), None)

    (expected, info), (found, _) = (
        run(),
        run(reparametrize=lora.reparametrize(mentioned_rows(MODEL))),
    )
    assert relative_gap(found, expected) < 1e-10
    assert info.query_loss > 0
    assert np.abs(found["adapters"]["layers"]["qkv"]["kernel"]["up"]).max() > 0


def test_what_cannot_be_reduced_is_refused():
    with pytest.raises(ValueError, match="a language-model head needs every row"):
        mentioned_rows(Transformer(TINY, head="masked_lm"))
    with pytest.raises(ValueError, match="count is 2; the model has 2 blocks"):
        upper_layers(MODEL, 2)
    with pytest.raises(ValueError, match="count is -1"):
        upper_layers(MODEL, -1)


@pytest.mark.parametrize("separate", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_remat_saves_memory_of_separate_blocks_too(separate):
    """Blocks in a loop give back what they need inside, whether or not they are stacked."""
    config = dataclasses.replace(TINY, num_hidden_layers=8)

    def megabytes(remat):
        model = Transformer(config, remat=remat)
        params, batch = make_params(model), make_batch(length=16, batch=64)

        def energy(params):
            if separate:
                params, _, _ = separate_layers()(params, metajax.Task(batch, None))
            return jnp.square(model(params, batch).last_hidden_state).sum()

        compiled = jax.jit(jax.grad(energy)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 1e6

    assert megabytes(True) < 0.6 * megabytes(False)


def default(optimizer=OPTIMIZERS["sgd"], model=MODEL, steps=3, **settings):
    settings = {"init_fn": prototype_init(model), **settings}
    return metajax.maml(classification_loss(model), optimizer, num_steps=steps, **settings)


def loops_over_blocks(made, params):
    program = jax.make_jaxpr(made.meta_grad)(params, unequal_task(), None)
    return f" length={TINY.num_hidden_layers}" in str(program)


@pytest.mark.parametrize("optimizer", ["momentum", pytest.param("adam", marks=pytest.mark.slow)])
def test_an_algorithm_uses_the_layout_of_its_loss(params, optimizer):
    assert not loops_over_blocks(default(OPTIMIZERS[optimizer]), params)
    task, made = unequal_task(), default(OPTIMIZERS[optimizer], steps=2)
    found, expected = (
        jax.jit(which.meta_grad)(params, task, None)[0] for which in (made, algorithm(optimizer))
    )
    assert relative_gap(found, expected) < 1e-10
    found, expected = (
        jax.jit(which.adapt)(params, task.support, None)[0]
        for which in (made, algorithm(optimizer))
    )
    assert relative_gap(found, expected) < 1e-10


def test_with_it_few_steps_are_compiled_one_by_one_on_a_cpu(params):
    def unrolled(made):
        program = jax.make_jaxpr(made.meta_grad)(params, unequal_task(), None)
        return "unroll=3" in str(program)

    assert unrolled(default())
    assert not unrolled(default(unroll=False))
    with compiling_for("tpu"):
        assert not unrolled(default())
    assert not unrolled(algorithm(steps=3))


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": optax.adamw(0.1, eps_root=1e-8)},
        {"trainable": lambda path: path.startswith("layers/qkv")},
        {"frozen": lambda path: path.startswith("layers/qkv")},
        {"init_fn": lambda params, support, rng: prototype_init(MODEL)(params, support, rng)},
        {"low_memory": True},
        {"model": MODEL.replace(remat=True)},
    ],
    ids=["weight decay", "trainable", "frozen", "another start", "low memory", "remat"],
)
def test_but_not_if_something_else_depends_on_the_layout(params, changes):
    assert loops_over_blocks(default(**changes), params)


def test_a_loss_on_features_keeps_the_table(params):
    """A batch without tokens has no rows to keep; blocks that are separate stay so."""
    batch = texts([3, 5, 3])
    given = {"hidden": MODEL.embed(params, batch), "attention_mask": batch["attention_mask"]}
    task = metajax.Task(given, None)
    small, same, undo = compose(separate_layers(), mentioned_rows(MODEL))(params, task)
    assert small["embeddings"] is params["embeddings"]
    assert same is task
    again, _, _ = separate_layers()(small, task)
    assert again is small
    assert undo(small)["embeddings"] is params["embeddings"]
