"""The inner steps of `adapt` on one task's examples, one part of the examples at a time."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from metajax import data
from metajax.algorithms.prototypes import prototype_head
from metajax.data.batches import token_batch
from metajax.data.packing import plan_shapes
from metajax.platforms import quick_jit
from metajax.runs.few_shot import FewShot
from metajax.runs.learner import make_direction
from metajax.tree import combine, select
from metajax.types import Batch, LossFn, Params, Task

_TOKENS = ("input_ids", "token_type_ids", "position_ids", "example_ids")
# The number of folds keeps cross-validation about as fast as the steps on this many examples.
_EXAMPLES, _MOST_FOLDS = 128, 4
_PART = 512  # Approximate tokens per part.


def fold(examples: data.TokenizedTask) -> tuple[Batch, int]:
    """Split a task's examples into packed parts, with the classes spread evenly over the parts.

    Returns:
        The P parts, and the number F of folds. The parts are leaves [P, ...] from
        `metajax.data.packed_parts`, with `labels` and `example_mask` [P, B], which is 0 for
        padding. P is a multiple of F. Fold f has the parts f, F + f, 2 F + f, ...
    """
    tokens, count = examples.tokens, len(examples.labels)
    folds = min(count, max(2, min(_MOST_FOLDS, 1 + _EXAMPLES // count)))
    parts = folds * min(-(-int(tokens.lengths.sum()) // (folds * _PART)), count // folds)
    return pack(examples, parts), folds


def pack(examples: data.TokenizedTask, parts: int) -> Batch:
    """Split a task's examples into a given number of packed parts; see `fold`."""
    tokens, count = examples.tokens, len(examples.labels)
    size = -(-count // parts)
    # After sorting by class, part p has the examples p, P + p, 2 P + p, ...
    places = (np.arange(parts)[:, None] + parts * np.arange(size)).reshape(-1)
    rows = np.argsort(examples.labels, kind="stable")[np.minimum(places, count - 1)]
    filled, longest = places < count, int(tokens.lengths.max())
    batch = token_batch(tokens, rows, longest)
    batch["attention_mask"] *= filled[:, None]
    lengths = batch["attention_mask"].sum(1).reshape(parts, size)
    shapes, *_ = plan_shapes([(lengths,)], longest, steps=1)
    batch |= {"labels": examples.labels[rows], "example_mask": filled.astype(np.float32)}
    return data.packed_parts(batch, parts, [shapes])


class Point(NamedTuple):
    """The start of the steps on some parts of the examples.

    Attributes:
        use: numbers of the parts.
        params: the parameters.
        loss: mean loss on the examples of these parts.
        grads: gradient of the loss with respect to the trainable parameters.
    """

    use: tuple[int, ...]
    params: Params
    loss: float
    grads: Params


class Descent:
    """The inner steps of one task.

    The gradient is compiled once, for one part of the examples, and used for all parts, steps and
    rates. It needs the memory of one part.

    Args:
        few_shot: a network, and the settings of its inner loop.
        parts: the examples, from `fold`.
        folds: number of folds.
    """

    def __init__(self, few_shot: FewShot, parts: Batch, folds: int) -> None:
        # A loop over the blocks compiles in half the time.
        self._few_shot, learner = few_shot, few_shot.learner(loop=True)
        self._folds = folds
        self._init_fn = learner.shared.init_fn
        self._trainable = learner.trainable or (lambda path: True)
        count = len(parts["labels"])
        rows = {key: parts[key].reshape(-1, parts[key].shape[-1]) for key in _TOKENS}
        reparametrize = learner.shared.reparametrize
        self._rows, self._origin = rows, few_shot.start
        self._params, task = jax.jit(
            lambda params, rows: reparametrize(params, Task(rows, None))[:2]
        )(self._origin, rows)
        self._undo = jax.jit(
            lambda params, rows, own: reparametrize(params, Task(rows, None))[2](own)
        )
        rows = {k: leaf.reshape(count, -1, *leaf.shape[1:]) for k, leaf in task.support.items()}
        rest = {key: leaf for key, leaf in parts.items() if key not in _TOKENS}
        self._parts = [{k: leaf[p] for k, leaf in (rows | rest).items()} for p in range(count)]
        self._counts = rest["example_mask"].sum(1).astype(int)

        features, attach = few_shot.model.features, learner.attach
        self._features = quick_jit(lambda params, part: features(attach(params), part))
        self._direction = make_direction(few_shot.inner)
        self._turn = self._direction and jax.jit(self._direction.update)
        self._add_gradient = quick_jit(_adder(learner.loss_fn), donate_argnums=0)
        self._first = [self._features_of(self._params, part) for part in self.parts]

    @property
    def parts(self) -> tuple[int, ...]:
        """The numbers of all parts."""
        return tuple(range(len(self._parts)))

    def begin(self, use: tuple[int, ...]) -> Point:
        """Return the start of the steps on some parts, with its loss and gradient."""
        params = self.start(use)
        return Point(use, params, *self._gradient(params, use))

    def start(self, use: Sequence[int]) -> Params:
        """Return the parameters before the steps on some parts."""
        if self._few_shot.inner["head"] == "prototypes":
            features = np.concatenate([self._first[p] for p in use])
            labels = np.concatenate([self._labels(p) for p in use])
            classes = self._few_shot.model.num_labels[0]
            prototypes = prototype_head(features, {"labels": labels}, classes)
            head = {name: jnp.asarray(leaf)[None] for name, leaf in prototypes.items()}
            return _with_classifier(self._params, head)
        return self._params if self._init_fn is None else self._init_fn(self._params, {}, None)

    def descend(
        self, begin: Point, rate: float, *, stop: bool = False, after: bool = True
    ) -> tuple[Params, list[float]]:
        """Take the inner steps.

        Args:
            begin: start of the steps.
            rate: rate of the steps.
            stop: whether to stop after the first step that increases the loss.
            after: whether to compute the loss after the last step.

        Returns:
            The parameters, and the loss before each step and after the last step.
        """
        use, params, loss, grads = begin
        steps, losses = self._few_shot.inner["inner_steps"], [loss]
        state = self._direction and self._direction.init(grads)
        for number in range(1, steps + 1):
            changed, frozen = select(params, self._trainable)
            if self._turn is not None:
                grads, state = self._turn(grads, state)
            params = combine(jax.tree.map(partial(_move, rate), changed, grads), frozen)
            # The loss shows whether the first step is too long, in a quarter of a gradient's time.
            first = stop and 1 == number < steps
            if first or (after and number == steps):
                loss = self.loss(params, use)
            if number < steps and not (first and loss > losses[0]):
                loss, grads = self._gradient(params, use)
            losses.append(loss)
            if stop and not losses[-1] <= losses[-2]:
                break
        return params, losses

    def loss(self, params: Params, use: Sequence[int]) -> float:
        """Compute the mean loss on the examples of some parts."""
        logits = np.concatenate([self._logits(params, self._features_of(params, p)) for p in use])
        labels = np.concatenate([self._labels(p) for p in use])
        return float(-scipy.special.log_softmax(logits, 1)[np.arange(len(labels)), labels].mean())

    def left_out(self, rate: float | None) -> tuple[int, int]:
        """Cross-validate: adapt to all folds except for one, and label the examples of that fold.

        Args:
            rate: rate of the inner steps. None takes no steps.

        Returns:
            The number of correct labels, and the number of examples. Only examples of a class that
            the other folds contain are counted.
        """
        right = judged = 0
        if self._folds < 2:
            return 0, 0
        for number in range(self._folds):
            use = tuple(p for p in self.parts if p % self._folds != number)
            known = np.unique(np.concatenate([self._labels(p) for p in use]))
            params = self.start(use)
            if rate is not None:
                params, _ = self.descend(self.begin(use), rate, after=False)
            for part in self.parts[number :: self._folds]:
                features = self._first[part] if rate is None else self._features_of(params, part)
                guesses = known[self._logits(params, features)[:, known].argmax(1)]
                judged += int(np.isin(self._labels(part), known).sum())
                right += int((guesses == self._labels(part)).sum())
        return right, judged

    def undo(self, params: Params) -> Params:
        """Undo the reparametrization, and return all parameters."""
        return self._undo(self._origin, self._rows, params)

    def _gradient(self, params: Params, use: Sequence[int]) -> tuple[float, Params]:
        changed, frozen = select(params, self._trainable)
        counts = self._counts[list(use)]
        grads = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), changed)
        losses = []
        for part, share in zip(use, counts / counts.sum(), strict=True):
            grads, loss = self._add_gradient(
                grads, changed, frozen, self._parts[part], np.float32(share)
            )
            losses.append(loss)
        return sum(map(float, losses)), grads

    def _labels(self, part: int) -> np.ndarray:
        return np.asarray(self._parts[part]["labels"])[: self._counts[part]]

    def _features_of(self, params: Params, part: int) -> np.ndarray:
        """Compute the features of a part's examples [B, H]."""
        # Remove the head, which the parameters lack at first, so that one program is compiled.
        if "base" in params:
            encoder = params | {"base": _headless(params["base"])}
        else:
            encoder = _headless(params)
        features = np.asarray(self._features(encoder, self._parts[part]), np.float32)
        return features[: self._counts[part]]

    def _logits(self, params: Params, features: np.ndarray) -> np.ndarray:
        head = params.get("base", params)["classifier"]
        return features @ np.asarray(head["kernel"][0]) + np.asarray(head["bias"][0])


def describe_gradient(
    few_shot: FewShot, parts: Batch
) -> tuple[Callable[..., Any], tuple[Any, ...], Any]:
    """Describe the gradient that a `Descent` compiles, from shapes.

    Args:
        few_shot: a network from `describe_few_shot`, and the settings of its inner loop.
        parts: the examples, from `fold`.

    Returns:
        The function; its arguments, of which it overwrites the first; and what a step keeps in
        memory besides the examples: the weights, those before and after the step, and the gradient.
    """
    learner, count = few_shot.learner(loop=True), len(parts["labels"])
    rows = {key: parts[key].reshape(-1, parts[key].shape[-1]) for key in _TOKENS}

    def begin(weights: Params, rows: Batch) -> tuple[Params, Params, Batch]:
        source = few_shot.source._replace(params=weights)
        origin = few_shot._replace(source=source, params=weights).start
        params, task = learner.shared.reparametrize(origin, Task(rows, None))[:2]
        if few_shot.inner["head"] == "prototypes":
            size, classes = few_shot.model.feature_size, few_shot.model.num_labels[0]
            head = {"kernel": jnp.zeros((1, size, classes)), "bias": jnp.zeros((1, classes))}
            params = _with_classifier(params, head)
        elif learner.shared.init_fn is not None:
            params = learner.shared.init_fn(params, {}, None)
        return origin, params, task.support

    origin, params, tokens = jax.eval_shape(begin, few_shot.params, rows)
    changed, frozen = select(params, learner.trainable or (lambda path: True))
    part = {
        key: leaf.update(shape=(leaf.shape[0] // count, *leaf.shape[1:]))
        for key, leaf in tokens.items()
    } | {
        key: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        for key, leaf in parts.items()
        if key not in _TOKENS
    }
    share = jax.ShapeDtypeStruct((), jnp.float32)
    arguments = (changed, changed, frozen, part, share)
    return _adder(learner.loss_fn), arguments, (origin, params, changed, changed)


def _move(rate: float, leaf: jax.Array, grad: jax.Array) -> jax.Array:
    # This uses NumPy because XLA would compile one program per shape.
    return jax.device_put(np.asarray(leaf) - leaf.dtype.type(rate) * np.asarray(grad))


def _with_classifier(params: Params, head: Params) -> Params:
    if "base" in params:
        return {**params, "base": _with_classifier(params["base"], head)}
    return {**params, "classifier": head}


def _headless(params: Params) -> Params:
    return {key: value for key, value in params.items() if key != "classifier"}


def _adder(loss_fn: LossFn) -> Callable[..., tuple[Params, jax.Array]]:
    """Make a function that adds a part's weighted gradient to a total, and returns its loss."""

    def add(
        total: Params, changed: Params, frozen: Params, part: Batch, share: jax.Array
    ) -> tuple[Params, jax.Array]:
        def loss_of(changed: Params) -> jax.Array:
            return share * loss_fn(combine(changed, frozen), part, None)[0]

        loss, grads = jax.value_and_grad(loss_of)(changed)
        return jax.tree.map(jnp.add, total, grads), loss

    return add
