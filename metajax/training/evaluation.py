"""Evaluation on episodes, with 95% intervals; baselines on frozen features."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax.algorithms.prototypes import prototype_head
from metajax.platforms import full_jit
from metajax.training.outer import map_tasks, num_tasks, task_keys
from metajax.types import Key, MetaAlgorithm, MetaInfo, PyTree, Task


class Estimate(NamedTuple):
    """A mean over episodes.

    Attributes:
        mean: over the episodes, without their axis.
        ci95: half the width of its 95% confidence interval, of the same shape.

    Examples:
        >>> from metajax.training.evaluation import estimate
        >>> result = estimate([0.5, 0.5, 0.5])
        >>> float(result.mean), float(result.ci95)
        (0.5, 0.0)
    """

    mean: np.ndarray
    ci95: np.ndarray


def estimate(values: Any, comparisons: int = 1) -> Estimate:
    """Compute the mean over the leading axis, with its 95% interval by Student's t.

    Args:
        values: [E, ...], one entry per episode. The interval of a single entry is infinite.
        comparisons: number of estimates whose intervals hold together with 95% (Bonferroni). It
            also covers an estimate that was chosen among so many.
    """
    from scipy import stats  # Slow to import.

    values = np.asarray(values, np.float64)
    count = values.shape[0]
    if count < 2:
        return Estimate(values.mean(0), np.full(values.shape[1:], np.inf))
    error = values.std(0, ddof=1) / np.sqrt(count)
    return Estimate(values.mean(0), stats.t.ppf(1 - 0.025 / comparisons, count - 1) * error)


def ratio_estimate(totals: Any, weights: Any) -> Estimate:
    """Compute the weighted mean of means, such as the loss per token, with its 95% interval.

    Episodes have different weights, such as numbers of tokens. The interval is that of a ratio of
    two means over independent episodes (Cochran 1977, Sampling Techniques, section 2.11), by
    Student's t. With equal weights it is that of `estimate`.

    Args:
        totals: [E], the sum of each episode, such as its loss in nats.
        weights: [E], the weight of each episode, such as its number of tokens. Not all are 0.

    Returns:
        The ratio of the sums, and half the width of its interval. The interval of a single episode
        is infinite.

    Examples:
        >>> from metajax.training.evaluation import ratio_estimate
        >>> result = ratio_estimate([2.0, 6.0], [1, 3])
        >>> float(result.mean), float(result.ci95)
        (2.0, 0.0)
    """
    totals, weights = np.asarray(totals, np.float64), np.asarray(weights, np.float64)
    mean = totals.sum() / weights.sum()
    residuals = (totals - mean * weights) / weights.mean()
    return Estimate(mean, estimate(residuals).ci95)


@functools.lru_cache(maxsize=16)
def _compiled(algorithm: MetaAlgorithm, chunk_size: int | None) -> Callable[..., MetaInfo]:
    """Compile `(meta_params, tasks, keys) -> MetaInfo [T, ...]`."""

    def run(meta_params: PyTree, tasks: Task, keys: Key) -> MetaInfo:
        def judge(task: Task, key: Key) -> tuple[None, MetaInfo]:
            # The gradient is not used, so the compiler leaves it out.
            return None, algorithm.meta_grad(meta_params, task, key)[1]

        return map_tasks(judge, tasks, keys, chunk_size)[1]

    return full_jit(run)


def run_episodes(
    algorithm: MetaAlgorithm,
    meta_params: PyTree,
    tasks: Task,
    rng: Key,
    *,
    first: int = 0,
    chunk_size: int | None = None,
) -> MetaInfo:
    """Adapt to each of T episodes, and measure the loss on its query set.

    Args:
        algorithm: as trained.
        meta_params: as trained.
        tasks: leaves [T, ...].
        rng: key of the whole evaluation.
        first: number of the first of these episodes in the evaluation.
        chunk_size: as for `evaluate`.

    Returns:
        MetaInfo with leaves [T, ...], one entry per episode.
    """
    keys = task_keys(rng, first, num_tasks(tasks))
    return _compiled(algorithm, chunk_size)(meta_params, tasks, keys)


def evaluate(
    algorithm: MetaAlgorithm,
    meta_params: PyTree,
    tasks: Task,
    rng: Key,
    *,
    chunk_size: int | None = None,
) -> MetaInfo:
    """Compute the mean and the 95% interval over episodes of each array of a MetaInfo.

    Args:
        algorithm: as trained.
        meta_params: as trained.
        tasks: T episodes, leaves [T, ...].
        rng: a key.
        chunk_size: episodes under one vmap, a divisor of T; the chunks run one after the other. By
            default one on a CPU and all of them elsewhere.

    Returns:
        A MetaInfo with an `Estimate` in place of each array: `result.query_loss.mean`,
        `result.query_aux["accuracy"].ci95`.

    Raises:
        ValueError: chunk_size does not divide T, or the leaves' leading axes differ.

    Examples:
        >>> import jax, jax.numpy as jnp, metajax, optax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> algorithm = metajax.maml(loss_fn, optax.sgd(1.0), num_steps=1)
        >>> tasks = metajax.Task(support=jnp.ones((4, 2)), query=jnp.ones((4, 2)))
        >>> result = metajax.evaluate(algorithm, jnp.zeros(2), tasks, jax.random.key(0))
        >>> float(result.query_loss.mean), float(result.query_loss.ci95)
        (0.0, 0.0)
    """
    infos = run_episodes(algorithm, meta_params, tasks, rng, chunk_size=chunk_size)
    return jax.tree.map(estimate, infos)


def macro_f1(confusion: np.ndarray) -> float:
    """Compute the mean F1 of the classes that occur among the true or the predicted labels.

    Args:
        confusion: [C, C] counts; rows are true labels, columns are predicted labels.
    """
    occurrences = confusion.sum(0) + confusion.sum(1)
    occurs = occurrences > 0
    return float((2 * confusion.diagonal()[occurs] / occurrences[occurs]).mean())


def f1_of_labels(labels: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Compute the macro and the micro F1 of texts with any number of labels.

    The macro F1 is the mean over the labels that occur among the true or the predicted ones. The
    micro F1 counts all labels together. Without any, they are 0.

    Args:
        labels: [N, C] of 0 and 1.
        predicted: [N, C] of 0 and 1.
    """
    labels, predicted = labels.astype(bool), predicted.astype(bool)
    hits, occurrences = (labels & predicted).sum(0), labels.sum(0) + predicted.sum(0)
    occurs = occurrences > 0
    if not occurs.any():
        return 0.0, 0.0
    macro = (2 * hits[occurs] / occurrences[occurs]).mean()
    return float(macro), float(2 * hits.sum() / occurrences.sum())


def balanced_accuracy(confusion: np.ndarray) -> float:
    """Compute the mean accuracy of the classes that occur among the true labels.

    Args:
        confusion: [C, C] counts; rows are true labels, columns are predicted labels.
    """
    occurrences = confusion.sum(1)
    occurs = occurrences > 0
    return float((confusion.diagonal()[occurs] / occurrences[occurs]).mean())


def calibration_error(confidences: np.ndarray, correct: np.ndarray) -> float:
    """Compute the expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    It is the mean difference between confidence and accuracy of 15 bins of equal width, weighted
    by their number of examples.

    Args:
        confidences: [N] in 0..1, the probability of the predicted label.
        correct: bool [N], whether the predicted label is the true one.
    """
    bins = np.ceil(15 * confidences).astype(int)  # The n-th is ((n - 1) / 15, n / 15].
    gaps = np.bincount(bins, correct - np.asarray(confidences, np.float64))
    return float(np.abs(gaps).sum() / len(confidences))


def correlation(name: str, labels: np.ndarray, guesses: np.ndarray) -> float:
    """Return a correlation of numbers [N]: "pearsonr" or "spearmanr" of scipy.stats."""
    from scipy import stats

    if np.ptp(labels) == 0 or np.ptp(guesses) == 0:
        return 0.0  # Not defined. Scikit-learn's Matthews correlation is also 0 here.
    return float(getattr(stats, name)(labels, guesses).statistic)


def nearest_prototype(features: np.ndarray, labels: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Label each query by the nearest class mean (Snell et al. 2017, arXiv:1703.05175).

    Args:
        features: [S, H] of the support set.
        labels: [S] in 0..C-1, each class present.
        query: [Q, H].

    Returns:
        [Q] labels. The distance is Euclidean, and features should have unit length.
    """
    head = prototype_head(features, {"labels": labels}, labels.max() + 1)
    return np.argmax(query @ head["kernel"] + head["bias"], 1)


def nearest_neighbour(features: np.ndarray, labels: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Label each query [Q, H] like the nearest support example [S, H]."""
    return labels[np.argmax(query @ features.T - np.square(features).sum(1) / 2, 1)]


def logistic_regression(features: np.ndarray, labels: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Label each query [Q, H] by scikit-learn's logistic regression, with its defaults."""
    return fit_logistic(features, labels).predict(query)


def fit_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    inverse_strength: float = 1.0,
    class_weight: str | None = None,
) -> Any:
    """Fit scikit-learn's logistic regression to features [S, H] and labels [S].

    Args:
        features: of the examples.
        labels: of the examples.
        inverse_strength: scikit-learn's `C`; a smaller one regularizes more.
        class_weight: scikit-learn's; "balanced" or None.
    """
    from sklearn.linear_model import LogisticRegression  # Slow to import.

    regression = LogisticRegression(C=inverse_strength, class_weight=class_weight, max_iter=1000)
    with warnings.catch_warnings():  # One example of each class is not a mistake here.
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        return regression.fit(features, labels)


BASELINES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "prototypes": nearest_prototype,
    "linear": logistic_regression,
    "knn": nearest_neighbour,
}
