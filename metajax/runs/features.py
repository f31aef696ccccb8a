"""Frozen features of texts, and logistic regression on them."""

import functools
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from metajax import data
from metajax.models import Transformer
from metajax.models.attention import MASKED
from metajax.platforms import full_jit, quick_jit
from metajax.training.evaluation import fit_logistic
from metajax.types import Params

_BATCH = 64


def features_of(
    model: Transformer, params: Params, examples: data.TokenizedTask, *, batch_size: int = _BATCH
) -> np.ndarray:
    """Return the features of N texts, float64 [N, H], scaled to `model.feature_norm`."""
    # Without a head, parameters have the same structure before training one and after.
    params = {name: value for name, value in params.items() if name != "classifier"}
    outputs = outputs_of(_compiled(model), model, params, examples, batch_size)
    return np.stack(list(outputs)).astype(np.float64)


@functools.lru_cache(maxsize=4)
def _compiled(model: Transformer) -> Callable[..., jax.Array]:
    return quick_jit(model.features)


@functools.lru_cache(maxsize=4)
def compiled_logits(model: Transformer, *, many: bool) -> Callable[..., jax.Array]:
    """Return `(params, batch) -> logits` of a network, which compiles once for each shape.

    Args:
        model: the network.
        many: whether there are so many texts that slower compilation pays off.
    """
    jit = full_jit if many else quick_jit
    return jit(lambda params, batch: model(params, batch).logits)


def outputs_of(
    function: Callable[..., jax.Array],
    model: Transformer,
    params: Params,
    examples: data.TokenizedTask,
    batch_size: int = _BATCH,
    *,
    head: int = 0,
) -> Iterator[np.ndarray]:
    """Yield what a compiled `(params, batch) -> [B, ...]` computes for each text, in order."""
    # Rows are longer than the longest pair only if the network reads the texts of a pair apart.
    apart = model.siamese and "prefix" not in params
    room = model.config.max_position_embeddings if apart else None
    waiting: dict[int, np.ndarray] = {}
    done = 0
    for rows, batch in data.packed_eval_batches(examples, batch_size, head=head, room=room):
        waiting |= zip(rows.tolist(), np.asarray(function(params, batch)))
        while done in waiting:
            yield waiting.pop(done)
            done += 1


def logits_on(
    model: Transformer,
    params: Params,
    examples: data.TokenizedTask,
    features: np.ndarray | None = None,
) -> np.ndarray:
    """Return the logits of the only head of a network, float64 [N, C].

    Args:
        model: the network.
        params: its parameters.
        examples: N texts.
        features: what `features_of` returns for them, if it is known.
    """
    if model.projection is not None:  # The head does not read the features themselves.
        outputs = outputs_of(compiled_logits(model, many=False), model, params, examples)
        return np.stack(list(outputs)).astype(np.float64)
    kernel, bias = (np.asarray(params["classifier"][name][0]) for name in ("kernel", "bias"))
    features = features_of(model, params, examples) if features is None else features
    return features @ kernel + bias


def logistic_head(
    features: np.ndarray,
    batch: Mapping[str, np.ndarray],
    num_classes: int,
    *,
    inverse_strength: float = 1.0,
    class_weight: str | None = None,
) -> dict[str, np.ndarray]:
    """Fit scikit-learn's logistic regression.

    Args:
        features: [N, H].
        batch: `labels` [N], all of 0..C-1.
        num_classes: C, at least 2.
        inverse_strength: scikit-learn's `C`; a smaller one regularizes more.
        class_weight: scikit-learn's; "balanced" or None.

    Returns:
        `kernel` [H, C] and `bias` [C], float64. Its softmax has the same probabilities.
    """
    fitted = fit_logistic(
        features, batch["labels"], inverse_strength=inverse_strength, class_weight=class_weight
    )
    kernel, bias = fitted.coef_.T, fitted.intercept_
    if num_classes == 2:  # scikit-learn has one logit, the difference of these two.
        kernel, bias = np.concatenate([-kernel, kernel], 1) / 2, np.concatenate([-bias, bias]) / 2
    return {"kernel": kernel, "bias": bias}


def one_vs_rest_head(features: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Fit scikit-learn's logistic regression, one for each label.

    Texts that have a label weigh as much as all others (`class_weight="balanced"`). Otherwise a
    label that one text in twenty has hardly ever gets a probability above 0.5.

    Args:
        features: [N, H].
        labels: [N, C] of 0 and 1. A label that all texts have, or none, keeps that probability.

    Returns:
        `kernel` [H, C] and `bias` [C], float64. Their sigmoids are the probabilities.
    """
    kernel = np.zeros((features.shape[1], labels.shape[1]))
    bias = np.where(labels[0] == 1, -MASKED, MASKED)
    for column in np.flatnonzero((labels != labels[0]).any(0)):
        fitted = fit_logistic(features, labels[:, column], class_weight="balanced")
        kernel[:, column], bias[column] = fitted.coef_[0], fitted.intercept_[0]
    return {"kernel": kernel, "bias": bias}
