"""The loss of a causal LM against a plain one, its memory, and transformers' own loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.data.packing import Shape, pack
from metajax.errors import InputError
from metajax.models import Transformer, causal_lm_loss, save_pretrained
from tests.models.helpers import TINY, llama_settings, make_batch, make_params

LLAMA = dataclasses.replace(TINY, **llama_settings("llama"))
TIED = dataclasses.replace(LLAMA, tie_word_embeddings=True)
UNTIED_MODEL = Transformer(LLAMA, head="causal_lm")
TIED_MODEL = Transformer(TIED, head="causal_lm")


def packed_batch():
    return pack({key: np.asarray(value) for key, value in make_batch().items()}, Shape(2, 9))


def predictions(batch):
    """Yield row, position and weight of each token to predict, one at a time."""
    for row, column in np.ndindex(*batch["input_ids"].shape):
        if column == 0:
            continue
        if "example_ids" in batch:
            before, own = batch["example_ids"][row, column - 1 : column + 1]
            counts = before == own != -1
        else:
            counts = batch["attention_mask"][row, column - 1 : column + 1].all()
        mask = batch.get("loss_mask", jnp.ones(batch["input_ids"].shape))
        if counts:
            yield row, column, mask[row, column]


def plain_loss(model, batch):
    """As a paper defines it, over all logits at once."""
    rows, columns, weights = map(np.array, zip(*predictions(batch)))
    targets = np.asarray(batch["input_ids"])[rows, columns]

    def loss_fn(params):
        log_probs = jax.nn.log_softmax(model(params, batch).logits)
        found = log_probs[rows, columns - 1, targets]
        right = log_probs[rows, columns - 1].argmax(-1) == targets
        total = weights.sum()
        return -(found * weights).sum() / total, {
            "accuracy": (right * weights).sum() / total,
            "count": total,
        }

    return loss_fn


def masked(batch):
    random = np.random.RandomState(1)
    return batch | {"loss_mask": jnp.asarray(random.randint(0, 3, batch["input_ids"].shape) / 2)}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("model", "batch", "chunk_tokens"),
    [
        (UNTIED_MODEL, make_batch, 4),
        (TIED_MODEL, packed_batch, 5),
        pytest.param(TIED_MODEL, lambda: masked(make_batch()), 1000, marks=pytest.mark.slow),
        (UNTIED_MODEL, lambda: masked(packed_batch()), 9),
    ],
)
def test_value_gradient_and_curvature_are_those_without_chunks(model, batch, chunk_tokens):
    params, batch = make_params(model, dtype=jnp.float64), batch()
    direction = make_params(model, seed=1, dtype=jnp.float64)
    loss_fn, expected_fn = (
        causal_lm_loss(model, chunk_tokens=chunk_tokens),
        plain_loss(model, batch),
    )

    def derivatives(loss_fn):
        def both(params):
            (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
            return grads, (loss, aux)

        return jax.jit(lambda params: jax.jvp(both, (params,), (direction,)))(params)

    found = derivatives(lambda params: loss_fn(params, batch, None))
    expected = derivatives(expected_fn)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), found, expected
    )

    # Reverse over reverse, as in MAML.
    def along(params):
        grads = jax.grad(lambda params: loss_fn(params, batch, None)[0])(params)
        return sum(map(jnp.vdot, jax.tree.leaves(grads), jax.tree.leaves(direction)))

    _, (product, _) = expected
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11),
        jax.jit(jax.grad(along))(params),
        product,
    )


def test_tasks_at_once_are_those_one_by_one():
    params, loss_fn = make_params(TIED_MODEL), causal_lm_loss(TIED_MODEL, chunk_tokens=4)
    batches = [make_batch(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    run = jax.jit(jax.grad(lambda params, batch: loss_fn(params, batch, None)[0]))
    found = jax.jit(jax.vmap(run, in_axes=(None, 0)))(params, stacked)
    for number, batch in enumerate(batches):
        jax.tree.map(
            lambda ours, alone, n=number: np.testing.assert_allclose(ours[n], alone, atol=1e-6),
            found,
            run(params, batch),
        )


def test_packed_texts_lose_what_they_lose_alone():
    params, loss_fn = make_params(TIED_MODEL), jax.jit(causal_lm_loss(TIED_MODEL))
    (loss, aux), (packed, packed_aux) = (
        loss_fn(params, batch, None) for batch in (make_batch(), packed_batch())
    )
    assert aux["count"] == packed_aux["count"] == 7 + 4 + 2 - 3
    np.testing.assert_allclose(packed, loss, rtol=1e-5)


def test_targets_may_come_from_outside_the_row():
    """The last token of a chunk of a document predicts the first one of the next."""
    params, batch = make_params(TIED_MODEL), make_batch(batch=1)
    loss_fn = jax.jit(causal_lm_loss(TIED_MODEL))
    expected, aux = loss_fn(params, batch, None)
    targets = jnp.concatenate([batch["input_ids"][:, 1:], jnp.array([[-1]])], axis=1)
    found, same = loss_fn(params, batch | {"targets": targets}, None)
    assert (found, same["count"]) == (expected, aux["count"])
    _, more = loss_fn(params, batch | {"targets": targets.at[0, -1].set(0)}, None)
    assert more["count"] == aux["count"] + 1


@pytest.mark.parametrize("name", ["attention_mask", "loss_mask"])
def test_without_tokens_to_predict_the_loss_and_its_gradient_are_zero(name):
    params, batch = make_params(TIED_MODEL), make_batch()
    batch[name] = jnp.zeros_like(batch["attention_mask"])
    run = jax.jit(jax.value_and_grad(causal_lm_loss(TIED_MODEL), has_aux=True))
    (loss, aux), grads = run(params, batch, None)
    assert (loss, aux["accuracy"], aux["count"]) == (0, 0, 0)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def twice(run):
    """The gradient of a gradient's square."""
    return jax.grad(lambda *args: sum(jnp.vdot(x, x) for x in jax.tree.leaves(run(*args))))


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
    "order", ["gradient", pytest.param("second", marks=pytest.mark.slow), "meta"]
)
def test_memory_is_far_below_that_of_all_logits(order):
    """At V = 50,000; B L V floats would be 410 MB."""
    config = dataclasses.replace(
        TIED, vocab_size=50_000, num_hidden_layers=1, max_position_embeddings=32
    )
    model = Transformer(config, head="causal_lm")
    loss_fn = causal_lm_loss(model, chunk_tokens=64)
    gradient = jax.grad(lambda params, batch: loss_fn(params, batch, None)[0])
    maml = metajax.maml(loss_fn, optax.sgd(0.1), 2)
    run = {
        "gradient": gradient,
        "second": twice(gradient),
        "meta": lambda params, batch: maml.meta_grad(params, metajax.Task(batch, batch), None)[0],
    }[order]
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = dict.fromkeys(
        ("input_ids", "attention_mask"), jax.ShapeDtypeStruct((64, 32), jnp.int32)
    )
    memory = jax.jit(run).lower(params, batch).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.3 * (64 * 32 * 50_000 * 4)


def test_the_loss_is_transformers(tmp_path):
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    config = dataclasses.replace(TINY, model_type="gpt2", type_vocab_size=0, classifier_dropout=0.0)
    model = Transformer(config, head="causal_lm")
    params, batch = make_params(model), make_batch()
    save_pretrained(tmp_path, model, params)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    ids, mask = (torch.tensor(np.asarray(batch[name])).long() for name in list(batch)[:2])
    expected = theirs(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
    loss, _ = jax.jit(causal_lm_loss(model))(params, batch, None)
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_what_cannot_be_used_is_refused():
    with pytest.raises(InputError, match="head is 'encoder', but this loss needs next-token"):
        causal_lm_loss(Transformer(LLAMA))
    with pytest.raises(InputError, match="chunk_tokens is 0; it has to be at least 1"):
        causal_lm_loss(TIED_MODEL, chunk_tokens=0)
