"""A network and an algorithm for few-shot tasks, for metatrain, plan, adapt and evaluate."""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp

from metajax.algorithms import ALGORITHMS, Entry
from metajax.algorithms.maml import maml
from metajax.config.fields import flag, flag_and_value
from metajax.config.groups import ModelSettings
from metajax.config.inner import AlgorithmSettings, InnerSettings
from metajax.errors import InputError
from metajax.models import Transformer
from metajax.models.contracts import TransformerChanges
from metajax.models.prefix import prefix_length
from metajax.platforms import full_jit
from metajax.runs.adapters import is_frozen, lora_kernels, make_adapters
from metajax.runs.described import describe_source, pooling_of
from metajax.runs.inner import DEFAULTS, WHAT, resolve
from metajax.runs.learner import (
    Learner,
    keeps_adapters,
    make_algorithm,
    make_learner,
    make_schedule,
)
from metajax.runs.source import Source, open_source, text_length
from metajax.types import MetaAlgorithm, Params, Task

_log = logging.getLogger("metajax")

# With features of this length, logits of prototypes are about 10 times a cosine. This is a common
# temperature of few-shot classifiers on features of unit length.
LOGIT_SCALE = 10.0
FEATURE_NORM = math.sqrt(LOGIT_SCALE)


class InnerChanges(TypedDict, total=False):
    """Changes to the settings of a `FewShot`'s inner loop."""

    algorithm: str
    low_memory: bool
    loop: bool
    inner_steps: int
    inner_lr: float
    head: str
    layers: int | None
    lora: int | None


class FewShot(NamedTuple):
    """A network for tasks of C classes or for documents, with the settings of its inner loop.

    Attributes:
        model: network with one head of C classes, or with a causal-LM head for documents.
        params: its parameters. They have a classifier only if tasks start from the checkpoint's
            head.
        inner: the resolved settings of `InnerSettings`, and `algorithm`.
        source: origin of the weights.
        seed: seed for weights that the algorithm adds.
        learned: learned rates of the checkpoint, or None.
    """

    model: Transformer
    params: Params
    inner: dict[str, Any]
    source: Source
    seed: int = 0
    learned: dict[str, Any] | None = None

    @property
    def entry(self) -> Entry:
        """The algorithm's entry in the registry."""
        return ALGORITHMS[self.inner["algorithm"]]

    @property
    def is_meta_trained(self) -> bool:
        """Whether the weights are a checkpoint of metatrain, with settings of the inner loop."""
        return self.source.record.get("record", {}).get("stage") == "metatrain"

    @property
    def frozen(self) -> Callable[[str], bool] | None:
        """The meta-parameters that no stage changes; see `metajax.outer_loop`."""
        return is_frozen if self.inner["freeze"] else None

    @property
    def start(self) -> Params:
        """The initialization that the algorithm trains: the network's parameters, or split."""
        return self.source.split_for(self.inner) if self.has_adapters else self.params

    def text_length(self, max_length: int) -> int:
        """Limit the tokens per text to the positions of the model; see `text_length`."""
        count = prefix_length(self.params) or self.inner["prefix"] or 0
        return text_length(self.model, max_length, prefix=count)

    def merge(self, params: Params) -> Params:
        """Return the network's parameters from those that the algorithm has adapted."""
        adapters = make_adapters(self.model, self.inner) if self.has_adapters else None
        return params if adapters is None else adapters.merge(params)

    @property
    def has_adapters(self) -> bool:
        """Whether the meta-parameters are `{"base", "adapters"}`."""
        return keeps_adapters(self.inner)

    @property
    def has_stateless_steps(self) -> bool:
        """Whether an inner step depends on the parameters alone, as one of SGD does."""
        return self.entry.plain_steps and self.inner["inner_optimizer"] is None

    @property
    def can_choose_rate(self) -> bool:
        """Whether `adapt` can choose the rate of the inner steps: they are plain, and some."""
        return self.entry.plain_steps and self.inner["inner_steps"] > 0

    @property
    def meta_params(self) -> Params:
        """The meta-parameters of the algorithm, which may include learned rates, for example."""
        return self._continued(self.algorithm()).init(self.start)

    def _continued(self, algorithm: MetaAlgorithm) -> MetaAlgorithm:
        """Let an algorithm begin with what the checkpoint has learned, if anything."""
        key, learned = self.entry.initialization, self.learned
        if key is None or learned is None:
            return algorithm
        return algorithm._replace(init=lambda params: {key: params, **learned})

    def without_inner_loop(self) -> "FewShot":
        """Return the network alone, without adapters or learned rates of the inner loop."""
        return self._replace(inner=DEFAULTS | {"algorithm": "maml"}, learned=None)

    def inner_settings(self) -> dict[str, Any]:
        """Return the fields of `InnerSettings`, not given where the algorithm does not take one."""
        taken, absent = self.entry.settings, {"lora_kernels": ()}
        return {name: self.inner[name] if name in taken else absent.get(name) for name in DEFAULTS}

    def algorithm(self, **changes: Unpack[InnerChanges]) -> MetaAlgorithm:
        """Make the algorithm with these settings and some changes."""
        return make_algorithm(self.model, {**self.inner, **changes}, jax.random.key(self.seed))

    def schedule(
        self, num_outer_steps: int
    ) -> MetaAlgorithm | Callable[[jax.Array], MetaAlgorithm]:
        """Make the algorithm for the outer loop, or a function from the outer step to it."""
        made = make_schedule(self.model, self.inner, jax.random.key(self.seed), num_outer_steps)
        if isinstance(made, MetaAlgorithm):
            return self._continued(made)
        return lambda step: self._continued(made(step))

    def learner(self, **changes: Unpack[InnerChanges]) -> Learner:
        """Make the parts of the inner loop with these settings and some changes."""
        return make_learner(self.model, {**self.inner, **changes})

    def curve(self, steps: int) -> Callable[[Params, Task], jax.Array]:
        """Compile `(params, tasks) -> [E, steps + 1]`, the query accuracy after 0, 1, ... steps.

        For inner steps of plain SGD, which have no state.
        """
        loss_fn, optimizer, trainable, shared, _ = self.learner()
        step = maml(loss_fn, optimizer, 1, trainable=trainable)

        def one(meta_params: Params, task: Task) -> jax.Array:
            params, task, _ = shared.reparametrize(meta_params, task)
            if shared.init_fn is not None:
                params = shared.init_fn(params, task.support, None)

            def adapt(params: Params) -> Params:
                return step.adapt(params, task.support, None)[0]

            def judge(params: Params, number: jax.Array) -> tuple[Params, jax.Array]:
                # The start is also evaluated in the loop, so that the loss is compiled once.
                params = jax.lax.cond(number > 0, adapt, lambda start: start, params)
                return params, loss_fn(params, task.query, None)[1]["accuracy"]

            return jax.lax.scan(judge, params, jnp.arange(steps + 1))[1]

        return full_jit(lambda params, tasks: jax.lax.map(partial(one, params), tasks))


def not_meta_trained(spec: str) -> str:
    """Return the message for a model without the method checkpoint of `evaluate`."""
    return (
        f"{spec}: is not meta-trained, but the method checkpoint needs a meta-trained model; give "
        "the workdir of metatrain, or remove checkpoint from --methods"
    )


def open_few_shot(
    spec: str, settings: ModelSettings, inner: InnerSettings, classes: int | None
) -> FewShot:
    """Open `--model` for tasks of C classes, or for documents.

    Args:
        spec: `--model`.
        settings: seed, dtype and remat.
        inner: settings that override the settings of the run that trained the weights.
        classes: C; None for documents.

    Raises:
        InputError: the model cannot be used, or has fewer blocks than `--layers` needs.
    """
    resolved = partial(resolve, inner, documents=classes is None)
    few_shot = _few_shot(open_source, spec, settings, resolved, classes)
    source, algorithm = few_shot.source, few_shot.inner["algorithm"]
    if not source.learned or algorithm != source.meta_settings["algorithm"]:
        return few_shot
    problem = _unlike_learned_rates(inner, few_shot)
    if problem is None:
        return few_shot._replace(learned=source.learned)
    if not isinstance(inner, AlgorithmSettings):
        raise InputError(problem)
    _log.warning("%s: the learned rates start again at %g", spec, few_shot.inner["inner_lr"])
    return few_shot


def _unlike_learned_rates(inner: InnerSettings, few_shot: FewShot) -> str | None:
    """Return why the learned rates of a checkpoint cannot be used with these settings, if so."""
    algorithm, steps = few_shot.inner["algorithm"], few_shot.inner["inner_steps"]
    if not few_shot.source.continues(few_shot.inner):
        names = (*WHAT, "lora_kernels")
        given = next(name for name in names if getattr(inner, name) not in (None, ()))
        return (
            f"{flag_and_value(given, getattr(inner, given))}: {algorithm} has learned rates for "
            f"other parameters; remove {flag(given)}"
        )
    trained = few_shot.source.meta_settings
    learned_steps, optimizer = trained["inner_steps"], trained.get("inner_optimizer")
    if few_shot.entry.learned_rates and few_shot.inner["inner_optimizer"] != optimizer:
        return (
            f"--inner-optimizer {inner.inner_optimizer}: {algorithm} has learned rates for "
            f"{optimizer or 'sgd'}; remove --inner-optimizer"
        )
    if few_shot.entry.learned_rates and inner.inner_lr is not None:
        return f"--inner-lr {inner.inner_lr}: {algorithm} has learned rates; remove --inner-lr"
    if few_shot.entry.rates_per_step and steps > learned_steps:
        return (
            f"--inner-steps {steps}: {algorithm} has learned rates for {learned_steps} steps; "
            f"give at most {learned_steps}"
        )
    return None


def open_as_trained(
    spec: str, settings: ModelSettings, trained: FewShot, classes: int | None
) -> FewShot:
    """Open the weights from before meta-training, with the inner loop of the meta-trained model.

    Raises:
        InputError: the weights cannot be read.
    """
    return _few_shot(open_source, spec, settings, lambda _: trained.inner, classes)


def describe_few_shot(
    spec: str, settings: ModelSettings, inner: InnerSettings, classes: int | None
) -> FewShot:
    """Like `open_few_shot`, but without weights: the parameters are `jax.ShapeDtypeStruct`s."""
    resolved = partial(resolve, inner, documents=classes is None)
    return _few_shot(describe_source, spec, settings, resolved, classes)


def _few_shot(
    open_: Callable[..., Source],
    spec: str,
    settings: ModelSettings,
    inner_of: Callable[[Source], dict[str, Any]],
    classes: int | None,
) -> FewShot:
    if classes is None:
        source = open_(spec, settings, head="causal_lm")
        resolved = inner_of(source)
        lora_kernels(source.params, resolved["lora_kernels"])  # The check.
        return FewShot(source.model, source.params, resolved, source, settings.seed)
    features = {"pooling": pooling_of(spec, "mean"), "feature_norm": FEATURE_NORM}
    source = open_(spec, settings, head="encoder", **features)
    resolved = inner_of(source)
    lora_kernels(source.params, resolved["lora_kernels"])  # The check.
    if resolved["head"] == "checkpoint":
        source = open_(spec, settings, head="classification", num_labels=(classes,), **features)
        if source.model.projection is not None or source.model.siamese:
            read = "compares the texts of pairs" if source.model.siamese else "reads a projection"
            raise InputError(
                f"--head checkpoint: the head of {spec} {read}, and inner steps do not; choose "
                "prototypes or zero"
            )
    changes: TransformerChanges = {"head": "classification", "num_labels": (classes,)}
    changes |= {"label_names": None, "projection": None, "siamese": False}
    model = source.model.replace(**changes)
    return FewShot(model, source.params, resolved, source, settings.seed)
