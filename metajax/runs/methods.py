"""The ways to adapt a network to one task's examples: `adapt --method`."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from metajax import data
from metajax.algorithms.prototypes import prototype_head
from metajax.data.packing import Shapes
from metajax.data.seeding import generator, shuffled_rows
from metajax.models import Transformer, classification_loss, contrastive_loss, multi_label_loss
from metajax.models.attention import MASKED
from metajax.runs.choice import Adapted, choose, repeat, take_steps
from metajax.runs.classifier import is_multi_label
from metajax.runs.descent import Descent, fold, pack
from metajax.runs.features import features_of, logistic_head, logits_on, one_vs_rest_head
from metajax.runs.few_shot import FewShot
from metajax.runs.learner import adapted_model, as_classifier
from metajax.runs.support_training import Recipe, train
from metajax.types import LossFn, Params

_log = logging.getLogger("metajax")


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


def label_loss(model: Transformer) -> LossFn:
    """Return the loss of fine-tuning, for one label per text or for several."""
    return multi_label_loss(model) if is_multi_label(model) else classification_loss(model)


_PER_CLASS = 4
RECIPES = {
    "contrastive": Recipe(contrastive_loss, class_rows, 3e-5, steps=20, batch_size=64),
    "finetune": Recipe(label_loss, epoch_rows, 3e-5, steps=20, batch_size=64),
}
TRAINED = (*RECIPES, "linear", "prototypes")  # All methods but the inner steps.
MULTI_LABEL = ("linear", "finetune")  # Those for texts with several labels.


def prepare(
    few_shot: FewShot, method: str, label_names: tuple[str, ...]
) -> tuple[FewShot, Transformer]:
    """Return what `adapt_to` needs for a method, and the network of its result."""
    few_shot = few_shot._replace(model=few_shot.model.replace(label_names=(label_names,)))
    if method == "steps":
        return few_shot, adapted_model(few_shot.model, few_shot.inner)
    few_shot = few_shot.without_inner_loop()
    return few_shot, few_shot.model


def adapt_to(
    few_shot: FewShot,
    examples: data.TokenizedTask,
    method: str,
    *,
    chooses: bool,
    known: dict[str, Any] | None = None,
) -> Adapted:
    """Adapt to one task's examples, as `adapt` does.

    Args:
        few_shot: the network, and the settings of its inner loop, from `prepare`.
        examples: the examples. If the network is multi-label, labels [N, C], and the method is one
            of `MULTI_LABEL`.
        method: `--method`.
        chooses: whether to choose the rate of plain inner steps, and between them and prototypes.
        known: results of an earlier run. If given, its choice is repeated.
    """
    if method != "steps":
        return _train(few_shot, examples, method)
    if not few_shot.entry.plain_steps:
        return _adapt_whole(few_shot, examples)
    descent = Descent(few_shot, *fold(examples))
    if known is not None:
        adapted = repeat(descent, known)
    else:
        adapted = choose(few_shot, descent) if chooses else take_steps(few_shot, descent)
    return adapted._replace(params=descent.undo(adapted.params))


def _adapt_whole(few_shot: FewShot, examples: data.TokenizedTask) -> Adapted:
    """Adapt by the algorithm's `adapt`, on all examples at once."""
    model = adapted_model(few_shot.model, few_shot.inner)
    support = jax.tree.map(lambda leaf: leaf[0], pack(examples, 1))
    adapt = jax.jit(few_shot.algorithm().adapt)
    adapted, info = adapt(few_shot.meta_params, support, None)
    params = as_classifier(adapted)
    loss_fn = jax.jit(classification_loss(model))
    after = float(loss_fn(few_shot.merge(params), support, None)[0])
    losses = [*map(float, info.support_loss), after]
    rate = None if few_shot.entry.learned_rates else few_shot.inner["inner_lr"]
    return Adapted(params, losses, rate)


def _train(few_shot: FewShot, examples: data.TokenizedTask, method: str) -> Adapted:
    """Train the network on the examples, or only a head on its frozen features."""
    params, losses = train_on(few_shot, examples, method, what=method)
    logits, labels = logits_on(few_shot.model, params, examples), examples.labels
    if is_multi_label(few_shot.model):
        after = (np.logaddexp(0, logits) - labels * logits).mean()
    else:
        after = -scipy.special.log_softmax(logits, 1)[np.arange(len(labels)), labels].mean()
    return Adapted(params, [*losses, float(after)], None)


def train_on(
    few_shot: FewShot,
    examples: data.TokenizedTask,
    method: str,
    *,
    what: str | None = None,
    plan: Sequence[Shapes] = (),
) -> tuple[Params, list[float]]:
    """Train a network on one task's examples, by another method than `steps`.

    Args:
        few_shot: the network with one head of C classes.
        examples: the examples, perhaps not of all C classes.
        method: one of `TRAINED`.
        what: name of the progress bar. None: no bar and no log line.
        plan: shapes of the batches; see `train`.

    Returns:
        The parameters with a head, and the losses of the steps.
    """
    model = few_shot.model
    params = {name: value for name, value in few_shot.params.items() if name != "classifier"}
    losses: list[float] = []
    if method == "contrastive" and np.bincount(examples.labels).max() == 1:
        if what is not None:  # An evaluation would say it for each episode.
            _log.info("contrastive: no class has a second example, so that only a head is trained")
    elif method in RECIPES:
        start = params
        if method == "finetune":
            start = _with_head(model, params, examples, prototype_head)
        recipe = RECIPES[method]
        params, losses = train(
            model, start, examples, recipe, seed=few_shot.seed, what=what, plan=plan
        )
    if method != "finetune":
        make_head = prototype_head if method == "prototypes" else logistic_head
        params = _with_head(model, params, examples, make_head)
    return params, losses


def _with_head(
    model: Transformer,
    params: Params,
    examples: data.TokenizedTask,
    make_head: Callable[..., dict[str, Any]],
) -> Params:
    """Add a head for the features of the examples. Classes without examples are never predicted.

    A multi-label head is always logistic regression, one for each label.
    """
    features, dtype = features_of(model, params, examples), params["embeddings"]["word"].dtype
    if is_multi_label(model):
        head = one_vs_rest_head(features, examples.labels)
    else:
        present, labels = np.unique(examples.labels, return_inverse=True)
        own, classes = make_head(features, {"labels": labels}, len(present)), model.num_labels[0]
        head = {"kernel": np.zeros((features.shape[1], classes)), "bias": np.full(classes, MASKED)}
        head["kernel"][:, present], head["bias"][present] = own["kernel"], own["bias"]
    classifier = {name: jnp.asarray(leaf, dtype)[None] for name, leaf in head.items()}
    return {**params, "classifier": classifier}
