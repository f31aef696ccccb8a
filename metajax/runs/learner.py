"""Make an algorithm of the registry for a network and the settings of the inner loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from metajax.algorithms import ALGORITHMS, lora
from metajax.algorithms.adaptation import UNROLLED
from metajax.algorithms.clipping import clip_by_global_norm
from metajax.algorithms.imaml import imaml
from metajax.algorithms.maml import maml
from metajax.algorithms.meta_sgd import maml_plus_plus, meta_sgd
from metajax.algorithms.prototypes import leopard
from metajax.algorithms.reptile import reptile
from metajax.algorithms.test_time import test_time_training
from metajax.models import (
    Transformer,
    causal_lm_loss,
    classification_loss,
    compose,
    mentioned_rows,
    prototype_init,
    separate_layers,
    upper_layers,
    zero_init,
)
from metajax.platforms import target_platform
from metajax.runs.adapters import adapts, in_head, make_adapters
from metajax.runs.source import without_dropout
from metajax.types import (
    Batch,
    InitFn,
    Key,
    LossFn,
    MetaAlgorithm,
    Params,
    Reparametrize,
    Task,
)

# MAML++ uses the losses after all inner steps in this fraction of the outer steps (Antoniou et al.
# 2019, section 4; 15 of 150 epochs in their code). It does not begin with first order, which can
# diverge with learned rates.
_MULTI_STEP = 0.1
_DIRECTIONS = {
    "momentum": optax.trace(0.9),
    "adam": optax.scale_by_adam(eps_root=1e-8),
}


class Learner(NamedTuple):
    """The parts of an inner loop.

    Attributes:
        loss_fn: the loss of the parameters that the inner loop changes.
        optimizer: the inner optimizer.
        trainable: predicate on a path; None updates all parameters.
        shared: the arguments that most algorithms share.
        attach: from these parameters to those that the network reads.
    """

    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    trainable: Callable[[str], bool] | None
    shared: "Shared"
    attach: Callable[[Params], Params]


class Shared(NamedTuple):
    """The arguments that most algorithms share; see `metajax.maml`."""

    unroll: bool
    reparametrize: Reparametrize
    init_fn: InitFn | None


def make_learner(model: Transformer, inner: dict[str, Any]) -> Learner:
    """Make the parts of the inner loop.

    Args:
        model: network with one head of C classes, or with a causal-LM head for streams of text.
        inner: resolved settings of the inner loop, see `FewShot.inner`, and optionally `low_memory`
            and `loop`: whether a loop runs over the blocks.
    """
    documents = model.head == "causal_lm"
    loss_fn = without_dropout((causal_lm_loss if documents else classification_loss)(model))
    prototypes = prototype_init(model)
    # Prototypes are computed without dropout, like the loss.
    starts = {
        "prototypes": lambda params, support, rng: prototypes(params, support, None),
        "zero": zero_init(model),
    }
    init_fn: Any = starts.get(inner["head"])
    trainable = None
    # A loop compiles faster, but copies the activations of each block.
    fast = not (inner.get("low_memory", False) or inner.get("loop", False) or model.remat)
    # A language model predicts tokens of the whole table.
    reparametrize = compose() if documents else mentioned_rows(model)
    if inner["layers"] is not None:
        reparametrize = upper_layers(model, inner["layers"])
    if inner["algorithm"] == "anil":
        reparametrize, trainable = upper_layers(model, 0), in_head
    adapters = make_adapters(model, inner)
    attach: Callable[[Params], Params] = _unchanged
    if adapters is not None:
        attach = adapters.attach
        if keeps_adapters(inner):
            # No inner step changes the base, so that no smaller form is needed.
            reparametrize = compose()
            attach = lora.freeze(attach, in_head) if inner["freeze"] else attach
            attach = _separately(attach) if fast else attach
        else:
            # Keep the blocks stacked, because initial factors depend on the shapes.
            reparametrize = compose(adapters.reparametrize, lora.reparametrize(reparametrize))
        loss_fn, trainable = lora.loss(loss_fn, attach), adapts
        init_fn = init_fn and lora.init_fn(init_fn, attach)
    elif fast:
        reparametrize = compose(separate_layers(), reparametrize)
    unroll = fast and target_platform() == "cpu" and inner["inner_steps"] <= UNROLLED
    optimizer = _inner_optimizer(inner)
    shared = Shared(unroll, reparametrize, init_fn)
    return Learner(loss_fn, optimizer, trainable, shared, attach)


def takes_low_memory(low_memory: bool, *, remat: bool) -> bool:
    """Whether the inner loop has `low_memory`: if asked for, and on an accelerator with remat.

    Without it, the second derivatives would store the products in a block there.
    """
    return low_memory or (remat and target_platform() != "cpu")


def _unchanged(params: Params) -> Params:
    return params


def keeps_adapters(inner: dict[str, Any]) -> bool:
    """Whether the meta-parameters are `{"base", "adapters"}`.

    They are if the base is frozen, or if adapters have learned rates.
    """
    has_adapters = any(inner[name] is not None for name in ("lora", "prefix", "trainable"))
    return has_adapters and bool(inner["freeze"] or ALGORITHMS[inner["algorithm"]].learned_rates)


def make_direction(inner: dict[str, Any]) -> optax.GradientTransformation | None:
    """Make what the inner optimizer does to a gradient before the rate. None: it is plain SGD."""
    direction = _DIRECTIONS.get(inner["inner_optimizer"])
    if inner["inner_clip_norm"] is None:
        return direction
    clip = clip_by_global_norm(inner["inner_clip_norm"])
    return clip if direction is None else optax.chain(clip, direction)


def _inner_optimizer(inner: dict[str, Any]) -> optax.GradientTransformation:
    direction, descent = make_direction(inner), optax.sgd(inner["inner_lr"])
    return descent if direction is None else optax.chain(direction, descent)


def _separately(attach: Callable[[Params], Params]) -> Callable[[Params], Params]:
    """Separate the blocks of what the network reads; see `separate_layers`."""

    def attach_separately(params: Params) -> Params:
        attached = attach(params)
        if isinstance(attached["layers"], list):
            return attached
        return separate_layers()(attached, Task(None, None))[0]

    return attach_separately


def make_algorithm(
    model: Transformer,
    inner: dict[str, Any],
    rng: Key,
    *,
    step: jax.Array | None = None,
    multi_step: int = 0,
) -> MetaAlgorithm:
    """Make the algorithm with the name `inner["algorithm"]`.

    Args:
        model: network with one head of C classes.
        inner: as for `make_learner`.
        rng: key for weights that LEOPARD adds.
        step: outer step, for MAML++ only; see `metajax.maml_plus_plus`.
        multi_step: number of outer steps with all losses, for MAML++ only.
    """
    loss_fn, optimizer, trainable, shared, _ = make_learner(model, inner)
    steps = inner["inner_steps"]
    low_memory = takes_low_memory(inner.get("low_memory", False), remat=model.remat)
    stream = model.head == "causal_lm"  # Of documents.
    common: dict[str, Any] = shared._asdict()
    exact = common | {"low_memory": low_memory, "trainable": trainable}
    match ALGORITHMS[inner["algorithm"]].constructor:
        case "reptile":
            return reptile(loss_fn, optimizer, steps, stream=stream, **common)
        case "imaml":
            return imaml(loss_fn, optimizer, steps, trainable=trainable, **common)
        case "meta_sgd":
            rate, direction = inner["inner_lr"], make_direction(inner)
            return meta_sgd(loss_fn, rate, steps, direction=direction, stream=stream, **exact)
        case "maml_plus_plus":
            return maml_plus_plus(
                loss_fn,
                inner["inner_lr"],
                steps,
                stacked=lambda path: path.removeprefix("adapters/").startswith("layers/"),
                direction=make_direction(inner),
                trainable=trainable,
                low_memory=low_memory,
                unroll=shared.unroll,
                init_fn=shared.init_fn,
                stream=stream,
                step=step,
                multi_step=multi_step,
            )
        case "test_time_training":
            first_order = inner["algorithm"] == "first-order-test-time-training"
            weights = _predicted_tokens
            return test_time_training(
                loss_fn, optimizer, steps, first_order=first_order, chunk_weights=weights, **exact
            )
        case "leopard":
            return leopard(
                lambda params, batch, rng: model.features(params, batch),
                model.feature_size,
                model.num_labels[0],
                optimizer,
                steps,
                width=model.feature_size,
                rng=rng,
                low_memory=low_memory,
                unroll=shared.unroll,
                reparametrize=shared.reparametrize,
            )
        case "maml" | "anil" | "proto_maml" | "protonet":
            # MAML with other settings of trainable, init_fn and the number of steps.
            first_order = inner["algorithm"] == "fomaml"
            return maml(loss_fn, optimizer, steps, first_order=first_order, stream=stream, **exact)
        case other:
            raise NotImplementedError(f"{other}: add a case to make_algorithm")


def _predicted_tokens(chunks: Batch) -> jax.Array:
    """Return how many tokens each chunk [K, B, L] predicts, so that padding does not count."""
    return (chunks["attention_mask"][..., 1:] > 0).sum((1, 2))


def make_schedule(
    model: Transformer, inner: dict[str, Any], rng: Key, num_outer_steps: int
) -> MetaAlgorithm | Callable[[jax.Array], MetaAlgorithm]:
    """Make the algorithm, or for MAML++ a function from the outer step to the algorithm."""
    multi_step = round(_MULTI_STEP * num_outer_steps)
    if inner["algorithm"] != "maml++" or not multi_step:
        return make_algorithm(model, inner, rng)
    return lambda step: make_algorithm(model, inner, rng, step=step, multi_step=multi_step)


def adapted_model(model: Transformer, inner: dict[str, Any]) -> Transformer:
    """Return the network for the parameters from `as_classifier`."""
    generated = inner["algorithm"] == "leopard"
    return model.replace(projection=model.feature_size) if generated else model


def as_classifier(adapted: Params) -> Params:
    """Convert the result of an algorithm's `adapt` to parameters of a network that labels text."""
    if "encoder" not in adapted:
        return adapted
    head = {name: leaf[None] for name, leaf in adapted["head"].items()}
    return {**adapted["encoder"], "projection": adapted["projection"], "classifier": head}
