"""The ways to adapt a network to one task's examples: `adapt --method`."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from metajax import data
from metajax.algorithms.prototypes import prototype_head
from metajax.config.inner import MethodSettings, check_any_labels
from metajax.data.packing import Shapes
from metajax.models import Transformer, classification_loss
from metajax.models.attention import MASKED
from metajax.platforms import quick_jit
from metajax.runs.choice import Adapted, choose, repeat, take_steps
from metajax.runs.classifier import is_multi_label, is_regression
from metajax.runs.descent import Descent, fold, pack
from metajax.runs.features import features_of, logistic_head, logits_on, one_vs_rest_head
from metajax.runs.few_shot import FewShot
from metajax.runs.learner import adapted_model, as_classifier
from metajax.runs.recipes import RECIPES, SEVERAL_LABELS, Recipe
from metajax.runs.regression import ridge_head, standardized, with_scale
from metajax.runs.support_training import train
from metajax.types import Params

_log = logging.getLogger("metajax")

HEADS = ("linear", "prototypes")  # Methods that only train a head.
TRAINED = (*RECIPES, *HEADS)  # All methods but the inner steps.


class Method(NamedTuple):
    """A method with its settings.

    Attributes:
        name: one of `TRAINED`, or "steps".
        recipe: how all weights are trained. None: only a head is trained.
        inverse_strength: of logistic regression; see `logistic_head`.
        class_weight: "balanced": each class has the same weight in the loss of `finetune` and in
            logistic regression, however many examples it has.
        temperature: divides the logits; see `metajax.runs.cross_validation`.
    """

    name: str
    recipe: Recipe | None = None
    inverse_strength: float = 1.0
    class_weight: str | None = None
    temperature: float = 1.0


def method_of(
    name: str, class_weight: str | None = None, *, several_labels: bool = False
) -> Method:
    """Return a method with its usual settings, for one label per text or for several."""
    recipe = SEVERAL_LABELS if several_labels and name == "finetune" else RECIPES.get(name)
    return Method(name, recipe, class_weight=class_weight)


def balanced_weights(labels: np.ndarray) -> np.ndarray:
    """Return weights [N] of examples that give each class the same; their mean is 1."""
    counts = np.bincount(labels)
    return len(labels) / ((counts > 0).sum() * counts[labels])


def balanced_label_weights(labels: np.ndarray) -> np.ndarray:
    """Return weights [N, C] that give the texts with a label the same as those without it.

    Args:
        labels: [N, C] of 0 and 1. The mean weight of a label is 1, if some texts have it and some
            do not; otherwise its weights are 0.5.
    """
    shares = labels.mean(0)
    return 0.5 / np.where(labels == 1, shares, 1 - shares)


def with_several_labels(few_shot: FewShot, settings: MethodSettings) -> FewShot:
    """Return the network for texts with any number of labels.

    Raises:
        InputError: the method, or one of its settings, needs one class for each text.
    """
    check_any_labels(settings, "a text can have several")
    model = few_shot.model.replace(problem_type="multi_label_classification")
    return few_shot._replace(model=model)


def prepare(few_shot: FewShot, method: str, task: data.TaskData) -> tuple[FewShot, Transformer]:
    """Return what `adapt_to` needs for a method, and the network of its result.

    If the examples are pairs of texts, log how they are read.

    Args:
        few_shot: the network, and the settings of its inner loop.
        method: the method.
        task: the examples.
    """
    apart = reads_apart(few_shot, method, task)
    if task.pairs is not None:
        how = "each by itself, and compared" if apart else "together, as one text"
        _log.info("%s: the two texts of a pair are read %s", task.name, how)
    model = few_shot.model.replace(label_names=(task.label_names,), siamese=apart)
    few_shot = few_shot._replace(model=model)
    if method == "steps":
        return few_shot, adapted_model(model, few_shot.inner)
    return few_shot.without_inner_loop(), model


def reads_apart(few_shot: FewShot, method: str, task: data.TaskData) -> bool:
    """Return whether examples are pairs of texts that a method reads each by itself.

    A sentence encoder does, but not for inner steps, which are those of meta-training.
    """
    return method != "steps" and task.pairs is not None and few_shot.source.encodes_texts


def adapt_to(
    few_shot: FewShot,
    examples: data.TokenizedTask,
    method: Method,
    *,
    chooses: bool,
    known: dict[str, Any] | None = None,
    donate: bool = False,
) -> Adapted:
    """Adapt to one task's examples, as `adapt` does.

    Args:
        few_shot: the network, and the settings of its inner loop, from `prepare`.
        examples: the examples. If the network is multi-label, with labels [N, C]; if it predicts
            numbers, with labels float32 [N]. The method is then one of `ANY_LABELS`.
        method: the method.
        chooses: whether to choose the rate of plain inner steps, and between them and prototypes.
        known: results of an earlier run. If given, its choice is repeated.
        donate: whether to free the weights that are trained, as in `train`. The caller must not use
            `few_shot.params` afterwards.
    """
    if method.name != "steps":
        return _train(few_shot, examples, method, donate)
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
    adapt = quick_jit(few_shot.algorithm().adapt)
    adapted, info = adapt(few_shot.meta_params, support, None)
    params = as_classifier(adapted)
    loss_fn = quick_jit(classification_loss(model))
    after = float(loss_fn(few_shot.merge(params), support, None)[0])
    losses = [*map(float, info.support_loss), after]
    rate = None if few_shot.entry.learned_rates else few_shot.inner["inner_lr"]
    return Adapted(params, losses, rate)


def _train(
    few_shot: FewShot, examples: data.TokenizedTask, method: Method, donate: bool
) -> Adapted:
    """Train the network on the examples, or only a head on its frozen features."""
    if is_regression(few_shot.model):
        return _train_regression(few_shot, examples, method, donate)
    params, losses, features = train_on(few_shot, examples, method, what=method.name, donate=donate)
    if method.temperature != 1:
        head = {key: leaf / method.temperature for key, leaf in params["classifier"].items()}
        params = {**params, "classifier": head}
    logits, labels = logits_on(few_shot.model, params, examples, features), examples.labels
    if is_multi_label(few_shot.model):
        after = (np.logaddexp(0, logits) - labels * logits).mean()
    else:
        after = -scipy.special.log_softmax(logits, 1)[np.arange(len(labels)), labels].mean()
    return Adapted(params, [*losses, float(after)], None)


def _train_regression(
    few_shot: FewShot, examples: data.TokenizedTask, method: Method, donate: bool
) -> Adapted:
    """Train the network on standardized numbers, and give its head their scale."""
    own, scale = standardized(examples)
    params, losses, features = train_on(few_shot, own, method, what=method.name, donate=donate)
    params = with_scale(params, scale)
    errors = logits_on(few_shot.model, params, examples, features)[:, 0] - examples.labels
    losses = [scale.deviation**2 * loss for loss in losses]
    return Adapted(params, [*losses, float(np.square(errors).mean())], None)


class Trained(NamedTuple):
    """A network that was trained on one task's examples.

    Attributes:
        params: its parameters, with a head.
        losses: of the steps.
        features: of all given examples, float64 [N, H]. None if the method does not need them.
    """

    params: Params
    losses: list[float]
    features: np.ndarray | None


def train_on(
    few_shot: FewShot,
    examples: data.TokenizedTask,
    method: Method,
    *,
    rows: np.ndarray | None = None,
    what: str | None = None,
    plan: Sequence[Shapes] = (),
    donate: bool = False,
) -> Trained:
    """Train a network on one task's examples, by another method than `steps`.

    Args:
        few_shot: the network with one head of C classes.
        examples: the examples, perhaps not of all C classes.
        method: one of `TRAINED`.
        rows: numbers of the examples to train on. By default all.
        what: name of the progress bar. None: no bar and no log line.
        plan: shapes of the batches; see `train`.
        donate: as in `adapt_to`.
    """
    model, recipe = few_shot.model, method.recipe
    rows = np.arange(len(examples.labels)) if rows is None else rows
    own = data.take_examples(examples, rows)
    params = {name: value for name, value in few_shot.params.items() if name != "classifier"}
    losses: list[float] = []
    if method.name == "contrastive" and np.bincount(own.labels).max() == 1:
        if what is not None:  # An evaluation would say it for each episode.
            _log.info("contrastive: no class has a second example, so that only a head is trained")
    elif recipe is not None:
        start, weights = params, None
        if method.name == "finetune":
            features = features_of(model, params, examples)[rows]
            start = _with_head(model, params, features, own.labels, prototype_head)
            if is_multi_label(model):
                weights = balanced_label_weights(own.labels).astype(np.float32)
            elif method.class_weight == "balanced":
                weights = balanced_weights(own.labels).astype(np.float32)
        params, losses = train(
            model,
            start,
            own,
            recipe,
            seed=few_shot.seed,
            weights=weights,
            what=what,
            plan=plan,
            donate=donate,
        )
    if method.name == "finetune":
        return Trained(params, losses, None)
    # Features of all examples have the same shapes for all rows, so that they are compiled once.
    features = features_of(model, params, examples)
    params = _with_head(model, params, features[rows], own.labels, head_maker(method))
    return Trained(params, losses, features)


def head_maker(method: Method) -> Callable[..., dict[str, Any]]:
    """Return `(features, {"labels": labels}, number of classes) -> head` of a method."""
    if method.name == "prototypes":
        return prototype_head
    return functools.partial(
        logistic_head, inverse_strength=method.inverse_strength, class_weight=method.class_weight
    )


def _with_head(
    model: Transformer,
    params: Params,
    features: np.ndarray,
    labels: np.ndarray,
    make_head: Callable[..., dict[str, Any]],
) -> Params:
    """Add a head for the features of some examples. Classes without any are never predicted.

    A multi-label head is always logistic regression, and one for numbers ridge regression.
    """
    if is_multi_label(model):
        head = one_vs_rest_head(features, labels)
    elif is_regression(model):
        head = ridge_head(features, labels, pairs=model.siamese)
    else:
        present, labels = np.unique(labels, return_inverse=True)
        own, classes = make_head(features, {"labels": labels}, len(present)), model.num_labels[0]
        head = {"kernel": np.zeros((features.shape[1], classes)), "bias": np.full(classes, MASKED)}
        head["kernel"][:, present], head["bias"][present] = own["kernel"], own["bias"]
    dtype = params["embeddings"]["word"].dtype
    classifier = {name: jnp.asarray(leaf, dtype)[None] for name, leaf in head.items()}
    return {**params, "classifier": classifier}
