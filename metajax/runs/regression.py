"""Numbers as the labels of a task: their scale, ridge regression."""

import logging
from typing import NamedTuple

import numpy as np

from metajax import data
from metajax.errors import InputError
from metajax.types import Params

_log = logging.getLogger("metajax")
# Of ridge regression, for targets with mean 0 and standard deviation 1.
_STRENGTHS = np.logspace(-3, 3, 13)


class Scale(NamedTuple):
    """The mean and the standard deviation of a task's numbers."""

    mean: float
    deviation: float


def standardized(examples: data.TokenizedTask) -> tuple[data.TokenizedTask, Scale]:
    """Return the examples with numbers of mean 0 and standard deviation 1.

    Raises:
        InputError: all numbers are the same.
    """
    numbers = examples.labels.astype(np.float64)
    scale = Scale(float(numbers.mean()), float(numbers.std()))
    if np.ptp(numbers) == 0:
        raise InputError(
            f"{examples.name}: the label of all examples is {numbers[0]:g}; give examples with "
            "different ones"
        )
    labels = ((numbers - scale.mean) / scale.deviation).astype(np.float32)
    return examples._replace(labels=labels), scale


def with_scale(params: Params, scale: Scale) -> Params:
    """Return parameters whose head gives numbers in their own scale, from standardized ones."""
    kernel, bias = (params["classifier"][name] for name in ("kernel", "bias"))
    kernel, bias = kernel * scale.deviation, bias * scale.deviation + scale.mean
    return {**params, "classifier": {"kernel": kernel, "bias": bias}}


def ridge_head(
    features: np.ndarray, targets: np.ndarray, *, pairs: bool = False
) -> dict[str, np.ndarray]:
    """Fit scikit-learn's ridge regression, at the strength with the least leave-one-out error.

    Args:
        features: [N, H], N at least 2.
        targets: [N], with mean 0 and standard deviation 1.
        pairs: whether features compare two texts, by |u - v| and u * v (see `Transformer`). Then
            the sum of u * v is a feature too, which is the cosine up to a factor, because all u and
            v have the same length. It is so much larger than the others that it is hardly
            regularized: with few examples the predictions follow the cosine.

    Returns:
        `kernel` [H, 1] and `bias` [1], float64.
    """
    from sklearn.linear_model import RidgeCV  # Slow to import.

    size = features.shape[1]
    sums = np.zeros((size, 1 if pairs else 0))
    sums[size // 2 :] = 1
    fitted = RidgeCV(alphas=_STRENGTHS).fit(np.hstack([features, features @ sums]), targets)
    _log.info("ridge regression: the strength %g has the least error", fitted.alpha_)
    kernel = fitted.coef_[:size] + sums @ fitted.coef_[size:]
    return {"kernel": kernel[:, None], "bias": np.array([fitted.intercept_])}
