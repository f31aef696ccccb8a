"""What metatrain, plan, adapt and evaluate share: a network and an algorithm for few-shot tasks."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp

from metajax.algorithms import ALGORITHMS, Entry
from metajax.algorithms.maml import maml
from metajax.config.groups import AlgorithmSettings, InnerSettings, ModelSettings, check_taken
from metajax.errors import InputError
from metajax.models import Transformer
from metajax.runs.learner import Learner, make_algorithm, make_learner, make_schedule
from metajax.runs.source import Source, describe_source, open_source, pooling_of
from metajax.types import MetaAlgorithm, Params, Task

# Features of this length make the prototypes' logits 10 times a cosine, near enough: the
# temperature that few-shot classifiers on unit features commonly have.
FEATURE_NORM = math.sqrt(10)
_DEFAULTS = {
    "inner_steps": 3,
    "inner_lr": 0.1,
    "head": "prototypes",
    "layers": None,
    "lora": None,
}


class InnerChanges(TypedDict, total=False):
    """Settings of the inner loop that differ from those of a `FewShot`."""

    algorithm: str
    low_memory: bool
    inner_steps: int
    inner_lr: float
    head: str
    layers: int | None
    lora: int | None


class FewShot(NamedTuple):
    """A network for tasks of C classes, and how it adapts to one.

    Attributes:
        model: with one head of C classes.
        params: with a classifier only where tasks start from the checkpoint's.
        inner: `inner_steps`, `inner_lr`, `head`, `layers`, `lora` and `algorithm`, resolved.
        source: where the weights came from.
        seed: of the weights that an algorithm adds.
        learned: what the outer loop has trained besides `params`; None if it has not.
    """

    model: Transformer
    params: Params
    inner: dict[str, Any]
    source: Source
    seed: int = 0
    learned: dict[str, Any] | None = None

    @property
    def entry(self) -> Entry:
        """The algorithm's in the registry."""
        return ALGORITHMS[self.inner["algorithm"]]

    @property
    def is_meta_trained(self) -> bool:
        """Whether the weights bring settings of the inner loop."""
        return self.source.record.get("record", {}).get("stage") == "metatrain"

    @property
    def meta_params(self) -> Params:
        """The parameters as the algorithm trains them: with learned rates, for example."""
        if self.entry.initialisation is None:
            return self.params
        if self.learned:
            return {self.entry.initialisation: self.params, **self.learned}
        return self.algorithm().init(self.params)

    def inner_settings(self) -> dict[str, Any]:
        """Those of `InnerSettings`; None for what the algorithm does not take."""
        taken = self.entry.settings
        return {name: self.inner[name] if name in taken else None for name in _DEFAULTS}

    def algorithm(self, **changes: Unpack[InnerChanges]) -> MetaAlgorithm:
        """The algorithm with these settings, or with some of them changed."""
        return make_algorithm(self.model, {**self.inner, **changes}, jax.random.key(self.seed))

    def schedule(
        self, num_outer_steps: int, *, low_memory: bool
    ) -> MetaAlgorithm | Callable[[jax.Array], MetaAlgorithm]:
        """The algorithm that the outer loop trains, or that of each outer step."""
        inner = self.inner | {"low_memory": low_memory}
        return make_schedule(self.model, inner, jax.random.key(self.seed), num_outer_steps)

    def learner(self, **changes: Unpack[InnerChanges]) -> Learner:
        """What the inner loop is made of, with these settings or with some of them changed."""
        return make_learner(self.model, {**self.inner, **changes})

    def curve(self, steps: int) -> Callable[[Params, Task], jax.Array]:
        """Compiled: query accuracy [E, steps + 1] of E tasks after 0, 1, ... inner steps.

        Raises:
            InputError: the algorithm's steps are not plain SGD.
        """
        if self.entry.own_steps:
            raise InputError(
                f"--curve: {self.inner['algorithm']} takes no plain SGD steps; remove --curve"
            )
        loss_fn, optimizer, trainable, shared = self.learner()
        step = maml(loss_fn, optimizer, 1, trainable=trainable)

        def one(meta_params: Params, task: Task) -> jax.Array:
            params, task, _ = shared.reparametrize(meta_params, task)
            if shared.init_fn is not None:
                params = shared.init_fn(params, task.support, None)

            def adapt(params: Params) -> Params:
                return step.adapt(params, task.support, None)[0]

            def judge(params: Params, number: jax.Array) -> tuple[Params, jax.Array]:
                # Not even the start is judged outside the loop: that would be compiled once more.
                params = jax.lax.cond(number > 0, adapt, lambda start: start, params)
                return params, loss_fn(params, task.query, None)[1]["accuracy"]

            return jax.lax.scan(judge, params, jnp.arange(steps + 1))[1]

        return jax.jit(lambda params, tasks: jax.lax.map(partial(one, params), tasks))


def open_few_shot(
    spec: str, settings: ModelSettings, inner: InnerSettings, classes: int
) -> FewShot:
    """Opens `--model` for tasks of some number of classes.

    Args:
        spec: `--model`.
        settings: seed, dtype and remat.
        inner: settings that win over those of the run that trained the weights.
        classes: C.

    Raises:
        InputError: it cannot be used, or has not as many blocks as are to adapt.
    """
    few_shot = _few_shot(open_source, spec, settings, partial(_resolve, inner), classes)
    learned = few_shot.source.learned
    if not learned or few_shot.inner["algorithm"] != _own_settings(few_shot.source)["algorithm"]:
        return few_shot
    _check_learned(inner, few_shot)
    return few_shot._replace(learned=learned)


def _check_learned(inner: InnerSettings, few_shot: FewShot) -> None:
    """Checks that learned rates serve: they are there, one for each step."""
    if not few_shot.entry.learned_rates or isinstance(inner, AlgorithmSettings):
        return
    algorithm, own = few_shot.inner["algorithm"], _own_settings(few_shot.source)["inner_steps"]
    if inner.inner_lr is not None:
        raise InputError(
            f"--inner-lr {inner.inner_lr}: the rates of {algorithm} are learned; remove --inner-lr"
        )
    if few_shot.entry.least_steps and few_shot.inner["inner_steps"] > own:
        raise InputError(
            f"--inner-steps {few_shot.inner['inner_steps']}: {algorithm} has learned the rates of "
            f"{own} steps; give at most {own}"
        )


def _own_settings(source: Source) -> dict[str, Any]:
    """The settings of the run that meta-trained the weights; empty if none did."""
    record = source.record.get("record", {})
    return record["settings"] if record.get("stage") == "metatrain" else {}


def open_as_trained(spec: str, settings: ModelSettings, trained: FewShot, classes: int) -> FewShot:
    """Opens the weights that a model was meta-trained from, to adapt them as it adapts.

    Raises:
        InputError: they cannot be read.
    """
    return _few_shot(open_source, spec, settings, lambda _: trained.inner, classes)


def describe_few_shot(
    spec: str, settings: ModelSettings, inner: InnerSettings, classes: int
) -> FewShot:
    """As `open_few_shot`, but reads no weights: the parameters are `jax.ShapeDtypeStruct`s."""
    return _few_shot(describe_source, spec, settings, partial(_resolve, inner), classes)


def _few_shot(
    open_: Callable[..., Source],
    spec: str,
    settings: ModelSettings,
    resolve: Callable[[Source], dict[str, Any]],
    classes: int,
) -> FewShot:
    features = {"pooling": pooling_of(spec, "mean"), "feature_norm": FEATURE_NORM}
    source = open_(spec, settings, head="encoder", **features)
    resolved = resolve(source)
    if resolved["head"] == "checkpoint":
        source = open_(spec, settings, head="classification", num_labels=(classes,), **features)
    model = source.model.replace(head="classification", num_labels=(classes,), label_names=None)
    return FewShot(model, source.params, resolved, source, settings.seed)


def _resolve(inner: InnerSettings, source: Source) -> dict[str, Any]:
    """The inner loop's settings: those given, else the weights' own, else the defaults; checked."""
    own = _own_settings(source)
    given = {name: value for name, value in dataclasses.asdict(inner).items() if value is not None}
    algorithm = given.get("algorithm") or own.get("algorithm") or "maml"
    if algorithm == "protonet" and given.get("inner_steps"):
        algorithm = "proto-maml"  # The same prototypes, and steps from them.
    check_taken(algorithm, given)
    own_head = own.get("head") if own.get("head") in ALGORITHMS[algorithm].heads else None
    own = own | {"head": own_head}
    if inner.layers is not None or inner.lora is not None:
        own = own | {"layers": None, "lora": None}  # What the weights' own run chose gives way.
    resolved = {
        name: _first(given.get(name), own.get(name), default)
        if name in ALGORITHMS[algorithm].settings
        else _fixed(algorithm, name)
        for name, default in _DEFAULTS.items()
    }
    _check_layers(resolved, source.model.config.num_hidden_layers)
    return resolved | {"algorithm": algorithm}


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _fixed(algorithm: str, name: str) -> Any:
    """The value of a setting that an algorithm does not take."""
    heads = ALGORITHMS[algorithm].heads
    return (_DEFAULTS | {"inner_steps": 0, "head": heads[0] if heads else None})[name]


def _check_layers(inner: dict[str, Any], blocks: int) -> None:
    """Checks what adapts: all, some blocks, or adapters."""
    layers = inner["layers"]
    if layers is None:
        return
    if inner["lora"] is not None:
        raise InputError(
            f"--layers {layers}: with --lora the adapters of all blocks adapt; give one of the two"
        )
    if layers >= blocks:
        raise InputError(
            f"--layers {layers}: the model has {blocks} blocks; give fewer, or remove --layers to "
            "adapt all"
        )
