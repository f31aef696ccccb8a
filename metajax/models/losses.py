"""Loss functions `(params, batch, rng) -> (loss, aux)`, and initial few-shot heads."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax.algorithms.prototypes import prototype_head
from metajax.errors import InputError
from metajax.models.contracts import Batch, Params
from metajax.models.model import Transformer
from metajax.models.reparametrization import suits_layout
from metajax.types import InitFn, LossFn


def masked_lm_loss(model: Transformer) -> LossFn:
    """Cross-entropy: the mean over targets that are not padding (-1).

    Args:
        model: a model with a masked-LM head.

    Returns:
        `(params, batch, rng) -> (loss, aux)`. The batch is a batch of the model with `positions`
        and `targets` int `[B, M]`, or without positions and with targets `[B, L]`. The loss is
        `[]`. aux has `accuracy` `[]` and `count` `[]` of the targets. Without targets all are 0.

    Raises:
        ValueError: once it is used, the model has no head.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from metajax.models import Transformer, TransformerConfig, masked_lm_loss
        >>> config = TransformerConfig(9, hidden_size=12, num_hidden_layers=1)
        >>> model = Transformer(config, head="masked_lm")
        >>> ids = jnp.ones((2, 5), int)
        >>> batch = {"input_ids": ids, "attention_mask": ids, "token_type_ids": 0 * ids}
        >>> batch["positions"] = jnp.array([[0, 2], [4, 0]])
        >>> batch["targets"] = jnp.array([[3, 8], [5, -1]])
        >>> loss, aux = masked_lm_loss(model)(model.init(jax.random.key(0)), batch, None)
        >>> loss.shape, float(aux["count"])
        ((), 3.0)
    """

    def loss_fn(
        params: Params, batch: Batch, rng: jax.Array | None
    ) -> tuple[jax.Array, dict[str, Any]]:
        logits_BxMxV = _logits(model, params, batch, rng)
        targets_BxM = batch["targets"]
        weights_BxM = (targets_BxM >= 0).astype(logits_BxMxV.dtype)
        losses_BxM = optax.softmax_cross_entropy_with_integer_labels(
            logits_BxMxV, jnp.maximum(targets_BxM, 0)
        )
        correct_BxM = logits_BxMxV.argmax(-1) == targets_BxM
        return weighted_mean(losses_BxM, weights_BxM), {
            "accuracy": weighted_mean(correct_BxM, weights_BxM),
            "count": weights_BxM.sum(),
        }

    return suits_layout(loss_fn, model)


def classification_loss(model: Transformer) -> LossFn:
    """Cross-entropy, or squared error for examples whose head has one class.

    Args:
        model: a model with a classification head.

    Returns:
        `(params, batch, rng) -> (loss, aux)`. The batch is a batch of the model with `labels` `[B]`
        (int in 0..C-1; numbers for a head with one class) and optional weights of the examples,
        `example_mask` `[B]`. The loss `[]` is the weighted mean. aux has `accuracy` `[]`, the
        weighted mean over examples that have classes (0 without any).

    Raises:
        InputError: a text can have several classes or values (`problem_type`).
        ValueError: when it is called, the model has no head.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from metajax.models import Transformer, TransformerConfig
        >>> from metajax.models import classification_loss, zero_init
        >>> config = TransformerConfig(9, hidden_size=12, num_hidden_layers=1)
        >>> model = Transformer(config, head="classification")
        >>> ids = jnp.ones((2, 5), int)
        >>> batch = {"input_ids": ids, "attention_mask": ids, "token_type_ids": 0 * ids}
        >>> batch["labels"] = jnp.array([0, 1])
        >>> params = zero_init(model)(model.init(jax.random.key(0)), batch, None)
        >>> loss, aux = classification_loss(model)(params, batch, None)
        >>> round(float(loss), 4), float(aux["accuracy"])
        (0.6931, 0.5)
    """
    if model.problem_type is not None:
        raise InputError(
            f"the model's problem_type is {model.problem_type}, but this loss needs one label per "
            "text; use another loss (multi_label_loss), or model.replace(problem_type=None)"
        )

    def loss_fn(
        params: Params, batch: Batch, rng: jax.Array | None
    ) -> tuple[jax.Array, dict[str, Any]]:
        logits_BxC = _logits(model, params, batch, rng)
        labels_B = batch["labels"]
        # Logits have at least float32, whatever the dtypes of weights and labels.
        weights_B = batch.get("example_mask", jnp.ones(labels_B.shape)).astype(logits_BxC.dtype)
        task_B = batch.get("task", jnp.zeros(labels_B.shape, jnp.int32))
        regression_B = jnp.asarray(np.array(model.num_labels) == 1)[task_B]
        # Regression labels may be any number. They must not be used as indices.
        classes_B = jnp.where(regression_B, 0, labels_B).astype(jnp.int32)
        entropy_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxC, classes_B)
        squared_B = jnp.square(logits_BxC[:, 0] - labels_B.astype(logits_BxC.dtype))
        correct_B = logits_BxC.argmax(-1) == classes_B
        return weighted_mean(jnp.where(regression_B, squared_B, entropy_B), weights_B), {
            "accuracy": weighted_mean(correct_B, jnp.where(regression_B, 0, weights_B)),
        }

    return suits_layout(loss_fn, model)


def multi_label_loss(model: Transformer) -> LossFn:
    """Sigmoid cross-entropy of texts with any number of labels: the mean over labels and examples.

    Weights of the labels can make up for labels that few texts have.

    Args:
        model: a model with one classification head, whose `problem_type` is
            "multi_label_classification".

    Returns:
        `(params, batch, rng) -> (loss, aux)`. The batch is a batch of the model with `labels`
        `[B, C]`, 1 for the labels of a text and 0 for the others, and optional weights of the
        examples, `example_mask` `[B]`, and of their labels, `label_weights` `[B, C]`. The loss `[]`
        is the mean over labels of the weighted losses, then the weighted mean over examples. aux
        has `accuracy` `[]`, the mean of correct labels, without the weights of labels.

    Raises:
        InputError: the model has another problem type.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from metajax.models import Transformer, TransformerConfig, multi_label_loss, zero_init
        >>> config = TransformerConfig(9, hidden_size=12, num_hidden_layers=1)
        >>> kind = "multi_label_classification"
        >>> model = Transformer(config, "classification", num_labels=(3,), problem_type=kind)
        >>> ids = jnp.ones((2, 5), int)
        >>> batch = {"input_ids": ids, "attention_mask": ids, "token_type_ids": 0 * ids}
        >>> batch["labels"] = jnp.array([[1, 0, 1], [0, 0, 0]])
        >>> params = zero_init(model)(model.init(jax.random.key(0)), batch, None)
        >>> loss, aux = multi_label_loss(model)(params, batch, None)
        >>> round(float(loss), 4), round(float(aux["accuracy"]), 4)
        (0.6931, 0.6667)
    """
    if model.problem_type != "multi_label_classification":
        raise InputError(
            f"the model's problem_type is {model.problem_type}, but this loss needs a head with "
            'any number of labels per text; use problem_type="multi_label_classification"'
        )

    def loss_fn(
        params: Params, batch: Batch, rng: jax.Array | None
    ) -> tuple[jax.Array, dict[str, Any]]:
        logits_BxC = _logits(model, params, batch, rng)
        labels_BxC = batch["labels"].astype(logits_BxC.dtype)
        ones_B = jnp.ones(len(labels_BxC))
        weights_B = batch.get("example_mask", ones_B).astype(logits_BxC.dtype)
        losses_BxC = optax.sigmoid_binary_cross_entropy(logits_BxC, labels_BxC)
        if "label_weights" in batch:
            losses_BxC = losses_BxC * batch["label_weights"]
        correct_BxC = (logits_BxC > 0) == (labels_BxC > 0)
        return weighted_mean(losses_BxC.mean(1), weights_B), {
            "accuracy": weighted_mean(correct_BxC.mean(1), weights_B),
        }

    return suits_layout(loss_fn, model)


def prototype_init(model: Transformer) -> InitFn:
    """Initialize a head as the nearest-prototype classifier of the support set.

    Let c_k be the mean feature of class k. The head has weights c_k and bias -|c_k|^2 / 2, so its
    logits are -|f - c_k|^2 / 2 up to a constant: Proto-MAML (Triantafillou et al. 2020,
    arXiv:1903.03096, section 3). The head is differentiable with respect to the encoder.

    Args:
        model: the model that computes `features`. Its first `num_labels` is C. It needs no head.

    Returns:
        `(params, support, rng) -> params` that adds (or replaces) "classifier", a single head:
        `kernel` `[1, H, C]` and `bias` `[1, C]`; a class without examples gets zeros. The support
        set is a batch for `features` with `labels` int `[B]` and, if there is padding,
        `example_mask` `[B]`.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from metajax.models import Transformer, TransformerConfig, prototype_init
        >>> config = TransformerConfig(vocab_size=9, hidden_size=12, num_hidden_layers=1)
        >>> model = Transformer(config, head="classification", pooling="mean")
        >>> ids = jnp.array([[1, 2, 3, 4, 5], [6, 6, 7, 7, 8]])
        >>> support = {"input_ids": ids, "attention_mask": ids, "token_type_ids": 0 * ids}
        >>> support["labels"] = jnp.array([1, 0])
        >>> params = prototype_init(model)(model.init(jax.random.key(0)), support, None)
        >>> params["classifier"]["kernel"].shape, model(params, support).logits.argmax(-1).tolist()
        ((1, 12, 2), [1, 0])
    """

    def init_fn(params: Params, support: Batch, rng: jax.Array | None) -> Params:
        features_BxH = model.features(params, support, rng)
        head = prototype_head(features_BxH, support, model.num_labels[0])
        return _with_classifier(params, head["kernel"], head["bias"])

    return suits_layout(init_fn, model)


def zero_init(model: Transformer) -> InitFn:
    """Initialize a head with zeros.

    Args:
        model: the model. Its first `num_labels` is C. It needs no head.

    Returns:
        `(params, support, rng) -> params` that adds (or replaces) "classifier", a single head:
        `kernel` `[1, H, C]` and `bias` `[1, C]`. It ignores support set and key.

    Examples:
        >>> import jax.numpy as jnp
        >>> from metajax.models import Transformer, TransformerConfig, zero_init
        >>> model = Transformer(TransformerConfig(vocab_size=9, hidden_size=12), num_labels=(3,))
        >>> params = zero_init(model)({"embeddings": {"word": jnp.ones((9, 12))}}, None, None)
        >>> params["classifier"]["kernel"].shape, params["classifier"]["bias"].tolist()
        ((1, 12, 3), [[0.0, 0.0, 0.0]])
    """

    def init_fn(params: Params, support: Batch, rng: jax.Array | None) -> Params:
        del support, rng
        classes = model.num_labels[0]
        return _with_classifier(
            params, jnp.zeros((model.feature_size, classes)), jnp.zeros(classes)
        )

    return suits_layout(init_fn, model)


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the weighted mean; 0 if all weights are 0."""
    total = weights.sum()
    return (values.astype(weights.dtype) * weights).sum() / jnp.where(total > 0, total, 1)


def _with_classifier(params: Params, kernel_HxC: jax.Array, bias_C: jax.Array) -> Params:
    dtype = jax.tree.leaves(params)[0].dtype
    classifier = {"kernel": kernel_HxC[None].astype(dtype), "bias": bias_C[None].astype(dtype)}
    return {**params, "classifier": classifier}


def _logits(model: Transformer, params: Params, batch: Batch, rng: jax.Array | None) -> jax.Array:
    logits = model(params, batch, rng).logits
    if logits is None:
        raise ValueError("the model has no head; add one with with_head")
    return logits
