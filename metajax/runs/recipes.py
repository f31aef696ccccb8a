"""How a network is trained on one task's examples: loss, batches, learning rate and steps."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from metajax.data import TokenizedTask
from metajax.data.seeding import generator, shuffled_rows
from metajax.models import (
    Transformer,
    classification_loss,
    contrastive_loss,
    cosine_loss,
    multi_label_loss,
)
from metajax.types import LossFn

_PER_CLASS = 4  # Most examples of a class in a group of contrastive training.
_MANY_SHOTS = 64  # Examples of a class, on average.


class Recipe(NamedTuple):
    """How a network is trained on one task's examples.

    Attributes:
        make_loss: from the network to the loss.
        rows: `(labels, seed, step, batch size) -> rows of a step`.
        learning_rate: the peak of AdamW's, which warms up for a tenth of the steps and decays.
        steps: least number of steps of a network.
        batch_size: largest number of examples in a step.
        epochs: least number of times that a network sees as many examples as there are.
        width: the most features for which the learning rate holds. For networks with more, it falls
            in proportion, as Adam's should (Yang et al. 2022, arXiv:2203.03466, table 3).
        many_shot_recipe: replaces this recipe for two classes with at least `_MANY_SHOTS` examples
            each on average, except pairs of texts that are read apart. None: no replacement.
        networks: number of networks to train; the result is the mean of their parameters.
    """

    make_loss: Callable[[Transformer], LossFn]
    rows: Callable[[np.ndarray, int, int, int], np.ndarray]
    learning_rate: float
    steps: int
    batch_size: int
    epochs: int
    width: float = math.inf
    many_shot_recipe: "Recipe | None" = None
    networks: int = 1

    def num_steps(self, count: int) -> int:
        """Return the number of steps of each network for this number of examples."""
        return max(self.steps, math.ceil(self.epochs * count / self.batch_size))

    def for_examples(self, examples: TokenizedTask) -> "Recipe":
        """Return the recipe for a task's examples, which may be `many_shot_recipe`.

        It also holds for a part of the examples, as in cross-validation.
        """
        if self.many_shot_recipe is None:
            return self
        two = len(np.unique(examples.labels)) == 2
        many = two and len(examples.labels) >= 2 * _MANY_SHOTS and not examples.tokens.apart
        return self.many_shot_recipe if many else self._replace(many_shot_recipe=None)

    def longer(self, factor: int) -> "Recipe":
        """Return the recipe with `factor` times as many steps."""
        many = self.many_shot_recipe
        return self._replace(
            steps=factor * self.steps,
            epochs=factor * self.epochs,
            many_shot_recipe=None if many is None else many.longer(factor),
        )

    def at_rate(self, learning_rate: float) -> "Recipe":
        """Return the recipe with this peak learning rate, for networks of any width."""
        many = self.many_shot_recipe
        return self._replace(
            learning_rate=learning_rate,
            width=math.inf,
            many_shot_recipe=None if many is None else many.at_rate(learning_rate),
        )

    def rate_for(self, hidden_size: int) -> float:
        """Return the peak learning rate for networks with so many features."""
        return self.learning_rate * min(1, self.width / hidden_size)


def class_rows(labels: np.ndarray, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Return the rows of a step of contrastive training: several examples of each class in it.

    Args:
        labels: [N] of 0..C-1.
        seed: of the run.
        step: number of the step.
        batch_size: B, at most N.

    Returns:
        Rows int64 [B]. Classes are drawn at random, with up to `_PER_CLASS` examples of each.
    """
    rng = generator(seed, "classes", step)
    order = rng.permutation(len(labels))
    rank = np.empty(len(labels), int)  # Of an example in its class.
    for label in np.unique(labels):
        own = order[labels[order] == label]
        rank[own] = np.arange(len(own))
    group = rng.permutation(labels.max() + 1)[labels] + (rank // _PER_CLASS) * (labels.max() + 1)
    return np.argsort(group, kind="stable")[:batch_size]


def epoch_rows(labels: np.ndarray, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Return the rows of a step of fine-tuning: each epoch has every example once."""
    return shuffled_rows(seed, step, batch_size, len(labels))


RECIPES = {
    "contrastive": Recipe(
        contrastive_loss,
        class_rows,
        1e-4,
        steps=10,
        batch_size=64,
        epochs=4,
        width=384,
        many_shot_recipe=Recipe(
            cosine_loss, class_rows, 2e-5, steps=160, batch_size=16, epochs=2, networks=2
        ),
    ),
    "finetune": Recipe(classification_loss, epoch_rows, 3e-5, steps=20, batch_size=64, epochs=4),
}
# Of fine-tuning for texts with several labels, of which each has few examples.
SEVERAL_LABELS = Recipe(multi_label_loss, epoch_rows, 1e-4, steps=60, batch_size=64, epochs=4)
