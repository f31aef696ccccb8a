"""Cross-validation on a task's few examples: logits of held-out examples, and their temperature."""

import math
import time
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special

from metajax import data
from metajax.data.packing import Shapes
from metajax.data.seeding import generator
from metajax.runs.choice import Calibration
from metajax.runs.features import logits_on
from metajax.runs.few_shot import FewShot
from metajax.runs.learner import adapted_model
from metajax.runs.methods import HEADS, Method, adapt_to, balanced_weights, head_maker, train_on
from metajax.runs.support_training import plan_steps

_MOST_FOLDS = 4
_KEPT = 0.95  # Fraction of held-out examples above the threshold.
_LARGEST = math.log(1e4)  # Of the temperature and its inverse, as a logarithm.


def deal(labels: np.ndarray, seed: int) -> np.ndarray:
    """Deal the examples to folds.

    The examples of a class come in random order, and are counted from class to class: number n goes
    to fold n mod F. So a class is in as many folds as it has examples, at most F, and the sizes of
    folds differ by at most 1. F is 4, or the size of the largest class if that is smaller.

    Args:
        labels: [N] of 0..C-1.
        seed: of the order.

    Returns:
        The fold of each example, int64 [N]. It is -1 for the only example of a class, which is
        never held out.
    """
    counts = np.bincount(labels)
    order = generator(seed, "folds").permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    order = order[counts[labels[order]] > 1]
    folds = np.full(len(labels), -1)
    folds[order] = np.arange(len(order)) % min(_MOST_FOLDS, counts.max())
    return folds


class HeldOut(NamedTuple):
    """Logits of M held-out examples.

    Attributes:
        logits: float64 [M, C].
        labels: [M].
        weights: [M], with mean 1.
    """

    logits: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    def losses(self, temperature: float) -> np.ndarray:
        """Return the negative log-likelihood [M] of each label."""
        logs = scipy.special.log_softmax(self.logits / temperature, 1)
        return -logs[np.arange(len(self.labels)), self.labels]

    def accuracy(self) -> float:
        """Return the fraction of correct labels, by weight."""
        return float(np.mean(self.weights * (self.logits.argmax(1) == self.labels)))

    def temperature(self) -> float:
        """Return the temperature with the smallest weighted mean loss.

        See Guo et al. 2017, arXiv:1706.04599, section 4.2.
        Targets are smoothed as in Platt 1999, by 1 / (M + 2), so that the temperature is above zero
        even if all labels are right.
        """
        count, classes = self.logits.shape
        targets = np.full((count, classes), 1 / (count + 2) / (classes - 1))
        targets[np.arange(count), self.labels] = 1 - 1 / (count + 2)
        targets *= self.weights[:, None]

        def loss(log: float) -> float:
            return -float(
                (targets * scipy.special.log_softmax(self.logits / np.exp(log), 1)).mean()
            )

        bounds = (-_LARGEST, _LARGEST)
        optimum = scipy.optimize.minimize_scalar(loss, bounds=bounds, options={"xatol": 1e-6})
        return float(np.exp(optimum.x))

    def calibration(self) -> Calibration:
        """Return the temperature, and the threshold at this temperature."""
        temperature = self.temperature()
        largest = scipy.special.softmax(self.logits / temperature, 1).max(1)
        threshold = np.quantile(largest, 1 - _KEPT, method="lower")
        return Calibration(temperature, float(threshold))


def hold_out(
    few_shot: FewShot,
    examples: data.TokenizedTask,
    method: Method,
    folds: np.ndarray,
    features: np.ndarray | None,
    *,
    chooses: bool = False,
    until: float = math.inf,
) -> HeldOut | None:
    """Train without each fold, and compute the logits of its examples.

    Args:
        few_shot: the network with one head.
        examples: N examples with one label each. C classes have examples, perhaps not all.
        method: the method.
        folds: [N] from `deal`, with at least two folds.
        features: [N, H] of the network before training. None if the method is not one of `HEADS`.
        chooses: as for `adapt_to`.
        until: value of `time.monotonic` after which no other fold is begun.

    Returns:
        The logits of the examples of all folds, in the order of the examples, for the C classes
        that have examples; the labels count these classes. None if the time was over before.
    """
    present, labels = np.unique(examples.labels, return_inverse=True)
    logits = np.zeros((len(labels), len(present)))
    parts = [np.flatnonzero(folds != fold) for fold in range(folds.max() + 1)]
    plan: tuple[Shapes, ...] = ()
    if method.recipe is not None:
        recipe = method.recipe.for_examples(examples)
        method = method._replace(recipe=recipe)
        supports = [data.take_examples(examples, rows) for rows in parts]
        plan = plan_steps(supports, recipe, few_shot.seed)
    for fold, rows in enumerate(parts):
        if time.monotonic() > until:
            return None
        if method.name in HEADS:
            assert features is not None
            head = head_maker(method)(features[rows], {"labels": labels[rows]}, len(present))
            held_out = features @ head["kernel"] + head["bias"]
        elif method.name == "steps":
            support = data.take_examples(examples, rows)
            adapted = adapt_to(few_shot, support, method, chooses=chooses)
            model = adapted_model(few_shot.model, few_shot.inner)
            held_out = logits_on(model, few_shot.merge(adapted.params), examples)[:, present]
        else:
            trained = train_on(few_shot, examples, method, rows=rows, plan=plan)
            held_out = logits_on(few_shot.model, trained.params, examples, trained.features)
            held_out = held_out[:, present]
        logits[folds == fold] = held_out[folds == fold]
    weights = balanced_weights(labels) if method.class_weight else np.ones(len(labels))
    own = folds >= 0
    return HeldOut(logits[own], labels[own], weights[own] / weights[own].mean())
