"""Losses of features, over all pairs of a batch."""

from typing import Any

import jax
import jax.numpy as jnp

from metajax.dtypes import widen
from metajax.models.attention import MASKED
from metajax.models.contracts import Batch, Params
from metajax.models.heads import rescale
from metajax.models.losses import weighted_mean
from metajax.models.model import Transformer
from metajax.types import LossFn


def contrastive_loss(model: Transformer, *, temperature: float = 0.1) -> LossFn:
    """Supervised contrastive loss over all pairs of a batch (Khosla et al. 2020, arXiv:2004.11362).

    It draws the features of a class together and those of other classes apart: equation 2 of the
    paper, the mean over the examples whose class has another example in the batch.

    Args:
        model: the model that computes `features`, which are scaled to unit length here. It needs no
            head.
        temperature: divides the cosines.

    Returns:
        `(params, batch, rng) -> (loss, aux)`. The batch is a batch for `features` with `labels` int
        `[B]`. The loss is `[]`, 0 if no class has two examples. aux is empty.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from metajax.models import Transformer, TransformerConfig, contrastive_loss
        >>> config = TransformerConfig(9, hidden_size=12, num_hidden_layers=1)
        >>> model = Transformer(config, pooling="mean")
        >>> ids = jnp.array([[1, 2], [1, 2], [5, 6], [7, 8]])
        >>> batch = {"input_ids": ids, "attention_mask": 0 * ids + 1, "token_type_ids": 0 * ids}
        >>> params = model.init(jax.random.key(0))
        >>> loss_fn = contrastive_loss(model)
        >>> same, mixed = jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 0, 1])
        >>> losses = [loss_fn(params, {**batch, "labels": y}, None)[0] for y in (same, mixed)]
        >>> bool(losses[0] < losses[1])
        True
    """

    def loss_fn(
        params: Params, batch: Batch, rng: jax.Array | None
    ) -> tuple[jax.Array, dict[str, Any]]:
        cosines_BxB = _cosines(model, params, batch, rng) / temperature
        others_BxB = ~jnp.eye(len(cosines_BxB), dtype=bool)
        cosines_BxB = jnp.where(others_BxB, cosines_BxB, MASKED)
        same_BxB = (batch["labels"][:, None] == batch["labels"]) & others_BxB
        shares_BxB = jnp.where(same_BxB, jax.nn.log_softmax(cosines_BxB), 0)
        count_B = same_BxB.sum(1)
        losses_B = -shares_BxB.sum(1) / jnp.maximum(count_B, 1)
        return weighted_mean(losses_B, (count_B > 0).astype(losses_B.dtype)), {}

    return loss_fn


def cosine_loss(model: Transformer) -> LossFn:
    """Squared error of the cosines of all pairs of a batch.

    The target is 1 for two examples of a class and 0 for others. Each kind of pair has half of the
    weight. SetFit (Tunstall et al. 2022, arXiv:2209.11055) computes this loss on sampled pairs.

    Args:
        model: as for `contrastive_loss`.

    Returns:
        As for `contrastive_loss`. Without a pair of a kind, that half is 0.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from metajax.models import Transformer, TransformerConfig, cosine_loss
        >>> config = TransformerConfig(9, hidden_size=12, num_hidden_layers=1)
        >>> model = Transformer(config, pooling="mean")
        >>> ids = jnp.array([[1, 2], [1, 2]])
        >>> batch = {"input_ids": ids, "attention_mask": 0 * ids + 1, "token_type_ids": 0 * ids}
        >>> params = model.init(jax.random.key(0))
        >>> loss_fn = cosine_loss(model)
        >>> same, mixed = jnp.array([0, 0]), jnp.array([0, 1])  # Of equal texts: a cosine of 1.
        >>> losses = [loss_fn(params, {**batch, "labels": y}, None)[0] for y in (same, mixed)]
        >>> [round(float(loss), 4) for loss in losses]
        [0.0, 0.5]
    """

    def loss_fn(
        params: Params, batch: Batch, rng: jax.Array | None
    ) -> tuple[jax.Array, dict[str, Any]]:
        cosines_BxB = _cosines(model, params, batch, rng)
        equal_BxB = batch["labels"][:, None] == batch["labels"]
        same_BxB = equal_BxB & ~jnp.eye(len(equal_BxB), dtype=bool)
        of_same = weighted_mean((cosines_BxB - 1) ** 2, same_BxB.astype(cosines_BxB.dtype))
        of_others = weighted_mean(cosines_BxB**2, (~equal_BxB).astype(cosines_BxB.dtype))
        return (of_same + of_others) / 2, {}

    return loss_fn


def _cosines(model: Transformer, params: Params, batch: Batch, rng: jax.Array | None) -> jax.Array:
    features_BxH = rescale(widen(model.features(params, batch, rng)), 1.0)
    return features_BxH @ features_BxH.T
