"""Encoders whose blocks are not BERT's: against transformers, packed, and in meta-learning."""

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
from metajax.models import (
    Transformer,
    bert,
    classification_loss,
    compose,
    convert,
    init_prefix,
    mentioned_rows,
    prototype_init,
    save_pretrained,
    separate_layers,
    upper_layers,
)
from metajax.models.mpnet import buckets, relative_bias
from metajax.models.renaming import from_bert
from tests.models.helpers import ENCODERS, TINY, make_batch, make_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from benchmarks import parity  # noqa: E402 (it imports them)

pytestmark = pytest.mark.usefixtures("x64")
RATE, STEPS = 0.3, 2


def make_config(model_type, **changes):
    settings = {"model_type": model_type, "layer_norm_eps": 0.05, **ENCODERS[model_type]}
    return dataclasses.replace(TINY, **settings | changes)


def make_model(model_type, head="classification", **changes):
    return Transformer(make_config(model_type, **changes), head=head, num_labels=(3,))


def without_dropout(model):
    loss_fn = classification_loss(model)
    return lambda params, batch, rng: loss_fn(params, batch, None)


def labelled(seed, packed=False, **sizes):
    batch = make_batch(seed, **sizes)
    if packed:
        batch = pack({key: np.asarray(value) for key, value in batch.items()}, Shape(2, 9))
    return batch | {"labels": jnp.array([2, 0, 1])}


def outputs_of(outputs, head):
    return outputs.last_hidden_state if head == "encoder" else outputs.logits


# The other heads include the encoder.
@pytest.mark.parametrize(
    "head", [pytest.param("encoder", marks=pytest.mark.slow), "masked_lm", "classification"]
)
@pytest.mark.parametrize("model_type", ENCODERS)
def test_outputs_and_gradients_are_transformers(tmp_path, model_type, head):
    """Outputs to 1e-12, and the gradient of every parameter."""
    model = make_model(model_type, head, max_position_embeddings=150)
    params = make_params(model, dtype=jnp.float64)
    save_pretrained(tmp_path, model, params)
    kind = parity.class_of(model_type, head)
    # Long enough for every bucket of distances; no token is like padding.
    batch = make_batch(length=140)
    ids = jnp.maximum(batch["input_ids"], 2) * batch["attention_mask"]
    batch["input_ids"] = ids + model.config.pad_token_id * (1 - batch["attention_mask"])
    names = ("input_ids", "attention_mask")
    given = {name: torch.tensor(np.asarray(batch[name])).long() for name in names}
    batch["token_type_ids"] *= 0
    with parity.in_float64(kind):
        theirs = kind.from_pretrained(
            tmp_path, dtype=torch.float64, attn_implementation="eager"
        ).eval()
        if model.config.family.rotary:
            parity.widen_rotation(theirs)
        expected = outputs_of(theirs(**given), head)
    weights = np.random.RandomState(0).standard_normal(expected.shape)
    if weights.ndim == 3:
        weights *= np.asarray(batch["attention_mask"])[:, :, None]

    def weighted(params):
        ours = outputs_of(model(params, batch), head)
        return (ours * weights).sum(), ours

    grads, ours = jax.jit(jax.grad(weighted, has_aux=True))(params)
    gap = np.abs((ours - expected.detach().numpy()) * (weights != 0)).max()
    assert gap < 1e-12 * max(1, expected.abs().max().item())
    (expected * torch.tensor(weights)).sum().backward()
    tensors = convert.to_hugging_face(grads)
    if head == "classification":
        for name in ("weight", "bias"):
            tensors[f"classifier.{name}"] = tensors.pop(f"classifier.0.{name}")
    found = from_bert(tensors, model_type, model.config.first_position, head)
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            size = max(1, parameter.grad.abs().max().item())
            np.testing.assert_allclose(
                found[name], parameter.grad.numpy(), atol=1e-11 * size, err_msg=name
            )


@pytest.mark.parametrize("pooling", ["mean", "pooler"])
@pytest.mark.parametrize("model_type", ENCODERS)
def test_packed_rows_change_nothing(model_type, pooling):
    model = make_model(model_type).replace(pooling=pooling)
    params = make_params(model, dtype=jnp.float64)
    run = jax.jit(jax.value_and_grad(classification_loss(model), has_aux=True))
    expected, found = (run(params, labelled(0, packed), None) for packed in (False, True))
    assert relative_gap(found, expected) < 1e-12


@pytest.mark.parametrize("model_type", ENCODERS)
def test_a_few_rows_at_a_time_change_nothing(model_type, monkeypatch):
    model = make_model(model_type)
    params, batch = make_params(model, dtype=jnp.float64), labelled(0)

    def run(model):
        loss_fn = jax.value_and_grad(classification_loss(model), has_aux=True)
        return jax.jit(loss_fn)(params, batch, None)

    expected = run(model)
    monkeypatch.setitem(bert._CHUNK_TOKENS, "cpu", 8)
    assert relative_gap(run(model.replace(remat=True)), expected) < 1e-12


def nested(loss_fn, params, task, trainable, *, first_order=False):
    """Return the gradient of the query loss after gradient descent on some parameters."""

    def meta_loss(params):
        for _ in range(STEPS):
            grads = jax.grad(loss_fn, has_aux=True)(params, task.support, None)[0]
            grads = jax.lax.stop_gradient(grads) if first_order else grads
            params = jax.tree.map(
                lambda leaf, grad, rate: leaf - RATE * rate * grad, params, grads, trainable
            )
        return loss_fn(params, task.query, None)[0]

    return jax.jit(jax.grad(meta_loss))(params)


def of_engine(model_type, settings):
    """Low memory and first order of one kind of block: they do not depend on what is in a block."""
    quick = not settings or model_type == "deberta-v2"
    return pytest.param(model_type, settings, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        of_engine(model_type, settings)
        for model_type in ENCODERS
        for settings in ({}, {"low_memory": True}, {"first_order": True})
    ],
)
def test_maml_is_nested_grad(model_type, settings):
    model = make_model(model_type)
    params, loss_fn = make_params(model, dtype=jnp.float64), without_dropout(model)
    task = metajax.Task(labelled(1, packed=True), labelled(2))
    reparametrize = compose(separate_layers(), mentioned_rows(model))
    algorithm = metajax.maml(
        loss_fn, optax.sgd(RATE), STEPS, reparametrize=reparametrize, **settings
    )
    found, _ = jax.jit(algorithm.meta_grad)(params, task, None)
    ones = jax.tree.map(lambda leaf: 1.0, params)
    first_order = settings.get("first_order", False)
    assert relative_gap(found, nested(loss_fn, params, task, ones, first_order=first_order)) < 1e-11


@pytest.mark.parametrize(
    ("model_type", "count"),
    [
        ("mpnet", 1),  # Its blocks share relative positions.
        ("modernbert", 1),  # Its blocks differ by their number.
        pytest.param("albert", 0, marks=pytest.mark.slow),  # All its blocks are one.
        pytest.param("deberta-v2", 1, marks=pytest.mark.slow),
    ],
)
def test_upper_layers_alone_are_nested_grad(model_type, count):
    """The gradient also goes through what is computed once, such as relative positions."""
    model = make_model(model_type)
    params, loss_fn = make_params(model, dtype=jnp.float64), without_dropout(model)
    task = metajax.Task(labelled(1), labelled(2, packed=True))
    reparametrize = upper_layers(model, count)
    algorithm = metajax.maml(loss_fn, optax.sgd(RATE), STEPS, reparametrize=reparametrize)
    found, _ = jax.jit(algorithm.meta_grad)(params, task, None)
    shares = {"embeddings": 0.0, "relative": 0.0}
    trainable = {
        key: jax.tree.map(lambda leaf, key=key: shares.get(key, 1.0), value)
        for key, value in params.items()
    }
    trainable["layers"] = jax.tree.map(
        lambda leaf: (jnp.arange(len(leaf)) >= len(leaf) - count).reshape(
            -1, *[1] * (leaf.ndim - 1)
        ),
        params["layers"],
    )
    assert relative_gap(found, nested(loss_fn, params, task, trainable)) < 1e-11
    adapted, _ = jax.jit(algorithm.adapt)(params, task.support, None)
    for key in shares.keys() & params.keys():
        jax.tree.map(np.testing.assert_array_equal, adapted[key], params[key])


@pytest.mark.parametrize("model_type", ENCODERS)
def test_adapters_and_vectors_before_the_text_adapt(model_type):
    """LoRA beside a shared base is LoRA merged into it, also in packed rows."""
    model = make_model(model_type)
    params = make_params(model, dtype=jnp.float64)
    task = metajax.Task(labelled(1), labelled(2, packed=True))
    params = init_prefix(params, 2, jax.random.key(3))
    target = lambda path: path == "layers/qkv/kernel"  # noqa: E731
    with_adapters = lora.init(params, rank=2, target=target, rng=jax.random.key(2))

    def run(combine):
        algorithm = metajax.maml(
            lora.loss(without_dropout(model), combine),
            optax.sgd(RATE),
            1,
            trainable=lambda path: lora.is_adapter(path) or path == "base/prefix/vectors",
            init_fn=lora.init_fn(prototype_init(model)),
        )
        return jax.jit(algorithm.meta_grad)(with_adapters, task, None)[0]

    found = run(lora.attach)
    assert relative_gap(found, run(lora.merge)) < 1e-11
    assert np.abs(found["base"]["prefix"]["vectors"]).max() > 1e-4


def test_buckets_are_transformers():
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    distances = np.arange(-600, 601)
    expected = MPNetEncoder.relative_position_bucket(torch.tensor(distances)).numpy()
    np.testing.assert_array_equal(buckets(distances), expected)
    assert buckets(np.array([0, -1, 1, -7, -8, -128, 500])).tolist() == [0, 1, 17, 7, 8, 15, 31]


def test_the_bias_is_that_of_each_distance():
    table = np.random.RandomState(0).standard_normal((32, 2))
    found = np.asarray(relative_bias(jnp.asarray(table), 40))
    rows, columns = np.indices((40, 40))
    np.testing.assert_array_equal(found[0], table[buckets(columns - rows)].transpose(2, 0, 1))
