"""Judge an adapted model on other examples: `adapt --dev`."""

import logging
from typing import Any

import numpy as np

from metajax import data
from metajax.config.settings import PredictSettings
from metajax.runs.classifier import Classifier, is_regression, logits_of, probabilities
from metajax.training.evaluation import (
    balanced_accuracy,
    calibration_error,
    correlation,
    f1_of_labels,
    macro_f1,
)

_log = logging.getLogger("metajax")


def judge(classifier: Classifier, dev: data.TaskData) -> dict[str, Any]:
    """Measure a classifier on a dev set, as JSON. The classes are those of the classifier."""
    given = (classifier, dev.texts, dev.pairs, PredictSettings.batch_size)
    if is_regression(classifier.model):
        measures, rest = _of_numbers(np.stack(list(logits_of(*given)))[:, 0], dev.labels)
    else:
        several = dev.labels.ndim == 2
        measures, rest = (_of_labels if several else _of_classes)(probabilities(*given), dev.labels)
    shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in measures.items())
    _log.info("%d examples of --dev: %s", len(dev.texts), shown)
    return {"examples": len(dev.texts), **measures, **rest}


_Measured = tuple[dict[str, float], dict[str, Any]]


def _of_classes(shares: np.ndarray, labels: np.ndarray) -> _Measured:
    guesses, classes = shares.argmax(1), shares.shape[1]
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels, guesses), 1)
    measures = {
        "accuracy": float(confusion.trace() / confusion.sum()),
        "macro_f1": macro_f1(confusion),
        "balanced_accuracy": balanced_accuracy(confusion),
        "calibration_error": calibration_error(shares.max(1), guesses == labels),
    }
    return measures, {"confusion": confusion.tolist()}


def _of_numbers(guesses: np.ndarray, labels: np.ndarray) -> _Measured:
    measures = {
        "pearson": correlation("pearsonr", labels, guesses),
        "spearman": correlation("spearmanr", labels, guesses),
        "mean_squared_error": float(np.square(guesses.astype(np.float64) - labels).mean()),
    }
    return measures, {}


def _of_labels(shares: np.ndarray, labels: np.ndarray) -> _Measured:
    predicted = shares > 0.5
    macro, micro = f1_of_labels(labels, predicted)
    accuracy = float((predicted == (labels == 1)).all(1).mean())
    return {"accuracy": accuracy, "macro_f1": macro, "micro_f1": micro}, {}
