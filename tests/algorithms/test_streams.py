"""Streams of batches, micro-batches, test-time training, and many inner steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import metajax
from metajax.algorithms.inner_loop import inner_loop
from metajax.algorithms.scans import segmented_scan

SGD = optax.sgd(0.05)
LOSS = problems.mlp_loss


def stream_task(num_steps, query=True):
    task = problems.nth(problems.mlp_streams(1, num_steps), 0)
    return task if query else task._replace(query=None)


def meta_grad(algorithm, task, key=None):
    return jax.jit(algorithm.meta_grad)(algorithm.init(problems.mlp_params()), task, key)


ALGORITHMS = {
    "maml": metajax.maml,
    "low-memory": functools.partial(metajax.maml, low_memory=True),
    "fomaml": functools.partial(metajax.maml, first_order=True),
    "test-time training": metajax.test_time_training,
    "low-memory test-time training": functools.partial(metajax.test_time_training, low_memory=True),
    "truncated test-time training": functools.partial(metajax.test_time_training, truncate=1),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_micro_batches_are_exact(x64, name):
    settings = {} if "test-time" in name else {"stream": True}
    whole, split = (
        meta_grad(ALGORITHMS[name](LOSS, SGD, 3, micro_batches=parts, **settings), stream_task(3))
        for parts in (1, 3)
    )
    assert problems.relative_gap(split, whole) < 1e-12


def test_micro_batches_add_up_in_float32():
    """In bfloat16, a sum of 512 ones would stay at 256."""

    def loss_fn(params, batch, rng):
        return params * jnp.mean(batch), {}

    algorithm = metajax.reptile(loss_fn, optax.sgd(1.0), 1, micro_batches=512)
    batch = jnp.ones(512, jnp.bfloat16)
    adapted, info = algorithm.adapt(jnp.bfloat16(2), batch, None)
    assert (float(adapted), adapted.dtype) == (1.0, jnp.bfloat16)
    assert (info.support_loss.tolist(), info.support_loss.dtype) == ([2.0], jnp.bfloat16)


def test_each_micro_batch_has_its_own_key():
    def loss_fn(params, batch, rng):
        return params * jax.random.normal(rng), {}

    key = jax.random.key(3)
    adapted, _ = metajax.maml(loss_fn, optax.sgd(1.0), 1, micro_batches=2).adapt(
        jnp.float32(0), jnp.zeros(4), key
    )
    step = jax.random.fold_in(jax.random.fold_in(key, 1), 0)
    noise = [jax.random.normal(jax.random.fold_in(step, part)) for part in range(2)]
    np.testing.assert_allclose(adapted, -np.mean(noise), rtol=1e-6)


def written_out(num_steps, task, params, constant=0, rate=0.05):
    """Losses before the steps and after the last; the first `constant` gradients are constants."""

    def step(params, batch):
        loss, grads = jax.value_and_grad(lambda p: LOSS(p, batch, None)[0])(params)
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), loss

    def constant_step(params, batch):
        _, grads = jax.value_and_grad(lambda p: LOSS(p, batch, None)[0])(params)
        moved = jax.tree.map(lambda p, g: p - rate * jax.lax.stop_gradient(g), params, grads)
        return moved, LOSS(params, batch, None)[0]

    losses = []
    for k in range(num_steps):
        take = constant_step if k < constant else step
        params, loss = take(params, problems.nth(task.support, k))
        losses.append(loss)
    return jnp.stack(losses), LOSS(params, task.query, None)[0]


@pytest.mark.parametrize("truncate", [0, 2, 4, 9])
@pytest.mark.parametrize("low_memory", [False, True])
def test_truncation_makes_early_gradients_constant(x64, truncate, low_memory):
    task, params = stream_task(4), problems.mlp_params()

    def loss(params):
        losses, last = written_out(4, task, params, constant=max(0, 4 - truncate))
        return (losses.sum() + last) / 5

    algorithm = metajax.test_time_training(LOSS, SGD, 4, truncate=truncate, low_memory=low_memory)
    assert problems.relative_gap(meta_grad(algorithm, task)[0], jax.grad(loss)(params)) < 1e-12


@pytest.mark.parametrize("low_memory", [False, True])
def test_truncated_steps_have_their_own_keys(x64, low_memory):
    """Truncation changes gradients and no values."""
    task, key = stream_task(4), jax.random.key(2)
    losses = [
        meta_grad(metajax.test_time_training(LOSS, SGD, 4, **settings), task, key)[1]
        for settings in ({}, {"truncate": 2, "low_memory": low_memory})
    ]
    assert problems.relative_gap(*losses) < 1e-12


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("truncate", [0, 1])
def test_batches_have_first_order_gradients(x64, truncate, micro_batches):
    """Chunks may come from the meta-parameters: features computed once, say."""

    def loss_fn(params, batch, rng):
        return jnp.mean((batch["x"] @ params["w"]) ** 3) + batch["count"].sum() * 0.0, {}

    def features(params, task):
        chunks = {"x": params["scale"] * task.support, "count": jnp.zeros((3, 4), int)}
        return {"w": params["w"]}, metajax.Task(chunks, task.query), lambda few: few

    def expected(params):
        stop, w, losses = jax.lax.stop_gradient, params["w"], []
        for k in range(3):
            stopped = k < 3 - truncate
            chunk = {"x": params["scale"] * chunks[k], "count": jnp.zeros(4, int)}
            at = (w, stop(chunk)) if stopped else (w, chunk)
            grads = jax.grad(lambda w, chunk: loss_fn({"w": w}, chunk, None)[0])(*at)
            losses.append(loss_fn({"w": w}, chunk, None)[0])
            w = w - 0.05 * (stop(grads) if stopped else grads)
        return jnp.stack(losses).mean()

    draw = np.random.default_rng(0)
    chunks = jnp.asarray(draw.normal(size=(3, 4, 5)))
    params = {"w": jnp.asarray(draw.normal(size=5)), "scale": jnp.float64(0.7)}
    algorithm = metajax.test_time_training(
        loss_fn,
        SGD,
        3,
        truncate=truncate,
        micro_batches=micro_batches,
        reparametrize=features,
    )
    grads, _ = algorithm.meta_grad(params, metajax.Task(chunks, None), None)
    assert problems.relative_gap(grads, jax.grad(expected)(params)) < 1e-12


def test_frozen_parameters_have_first_order_gradients(x64):
    """Of the losses: what the gradients of the steps contribute is left out."""
    task, params = stream_task(3), problems.mlp_params()
    is_head = lambda path: path.startswith("second")  # noqa: E731
    algorithm = metajax.test_time_training(LOSS, SGD, 3, truncate=0, trainable=is_head)
    head, expected = params["second"], []
    for k in range(4):
        chunk = task.query if k == 3 else problems.nth(task.support, k)
        grads, _ = jax.grad(LOSS, has_aux=True)({**params, "second": head}, chunk, None)
        head = jax.tree.map(lambda p, g: p - 0.05 * g, head, grads["second"])
        expected.append(grads)
    assert problems.relative_gap(algorithm.adapt(params, task.support, None)[0]["second"], head) > 0
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 4, *expected)
    assert problems.relative_gap(meta_grad(algorithm, task)[0], mean) < 1e-12


@pytest.mark.parametrize("low_memory", [False, True])
def test_without_a_query_set_the_meta_loss_is_that_of_the_chunks(x64, low_memory):
    task, params = stream_task(3), problems.mlp_params()
    algorithm = metajax.test_time_training(LOSS, SGD, 3, low_memory=low_memory)
    grads, info = meta_grad(algorithm, task._replace(query=None))
    loss, expected = jax.value_and_grad(lambda p: written_out(3, task, p)[0].mean())(params)
    assert problems.relative_gap((grads, info.query_loss), (expected, loss)) < 1e-12
    assert info.query_aux == {}


@pytest.mark.parametrize(
    ("low_memory", "num_steps"), [(False, 37), (False, 40), (True, 67), (True, 72)]
)
def test_many_steps_are_exact(optimized, x64, num_steps, low_memory):
    """In segments, of which the last is shorter if there is no divisor."""
    task, params = stream_task(num_steps), problems.mlp_params()

    def scanned(params):
        def step(params, batch):
            loss, grads = jax.value_and_grad(lambda p: LOSS(p, batch, None)[0])(params)
            return jax.tree.map(lambda p, g: p - 0.05 * g, params, grads), loss

        params, losses = jax.lax.scan(step, params, task.support)
        last = LOSS(params, task.query, None)[0]
        return (losses.sum() + last) / (num_steps + 1), (losses, last)

    (_, (losses, last)), slope = jax.jit(jax.value_and_grad(scanned, has_aux=True))(params)
    grads, info = meta_grad(
        metajax.test_time_training(LOSS, SGD, num_steps, low_memory=low_memory), task
    )
    assert problems.relative_gap(grads, slope) < 1e-12
    np.testing.assert_allclose(info.support_loss, losses, rtol=1e-12)
    maml = metajax.maml(LOSS, SGD, num_steps, stream=True, low_memory=low_memory)
    grads, info = meta_grad(maml, task)
    slope = jax.jit(jax.grad(lambda params: scanned(params)[1][1]))(params)
    assert problems.relative_gap(grads, slope) < 1e-12
    np.testing.assert_allclose(info.query_loss, last, rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 7, 16, 37])
def test_a_segmented_scan_is_a_scan(x64, count):
    def last_and_sum(run, start, scale):
        def step(x, inputs):
            x = jnp.sin(scale * x + inputs)
            return x, x * inputs

        x, seen = run(step, start, jnp.cos(jnp.arange(count) * scale))
        return x + 3 * (seen @ seen), seen

    def gradient(run):
        both = jax.grad(functools.partial(last_and_sum, run), (0, 1), has_aux=True)
        return jax.jit(both)(jnp.float64(0.3), jnp.float64(0.7))

    assert problems.relative_gap(gradient(segmented_scan), gradient(jax.lax.scan)) < 1e-12


def megabytes(make, num_steps, examples=128, **settings):
    """Of temporary memory, with 1 MB of parameters and, per step, of activations."""

    def loss_fn(params, batch, rng):
        for _ in range(4):
            batch = jnp.tanh(batch @ params)
        return jnp.mean(batch**2), {}

    algorithm = make(loss_fn, optax.sgd(0.1), num_steps, **settings)
    shape = jax.ShapeDtypeStruct
    support = shape((num_steps, examples, 512), jnp.float32)
    query = shape((128, 512), jnp.float32)
    program = jax.jit(algorithm.meta_grad).lower(
        shape((512, 512), jnp.float32), metajax.Task(support, query), None
    )
    return program.compile().memory_analysis().temp_size_in_bytes / 2**20


@pytest.mark.parametrize("low_memory", [False, True])
def test_memory_grows_with_the_root_of_the_steps(low_memory):
    make = metajax.test_time_training
    few, many = (megabytes(make, steps, low_memory=low_memory) for steps in (100, 400))
    # A stored step is 9 MB; with low memory, 1 MB.
    assert many < 2.3 * few
    assert low_memory == (many < 60)


@pytest.mark.parametrize(("low_memory", "most"), [(False, 16), (True, 64)])
def test_segments_begin_where_they_need_less_memory(low_memory, most):
    def segmented(num_steps):
        algorithm = metajax.maml(LOSS, SGD, num_steps, stream=True, low_memory=low_memory)
        task, params = stream_task(num_steps), problems.mlp_params()
        return "remat" in str(jax.make_jaxpr(algorithm.meta_grad)(params, task, None))

    assert [segmented(most), segmented(most + 1)] == [False, True]


def test_one_micro_batch_at_a_time_is_in_memory():
    settings = {"stream": True, "examples": 2048}
    whole, split = (megabytes(metajax.maml, 1, micro_batches=m, **settings) for m in (1, 8))
    assert split < whole / 2


def test_frozen_parameters_are_not_kept_by_step():
    def loss_fn(params, batch, rng):
        return jnp.mean((jnp.tanh(batch @ params["base"]) @ params["head"]) ** 2), {}

    def temporary(num_steps):
        algorithm = metajax.test_time_training(
            loss_fn, SGD, num_steps, low_memory=True, trainable=lambda path: path == "head"
        )
        params = {"base": jnp.zeros((512, 512)), "head": jnp.zeros((512, 2))}
        task = metajax.Task(jnp.zeros((num_steps, 4, 512)), None)
        program = jax.jit(algorithm.meta_grad).lower(params, task, None).compile()
        return program.memory_analysis().temp_size_in_bytes / 2**20

    # A copy of the base is 1 MB; the segments have a sum of its gradients each.
    assert temporary(100) < temporary(4) + 2


def test_heads_of_streams_are_those_of_all_examples():
    def features(params, batch, rng):
        return batch["x"] * params

    draw = np.random.default_rng(0)
    batch = {
        "x": jnp.asarray(draw.normal(size=(3, 4, 5))),
        "labels": jnp.asarray(draw.integers(0, 2, size=(3, 4))),
        "example_mask": jnp.ones((3, 4)).at[1, 2:].set(0),
    }
    together = jax.tree.map(lambda leaf: leaf.reshape(12, *leaf.shape[2:]), batch)
    rate = optax.sgd(0.0)
    heads = []
    for support, settings in ((batch, {"stream": True}), (together, {})):
        for algorithm in (
            metajax.proto_maml(features, 2, rate, 3, **settings),
            metajax.leopard(features, 5, 2, rate, 3, width=3, rng=jax.random.key(0), **settings),
        ):
            adapted, _ = algorithm.adapt(algorithm.init(jnp.ones(5)), support, None)
            heads.append(adapted["head"])
    assert problems.relative_gap(heads[:2], heads[2:]) < 1e-6


def test_what_does_not_fit_is_refused():
    batch = {"x": jnp.ones((3, 6, 2)), "y": jnp.ones((3, 6))}

    def adapt(support, num_steps=3, **settings):
        def loss_fn(params, batch, rng):
            return params * jnp.mean(batch["x"]), {}

        return metajax.maml(loss_fn, SGD, num_steps, **settings).adapt(0.0, support, None)

    adapt(batch, stream=True, micro_batches=2)
    with pytest.raises(ValueError, match=r"support: leaf 'x' has shape \(3, 6, 2\), but .*\(4,"):
        adapt(batch, 4, stream=True)
    with pytest.raises(ValueError, match=r"leaf 'y' has shape \(\), but a stream has one batch"):
        adapt({**batch, "y": jnp.float32(0)}, stream=True)
    with pytest.raises(ValueError, match=r"leaf 'x' of .* \(6, 2\), .*, a multiple of 4"):
        adapt(batch, stream=True, micro_batches=4)
    with pytest.raises(ValueError, match=r"leaf 'y' of .* has shape \(2,\), but micro_batches=2"):
        adapt({"x": jnp.ones((4, 2)), "y": jnp.ones(2)}, micro_batches=2)
    with pytest.raises(ValueError, match="micro_batches is 0; give"):
        adapt(batch, micro_batches=0)
    with pytest.raises(ValueError, match="truncate is -1; give"):
        inner_loop(lambda *inputs: 0.0, 3, truncate=-1)
    with pytest.raises(ValueError, match="num_steps is 0; give a number of chunks"):
        metajax.test_time_training(LOSS, SGD, 0)
    with pytest.raises(ValueError, match="first_order=True is truncate=0, but truncate is 2"):
        metajax.test_time_training(LOSS, SGD, 3, first_order=True, truncate=2)
    with pytest.raises(ValueError, match="support: is not a stream; give leaves"):
        metajax.test_time_training(LOSS, SGD).adapt(problems.mlp_params(), jnp.ones(()), None)
    with pytest.raises(TypeError, match="stream"):
        metajax.imaml(LOSS, SGD, 3, stream=True)


def test_a_stream_tells_its_length(x64):
    """Of first order, and of any length."""
    params, key = problems.mlp_params(), jax.random.key(2)
    for steps in (2, 3):
        stream = problems.nth(problems.mlp_streams(1, steps), 0)
        for first_order in (False, True):
            found = metajax.test_time_training(LOSS, SGD, first_order=first_order)
            truncate = 0 if first_order else None
            wanted = metajax.test_time_training(LOSS, SGD, steps, truncate=truncate)
            results = [
                (each.meta_grad(params, stream, key), each.adapt(params, stream.support, key))
                for each in (found, wanted)
            ]
            jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize("low_memory", [False, True])
def test_chunks_count_by_their_weights(x64, low_memory):
    """Also the query set; a chunk of weight 0 does not count."""
    task, params, weights = stream_task(4), problems.mlp_params(), jnp.array([0.0, 3.0, 1.0, 2.0])
    whole = jnp.append(weights, 4.0)

    def chunk_weights(chunks):
        return whole[:4] if len(jax.tree.leaves(chunks)[0]) == 4 else whole[4:]

    def loss(params):
        losses, last = written_out(4, task, params)
        return (whole * jnp.append(losses, last)).sum() / 10

    algorithm = metajax.test_time_training(
        LOSS, SGD, 4, low_memory=low_memory, chunk_weights=chunk_weights
    )
    grads, info = meta_grad(algorithm, task)
    assert problems.relative_gap(grads, jax.grad(loss)(params)) < 1e-12
    online = task._replace(query=None)
    found = meta_grad(algorithm, online)[1].query_loss
    np.testing.assert_allclose(found, (weights * info.support_loss).sum() / 6, rtol=1e-12)
