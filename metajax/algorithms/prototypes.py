"""Classifiers made from the features of the support set: prototypical networks and LEOPARD.

`features` is `(params, batch, rng) -> [B, D]`. A batch is a dict with `labels` int [B]. If tasks
differ in size, it also has `example_mask` [B] and `class_mask` [C].
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax.algorithms.adaptation import Adaptation, Engine
from metajax.dtypes import widen
from metajax.types import Batch, Key, MetaAlgorithm, Params, Reparametrize, Reparametrized, Task

Array: TypeAlias = Any  # jax.Array or np.ndarray.
Features = Callable[[Params, Batch, Key | None], jax.Array]


def protonet(features: Features, num_classes: int) -> MetaAlgorithm:
    """Prototypical networks (Snell, Swersky & Zemel 2017, arXiv:1703.05175).

    They take no inner steps, but compare a query with the mean feature of each class (equations 1
    and 2). The distance is half the squared Euclidean distance. The scale of the features can
    make up for the factor.

    Args:
        features: `(params, batch, rng) -> [B, D]`. A batch is a dict with `labels` int [B]. If
            tasks differ in size, it also has `example_mask` [B] and `class_mask` [C].
        num_classes: C, the maximum of the classes per task.

    Returns:
        A MetaAlgorithm whose meta_params are the given params. `adapt` returns `{"encoder",
        "head"}`; the head is a linear classifier equivalent to the distances.

    Examples:
        >>> import jax.numpy as jnp, metajax
        >>> algorithm = metajax.protonet(lambda params, batch, rng: batch["x"] * params, 2)
        >>> support = {"x": jnp.array([[0.0], [2.0], [4.0]]), "labels": jnp.array([0, 1, 1])}
        >>> adapted, _ = algorithm.adapt(jnp.ones(1), support, None)
        >>> adapted["head"]["kernel"].tolist()
        [[0.0, 3.0]]
    """
    return proto_maml(features, num_classes, optax.sgd(0.0), 0)


def proto_maml(
    features: Features,
    num_classes: int,
    inner_optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    trainable: Callable[[str], bool] | None = None,
    reparametrize: Reparametrize | None = None,
    **engine: Unpack[Engine],
) -> MetaAlgorithm:
    """MAML from a head of prototypes (Triantafillou et al. 2020, arXiv:1903.03096, section 3).

    The head starts with weights c_k and bias -|c_k|^2 / 2, so that its logits are minus half the
    squared distances. The inner steps update the head and the encoder.

    Args:
        features: `(params, batch, rng) -> [B, D]`. A batch is a dict with `labels` int [B]. If
            tasks differ in size, it also has `example_mask` [B] and `class_mask` [C].
        num_classes: C, the maximum of the classes per task.
        inner_optimizer: any optax optimizer.
        num_steps: K >= 0.
        trainable: as for `metajax.maml`. Paths begin with `encoder/` or `head/`.
        reparametrize: as for `metajax.maml`, but applied to the encoder's parameters.
        **engine: `first_order`, `low_memory`, `unroll`, `stream` and `micro_batches`, as for
            `metajax.maml`. The head of a stream is computed from all its batches.

    Returns:
        A MetaAlgorithm whose meta_params are the given params. `adapt` returns `{"encoder",
        "head"}`.

    Raises:
        ValueError: num_steps is below 0.

    Examples:
        >>> import jax.numpy as jnp, metajax, optax
        >>> features = lambda params, batch, rng: batch["x"] * params
        >>> algorithm = metajax.proto_maml(features, 2, optax.sgd(0.1), num_steps=1)
        >>> batch = {"x": jnp.array([[0.0], [2.0]]), "labels": jnp.array([0, 1])}
        >>> _, info = algorithm.meta_grad(jnp.ones(1), metajax.Task(batch, batch), None)
        >>> float(info.query_aux["accuracy"])
        1.0
    """
    stream = engine.get("stream", False)

    def init_fn(params: Params, support: Batch, rng: Key | None) -> Params:
        features_BxD, support = _support_features(features, params, support, rng, stream)
        head = prototype_head(features_BxD, support, num_classes)
        head = {name: leaf.astype(features_BxD.dtype) for name, leaf in head.items()}
        return {"encoder": params, "head": head}

    def encoder_alone(params: Params, task: Task) -> Reparametrized:
        assert reparametrize is not None
        params, task, undo = reparametrize(params, task)
        return params, task, _undo_encoder(undo)

    def loss_fn(params: Params, batch: Batch, rng: Key | None) -> tuple[jax.Array, Any]:
        head = params["head"]
        logits_BxC = features(params["encoder"], batch, rng) @ head["kernel"] + head["bias"]
        return classify(logits_BxC, batch)

    return Adaptation(
        loss_fn,
        num_steps,
        trainable=trainable,
        reparametrize=reparametrize and encoder_alone,
        init_fn=init_fn,
        **engine,
    ).algorithm(inner_optimizer)


def leopard(
    features: Features,
    feature_size: int,
    num_classes: int,
    inner_optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    width: int,
    rng: Key,
    trainable: Callable[[str], bool] | None = None,
    reparametrize: Reparametrize | None = None,
    **engine: Unpack[Engine],
) -> MetaAlgorithm:
    """LEOPARD: generate a classifier for any number of classes (Bansal et al. 2020).

    See https://arxiv.org/abs/1911.03863. A two-layer generator maps the features of each support
    example to weights and a bias. Their mean over each class is the head (equations 2 and 3). A
    second two-layer network projects the features of a query before the head (equation 4). The
    inner steps update all parameters except for the generator.

    Args:
        features: `(params, batch, rng) -> [B, D]`. A batch is a dict with `labels` int [B]. If
            tasks differ in size, it also has `example_mask` [B] and `class_mask` [C].
        feature_size: D.
        num_classes: C, the maximum of the classes per task.
        inner_optimizer: any optax optimizer. (The paper also learns its rates.)
        num_steps: K >= 0.
        width: size of the generated weights and of both networks' layers.
        rng: key for the initial weights of the two networks.
        trainable: as for `metajax.maml`. Paths begin with `encoder/`, `projection/` or `head/`.
        reparametrize: as for `metajax.maml`, but applied to the encoder's parameters.
        **engine: `first_order`, `low_memory`, `unroll`, `stream` and `micro_batches`, as for
            `metajax.maml`. The head of a stream is computed from all its batches.

    Returns:
        A MetaAlgorithm whose meta_params are `{"encoder", "generator", "projection"}`. `adapt`
        returns `{"encoder", "projection", "head"}`.

    Raises:
        ValueError: num_steps is below 0.

    Examples:
        >>> import jax, jax.numpy as jnp, metajax, optax
        >>> features = lambda params, batch, rng: batch["x"] * params
        >>> algorithm = metajax.leopard(
        ...     features, 1, 2, optax.sgd(0.1), 1, width=4, rng=jax.random.key(0))
        >>> support = {"x": jnp.array([[0.0], [2.0]]), "labels": jnp.array([0, 1])}
        >>> adapted, _ = algorithm.adapt(algorithm.init(jnp.ones(1)), support, None)
        >>> adapted["head"]["kernel"].shape
        (4, 2)
    """
    stream = engine.get("stream", False)

    def init(params: Params) -> Params:
        keys = jax.random.split(rng)
        return {
            "encoder": params,
            "generator": _two_layers(keys[0], (feature_size, width, width + 1)),
            "projection": _two_layers(keys[1], (feature_size, width, width)),
        }

    def init_fn(params: Params, support: Batch, rng: Key | None) -> Params:
        encoder = params["encoder"]
        features_BxD, support = _support_features(features, encoder, support, rng, stream)
        generated_BxW = _apply_two_layers(params["generator"], features_BxD)
        mean_CxW = class_means(generated_BxW, support, num_classes).astype(generated_BxW.dtype)
        head = {"kernel": mean_CxW[:, :-1].T, "bias": mean_CxW[:, -1]}
        return {**{key: params[key] for key in ("encoder", "projection")}, "head": head}

    def loss_fn(params: Params, batch: Batch, rng: Key | None) -> tuple[jax.Array, Any]:
        features_BxD = features(params["encoder"], batch, rng)
        projected_BxW = _apply_two_layers(params["projection"], features_BxD)
        head = params["head"]
        return classify(projected_BxW @ head["kernel"] + head["bias"], batch)

    return Adaptation(
        loss_fn,
        num_steps,
        trainable=trainable,
        reparametrize=reparametrize and functools.partial(_encoder_alone, reparametrize),
        init_fn=init_fn,
        **engine,
    ).algorithm(inner_optimizer, init)


def _support_features(
    features: Features, params: Params, support: Batch, rng: Key | None, stream: bool
) -> tuple[jax.Array, Batch]:
    """Return the features of a support set or of all batches of a stream, and their labels."""
    if not stream:
        return features(params, support, rng), support
    features_KxBxD = jax.vmap(lambda batch: features(params, batch, rng))(support)
    flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])  # noqa: E731
    labelled = {key: support[key] for key in ("labels", "example_mask") if key in support}
    return flat(features_KxBxD), jax.tree.map(flat, labelled)


def _encoder_alone(reparametrize: Reparametrize, params: Params, task: Task) -> Reparametrized:
    """Reparametrize only `params["encoder"]`."""
    encoder, task, undo = reparametrize(params["encoder"], task)
    return {**params, "encoder": encoder}, task, _undo_encoder(undo)


def _undo_encoder(undo: Callable[[Params], Params]) -> Callable[[Params], Params]:
    return lambda adapted: {**adapted, "encoder": undo(adapted["encoder"])}


def _two_layers(rng: Key, sizes: tuple[int, int, int]) -> Params:
    """Initialize a network with one hidden layer: Glorot's weights, and biases of zero."""
    normal = jax.nn.initializers.glorot_normal()
    first, second = jax.random.split(rng)
    return {
        "first": {"kernel": normal(first, sizes[:2]), "bias": jnp.zeros(sizes[1])},
        "second": {"kernel": normal(second, sizes[1:]), "bias": jnp.zeros(sizes[2])},
    }


def _apply_two_layers(params: Params, x_BxD: jax.Array) -> jax.Array:
    hidden = jnp.tanh(widen(x_BxD) @ params["first"]["kernel"] + params["first"]["bias"])
    return hidden @ params["second"]["kernel"] + params["second"]["bias"]


def prototype_head(features_BxD: Array, batch: Batch, num_classes: int) -> dict[str, Array]:
    """Return the linear classifier by the distance to the prototypes.

    Its logits are minus half the squared distances, up to a constant per example:
    -|f - c|^2 / 2 = f c - |c|^2 / 2 - |f|^2 / 2 (Snell et al. 2017, section 2.4).

    Args:
        features_BxD: features of the support set, JAX or NumPy arrays.
        batch: dict with `labels` int [B]. If there is padding, also `example_mask` [B].
        num_classes: C.

    Returns:
        `kernel` [D, C] and `bias` [C], in float32 or wider, of the same array type as the features.
        They are zero for a class without examples.
    """
    mean_CxD = class_means(features_BxD, batch, num_classes)
    return {"kernel": mean_CxD.T, "bias": -0.5 * (mean_CxD**2).sum(1)}


def class_means(features_BxD: Array, batch: Batch, num_classes: int) -> Array:
    """Return the mean feature of each class [C, D], in float32 or wider; 0 without examples."""
    wide_BxD = widen(features_BxD)
    member_BxC = (batch["labels"][:, None] == np.arange(num_classes)).astype(wide_BxD.dtype)
    if "example_mask" in batch:
        member_BxC = member_BxC * batch["example_mask"].astype(wide_BxD.dtype)[:, None]
    count_C = member_BxC.sum(0)
    return (wide_BxD.T @ member_BxC / (count_C + (count_C == 0).astype(count_C.dtype))).T


def classify(logits_BxC: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the mean cross-entropy and `accuracy` over the examples, without masked ones."""
    logits_BxC = widen(logits_BxC)
    if "class_mask" in batch:
        logits_BxC = jnp.where(batch["class_mask"].astype(bool), logits_BxC, -1e9)
    labels_B = batch["labels"]
    weights_B = batch.get("example_mask", jnp.ones(labels_B.shape)).astype(logits_BxC.dtype)
    share_B = weights_B / jnp.maximum(weights_B.sum(), 1)
    losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxC, labels_B)
    correct_B = (logits_BxC.argmax(1) == labels_B).astype(logits_BxC.dtype)
    return (losses_B * share_B).sum(), {"accuracy": (correct_B * share_B).sum()}
