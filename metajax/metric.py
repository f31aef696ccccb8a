"""Classifiers made from the support set's features: prototypes, and heads that start from them.

`features` is `(params, batch, rng) -> [B, D]`; a batch is a dict with `labels` int [B] and, where
tasks differ in size, `example_mask` [B] and `class_mask` [C].
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax.adaptation import adaptation
from metajax.types import Batch, Key, MetaAlgorithm, Params

Features = Callable[[Params, Batch, Key | None], jax.Array]


def protonet(features: Features, num_classes: int) -> MetaAlgorithm:
    """Prototypical networks (Snell, Swersky & Zemel 2017, arXiv:1703.05175).

    No inner steps: a query is compared with each class's mean feature (equations 1 and 2, with
    half the squared Euclidean distance, whose scale the features' own can take up).

    Args:
        features: see above.
        num_classes: C, the most classes of any task.

    Returns:
        A MetaAlgorithm whose meta_params are the params given; `adapt` gives `{"encoder",
        "head"}`, the linear classifier that the distances amount to.
    """
    return proto_maml(features, num_classes, optax.sgd(0.0), 0)


def proto_maml(
    features: Features,
    num_classes: int,
    inner_optimizer: optax.GradientTransformation,
    num_steps: int,
    **settings: Any,
) -> MetaAlgorithm:
    """MAML from a head of prototypes (Triantafillou et al. 2020, arXiv:1903.03096, section 3).

    The head starts with weights c_k and bias -|c_k|^2 / 2, so that its logits are minus half the
    squared distances; the inner steps change it and the encoder.

    Args:
        features: see above.
        num_classes: C, the most classes of any task.
        inner_optimizer: any optax optimizer.
        num_steps: K >= 0.
        **settings: `first_order`, `low_memory` and `adapted` of `metajax.maml`; paths begin with
            `encoder/` or `head/`.

    Returns:
        A MetaAlgorithm whose meta_params are the params given; `adapt` gives `{"encoder", "head"}`.
    """

    def start(params: Params, support: Batch, rng: Key | None) -> Params:
        mean_CxD = class_means(features(params, support, rng), support, num_classes)
        bias_C = -0.5 * jnp.square(mean_CxD).sum(1)
        return {"encoder": params, "head": {"kernel": mean_CxD.T, "bias": bias_C}}

    def loss_fn(params: Params, batch: Batch, rng: Key | None) -> tuple[jax.Array, Any]:
        head = params["head"]
        logits_BxC = features(params["encoder"], batch, rng) @ head["kernel"] + head["bias"]
        return classify(logits_BxC, batch)

    learner = adaptation(loss_fn, num_steps, start=start, **settings)
    return MetaAlgorithm(
        init=lambda params: params,
        adapt=functools.partial(learner.adapt, inner_optimizer),
        meta_grad=jax.grad(functools.partial(learner.query_loss, inner_optimizer), has_aux=True),
    )


def class_means(features_BxD: jax.Array, batch: Batch, num_classes: int) -> jax.Array:
    """The mean feature of each class [C, D]; 0 for one without examples."""
    onehot_BxC = jax.nn.one_hot(batch["labels"], num_classes, dtype=features_BxD.dtype)
    if "example_mask" in batch:
        onehot_BxC = onehot_BxC * batch["example_mask"][:, None]
    return onehot_BxC.T @ features_BxD / jnp.maximum(onehot_BxC.sum(0), 1)[:, None]


def classify(logits_BxC: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross-entropy over the examples, and `accuracy`; masks respected."""
    if "class_mask" in batch:
        logits_BxC = jnp.where(batch["class_mask"] > 0, logits_BxC, -1e9)
    labels_B = batch["labels"]
    weights_B = batch.get("example_mask", jnp.ones(labels_B.shape, logits_BxC.dtype))
    share_B = weights_B / jnp.maximum(weights_B.sum(), 1)
    losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxC, labels_B)
    correct_B = logits_BxC.argmax(1) == labels_B
    return (losses_B * share_B).sum(), {"accuracy": (correct_B * share_B).sum()}
