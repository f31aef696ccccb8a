"""What metatrain, plan, adapt and evaluate share: a network and an algorithm for few-shot tasks."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.algorithms import lora
from metajax.algorithms.maml import maml
from metajax.algorithms.reptile import reptile
from metajax.config.groups import InnerSettings, ModelSettings
from metajax.errors import InputError
from metajax.models import (
    Transformer,
    classification_loss,
    compose,
    mentioned_rows,
    prototype_init,
    separate_layers,
    upper_layers,
    zero_init,
)
from metajax.runs.source import (
    Source,
    describe_source,
    open_source,
    pooling_of,
    without_dropout,
)
from metajax.types import InitFn, LossFn, MetaAlgorithm, Params, Reparametrize, Reparametrized, Task

# Features of this length make the prototypes' logits 10 times a cosine, near enough: the
# temperature that few-shot classifiers on unit features commonly have.
FEATURE_NORM = math.sqrt(10)
UNROLLED = 5  # More inner steps than this take too long to compile one by one.
_ONE_CHOICE = ("reptile", "anil")  # Of the layers that adapt.
_DEFAULTS = {
    "inner_steps": 3,
    "inner_lr": 0.1,
    "head": "prototypes",
    "algorithm": "maml",
    "layers": None,
    "lora": None,
}


class FewShot(NamedTuple):
    """A network for tasks of C classes, and how it adapts to one.

    Attributes:
        model: with one head of C classes.
        params: with a classifier only where tasks start from the checkpoint's.
        inner: `inner_steps`, `inner_lr`, `head`, `layers`, `lora` and `algorithm`, resolved.
        source: where the weights came from.
    """

    model: Transformer
    params: Params
    inner: dict[str, Any]
    source: Source

    @property
    def is_meta_trained(self) -> bool:
        """Whether the weights bring settings of the inner loop."""
        return self.source.record.get("record", {}).get("stage") == "metatrain"

    def inner_settings(self) -> dict[str, Any]:
        """Those of `InnerSettings`."""
        names = (field.name for field in dataclasses.fields(InnerSettings))
        return {name: self.inner[name] for name in names}

    def algorithm(self, **changes: Any) -> MetaAlgorithm:
        """The algorithm with these settings, or with some of them changed."""
        inner = self.inner | changes
        loss_fn, optimizer, trainable, shared = self.learner(inner)
        steps, name = inner["inner_steps"], inner["algorithm"]
        if name == "reptile":
            return reptile(loss_fn, optimizer, steps, **shared._asdict())
        return maml(
            loss_fn,
            optimizer,
            steps,
            first_order=name == "fomaml",
            low_memory=inner.get("low_memory", False),
            trainable=trainable,
            **shared._asdict(),
        )

    def curve(self, steps: int) -> Callable[[Params, Task], jax.Array]:
        """Compiled: query accuracy [E, steps + 1] of E tasks after 0, 1, ... inner steps."""
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

    def learner(self, inner: dict[str, Any] | None = None) -> "Learner":
        """Returns what the inner loop is made of, with these settings or others."""
        inner = self.inner if inner is None else inner
        loss_fn = without_dropout(classification_loss(self.model))
        prototypes = prototype_init(self.model)
        # Without dropout, as the loss.
        starts = {
            "prototypes": lambda params, support, rng: prototypes(params, support, None),
            "zero": zero_init(self.model),
            "checkpoint": None,
        }
        init_fn: Any = starts[inner["head"]]
        trainable = None
        # A loop keeps memory down, and compilation short.
        slim = inner.get("low_memory", False) or self.model.remat
        fast = jax.default_backend() == "cpu" and not slim
        reparametrize = mentioned_rows(self.model)
        if inner["layers"] is not None:
            reparametrize = upper_layers(self.model, inner["layers"])
        if inner["algorithm"] == "anil":
            reparametrize, trainable = upper_layers(self.model, 0), _in_head
        if inner["lora"] is not None:
            # The blocks stay stacked, or the adapters' first factors would be others.
            reparametrize = compose(reparametrize, with_adapters(inner["lora"]))
            loss_fn, trainable = lora.loss(loss_fn), _in_adapters
            init_fn = init_fn and lora.init_fn(init_fn)
        elif fast:
            reparametrize = compose(separate_layers(), reparametrize)
        unroll = fast and inner["inner_steps"] <= UNROLLED
        optimizer = optax.sgd(inner["inner_lr"])
        return Learner(loss_fn, optimizer, trainable, _Shared(unroll, reparametrize, init_fn))


class _Shared(NamedTuple):
    """What every algorithm takes; see `metajax.maml`."""

    unroll: bool
    reparametrize: Reparametrize
    init_fn: InitFn | None


class Learner(NamedTuple):
    """What learns a task, and which parameters the inner loop updates (None: all)."""

    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    trainable: Callable[[str], bool] | None
    shared: _Shared


def with_adapters(rank: int) -> Reparametrize:
    """The task in terms of low-rank adapters on the attention's kernels, merged in at its end.

    Their first factors are the same for every task and run: they are not trained, so that nothing
    but the plain parameters has to be kept.
    """

    def reparametrize(params: Params, task: Task) -> Reparametrized:
        rng = jax.random.key(0)
        adapted = lora.init(
            params, rank=rank, target=lambda path: path.endswith("qkv/kernel"), rng=rng
        )
        return adapted, task, lora.merge

    return reparametrize


def _in_head(path: str) -> bool:
    return path.startswith("classifier")


def _in_adapters(path: str) -> bool:
    return lora.is_adapter(path) or path.startswith("base/classifier")


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
    return _few_shot(open_source, spec, settings, partial(_resolve, inner), classes)


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
    return FewShot(model, source.params, resolved, source)


def _check_choice(inner: dict[str, Any], blocks: int) -> None:
    """Checks what adapts: all, some blocks, or adapters."""
    for name in ("layers", "lora"):
        if inner[name] is not None and inner["algorithm"] in _ONE_CHOICE:
            raise InputError(
                f"--{name} {inner[name]}: {inner['algorithm']} has no choice of what adapts; use "
                "maml or fomaml"
            )
    if inner["layers"] is not None and inner["lora"] is not None:
        raise InputError(
            f"--layers {inner['layers']}: with --lora the adapters of all blocks adapt; give one "
            "of the two"
        )
    if inner["layers"] is not None and inner["layers"] >= blocks:
        raise InputError(
            f"--layers {inner['layers']}: the model has {blocks} blocks; give fewer, or leave it "
            "out to adapt all"
        )


def _resolve(inner: InnerSettings, source: Source) -> dict[str, Any]:
    """The inner loop's settings: those given, else the weights' own, else the defaults; checked."""
    trained = source.record.get("record", {})
    own = trained["settings"] if trained.get("stage") == "metatrain" else {}
    given = dataclasses.asdict(inner)
    resolved = {}
    for name, default in _DEFAULTS.items():
        known = [value[name] for value in (given, own) if value.get(name) is not None]
        resolved[name] = known[0] if known else default
    chosen = inner.layers is not None or inner.lora is not None
    if chosen or resolved["algorithm"] in _ONE_CHOICE:
        # What the weights' own run chose gives way.
        resolved |= {"layers": inner.layers, "lora": inner.lora}
    _check_choice(resolved, source.model.config.num_hidden_layers)
    return resolved
