"""Networks that encode each text of a pair by itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.data import Tokens
from metajax.data.batches import token_batch
from metajax.data.packing import Shape, pack
from metajax.models import (
    Transformer,
    classification_loss,
    contrastive_loss,
    cosine_loss,
    from_pretrained,
    save_pretrained,
    with_head,
)
from tests.models.helpers import ENCODERS, TINY

LENGTHS = np.array([[3, 5], [4, 2], [1, 1]])  # Of the two texts of each pair.


def make_pairs():
    """Return a packed batch of three pairs, and a padded one of their six texts."""
    ids = np.random.default_rng(0).integers(5, TINY.vocab_size, (6, 5))
    lengths = LENGTHS.reshape(-1)
    mask = np.arange(5) < lengths[:, None]
    alone = {"input_ids": ids * mask, "attention_mask": mask * 1, "token_type_ids": 0 * ids}
    rows, types = np.zeros((3, 8), np.int32), np.zeros((3, 8), np.int8)
    for pair, (first, second) in enumerate(LENGTHS):
        rows[pair, : first + second] = np.concatenate(
            [ids[2 * pair, :first], ids[2 * pair + 1, :second]]
        )
        types[pair, first : first + second] = 1
    tokens = Tokens(rows, types, LENGTHS.sum(1), truncated=0, apart=True)
    batch = pack(token_batch(tokens, np.arange(3), 8), Shape(2, 8))
    return batch, {name: jnp.asarray(leaf) for name, leaf in alone.items()}


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [
        *(("bert", pooling) for pooling in ("mean", "cls", "last", "weighted-mean")),
        *((kind, "mean") for kind in ("roberta", "mpnet", "deberta-v2", "modernbert")),
    ],
)
@pytest.mark.usefixtures("x64")
def test_features_of_a_pair_compare_those_of_its_texts(kind, pooling):
    config = dataclasses.replace(TINY, model_type=kind, **ENCODERS.get(kind, {}))
    model = Transformer(config, pooling=pooling, feature_norm=3.0)
    params = jax.tree.map(lambda leaf: leaf.astype(float), model.init(jax.random.key(0)))
    batch, alone = make_pairs()
    vectors = np.asarray(jax.jit(model.features)(params, alone))
    u, v = vectors[0::2], vectors[1::2]
    found = jax.jit(model.replace(siamese=True).features)(params, batch)
    np.testing.assert_allclose(found, np.concatenate([np.abs(u - v), u * v], 1), atol=1e-12)


def test_the_head_of_a_siamese_network_reads_pairs():
    model = Transformer(TINY, "classification", "mean", feature_norm=3.0, siamese=True)
    params = model.init(jax.random.key(0))
    assert params["classifier"]["kernel"].shape == (1, 2 * TINY.hidden_size, 2)
    batch, alone = make_pairs()
    features = np.asarray(jax.jit(model.features)(params, batch))
    logits = jax.jit(model)(params, batch).logits
    np.testing.assert_allclose(logits, features @ params["classifier"]["kernel"][0], atol=1e-5)
    labelled = batch | {"labels": jnp.array([0, 1, 1])}
    assert jax.jit(classification_loss(model))(params, labelled, None)[0].shape == ()
    one = {"labels": jnp.array([1])}  # It would go with any number of features.
    for other in (alone, batch | {"first_token": batch["first_token"][:3]}, batch | one):
        with pytest.raises(ValueError, match="encodes each text of a pair by itself; give a pack"):
            model(params, other)


def test_contrastive_learning_of_pairs_uses_cosines_of_their_features():
    model = Transformer(TINY, pooling="mean", feature_norm=3.0, siamese=True)
    params, (batch, _) = model.init(jax.random.key(0)), make_pairs()
    features = np.asarray(jax.jit(model.features)(params, batch), float)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    labels, losses = np.array([0, 1, 1]), []
    for row, other in ((1, 2), (2, 1)):
        rest = np.delete(cosines[row] / 0.1, row)
        losses.append(np.log(np.exp(rest).sum()) - cosines[row, other] / 0.1)
    batch |= {"labels": labels}
    found, _ = jax.jit(contrastive_loss(model))(params, batch, None)
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-4)
    found, _ = jax.jit(cosine_loss(model))(params, batch, None)
    expected = ((1 - cosines[1, 2]) ** 2 + np.mean(cosines[0, 1:] ** 2)) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_siamese_classifier_is_saved_and_its_encoder_is_a_plain_one(tmp_path):
    model = Transformer(TINY, "classification", "mean", feature_norm=3.0, siamese=True)
    params = model.init(jax.random.key(0))
    save_pretrained(tmp_path, model, params)
    again, same = from_pretrained(str(tmp_path), "classification")
    assert dataclasses.replace(again, source=None) == model
    jax.tree.map(np.testing.assert_array_equal, same, params)
    assert not from_pretrained(str(tmp_path))[0].siamese
    assert not from_pretrained(str(tmp_path), "classification", num_labels=3)[0].siamese
    assert not with_head(model, params, head="encoder")[0].siamese
