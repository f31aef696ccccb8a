"""Losses of features, against sums over pairs in numpy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models import Transformer, contrastive_loss, cosine_loss
from tests.models.helpers import TINY, make_batch, make_params


def six_texts():
    """A network, its parameters, a batch and the features, of unit length, of its texts."""
    model = Transformer(TINY, pooling="mean", feature_norm=3.0)
    params = make_params(model, dtype=jnp.float64)
    batches = [make_batch(seed) for seed in (0, 1)]
    batch = {name: jnp.concatenate([each[name] for each in batches]) for name in batches[0]}
    batch["labels"] = jnp.array([0, 1, 0, 1, 0, 2])
    return model, params, batch, np.asarray(jax.jit(model.features)(params, batch)) / 3


@pytest.mark.usefixtures("x64")
def test_contrastive_loss_is_equation_2():
    """Khosla et al. 2020; the class of the last example has no other example."""
    model, params, batch, features = six_texts()
    labels = np.asarray(batch["labels"])
    losses = []
    for i in range(5):
        others = [j for j in range(6) if j != i]
        total = sum(np.exp(features[i] @ features[j] / 0.2) for j in others)
        same = [j for j in others if labels[j] == labels[i]]
        shares = [np.log(np.exp(features[i] @ features[j] / 0.2) / total) for j in same]
        losses.append(-np.mean(shares))
    loss_fn = contrastive_loss(model, temperature=0.2)
    loss, aux = loss_fn(params, batch, None)
    assert loss == pytest.approx(np.mean(losses), rel=1e-9)
    assert aux == {}
    alone = {**batch, "labels": jnp.arange(6)}
    assert float(loss_fn(params, alone, None)[0]) == 0
    assert all(
        np.isfinite(g).all()
        for g in jax.tree.leaves(jax.grad(lambda p: loss_fn(p, alone, None)[0])(params))
    )


@pytest.mark.usefixtures("x64")
def test_cosine_loss_is_the_squared_error_of_all_pairs():
    model, params, batch, features = six_texts()
    labels, errors = np.asarray(batch["labels"]), {True: [], False: []}
    for i, j in itertools.permutations(range(6), 2):
        same = bool(labels[i] == labels[j])
        errors[same].append((features[i] @ features[j] - same) ** 2)
    loss_fn = cosine_loss(model)
    loss, aux = loss_fn(params, batch, None)
    assert loss == pytest.approx((np.mean(errors[True]) + np.mean(errors[False])) / 2, rel=1e-9)
    assert aux == {}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("same", [True, False])
def test_cosine_loss_needs_no_pairs_of_both_kinds(same):
    model, params, batch, features = six_texts()
    labels = jnp.zeros(6, int) if same else jnp.arange(6)
    errors = [
        (features[i] @ features[j] - same) ** 2 for i, j in itertools.permutations(range(6), 2)
    ]
    loss, _ = cosine_loss(model)(params, {**batch, "labels": labels}, None)
    assert loss == pytest.approx(np.mean(errors) / 2, rel=1e-9)
