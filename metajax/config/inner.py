"""The settings of the inner loop and of the algorithm, and which algorithm takes which."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metajax.algorithms import ALGORITHMS
from metajax.config.fields import Settings, flag, flag_and_value, option
from metajax.errors import InputError

RATES_LEARNING_RATE = 1e-3  # Adam's in Antoniou et al. 2019, section 5.


@dataclass(frozen=True, kw_only=True)
class InnerSettings(Settings):
    """The inner loop. By default it adapts as in the checkpoint's meta-training."""

    inner_steps: int | None = option(
        "inner steps (default: as meta-trained, else 3)", None, minimum=0
    )
    inner_lr: float | None = option(
        "learning rate of the inner steps (default: as meta-trained, else 0.1; with Adam 0.001)",
        None,
        above=0,
    )
    head: str | None = option(
        "initial classification head (default: as meta-trained, else prototypes)",
        None,
        choices=("prototypes", "zero", "checkpoint"),
        advanced=True,
    )
    layers: int | None = option(
        "adapt only this many top blocks (default: all blocks and the embeddings)",
        None,
        minimum=0,
        advanced=True,
    )
    lora: int | None = option(
        "adapt LoRA adapters of this rank, not the weights",
        None,
        minimum=1,
        metavar="RANK",
    )
    lora_kernels: tuple[str, ...] = option(
        "kernels of each block that get a LoRA adapter (default: qkv, which is query, key and "
        "value); a BERT or GPT-2 has qkv, out, up and down, a Llama query, key, value, out, gate, "
        "up and down",
        (),
        choices=("qkv", "query", "key", "value", "out", "gate", "up", "down"),
        metavar="KERNEL",
        advanced=True,
    )
    prefix: int | None = option(
        "adapt this many vectors before the text instead of the weights",
        None,
        minimum=1,
        metavar="COUNT",
        advanced=True,
    )
    trainable: str | None = option(
        "adapt only these weights: norms (normalizations and biases) or mlps (feed-forward layers "
        "of the last quarter of the blocks); all is the default",
        None,
        choices=("all", "norms", "mlps"),
        advanced=True,
    )
    freeze: bool | None = option(
        "train and save only what adapts (with --lora, --prefix or --trainable)", None
    )
    inner_optimizer: str | None = option(
        "optimizer of the inner steps (default: as meta-trained, else sgd); momentum is 0.9",
        None,
        choices=("sgd", "momentum", "adam"),
        advanced=True,
    )
    inner_clip_norm: float | None = option(
        "maximum norm of the gradient of an inner step (default: as meta-trained, else none)",
        None,
        above=0,
        advanced=True,
    )


METHODS = ("steps", "contrastive", "finetune", "linear", "prototypes", "choose")
DEFAULT_METHOD = "contrastive"  # Of weights that were not meta-trained.
# Methods that also learn numbers, or several labels for a text.
ANY_LABELS = ("linear", "finetune")
_WEIGHTED = ("contrastive", "finetune", "linear", "choose")  # Methods that take --class-weight.


@dataclass(frozen=True, kw_only=True)
class MethodSettings(InnerSettings):
    """How `adapt` uses the examples: by the inner loop, or without it."""

    method: str = option(
        "steps (the inner steps), contrastive or finetune (train all weights on the examples), "
        "linear or prototypes (a head on frozen features), or choose (one of the last four, by "
        "cross-validation on the examples)",
        "steps",
        choices=METHODS,
        metavar="NAME",
    )
    weights: str = option(
        "checkpoint (the weights of --model), original (those that its run started from), or "
        "choose (one of the two, by cross-validation on the examples)",
        "checkpoint",
        choices=("checkpoint", "original", "choose"),
        metavar="NAME",
        advanced=True,
    )
    class_weight: str | None = option(
        "balanced: each class has the same weight in the loss, however many examples it has",
        None,
        choices=("balanced",),
        advanced=True,
    )
    calibrate: bool = option(
        "calibrate the probabilities by cross-validation on the examples, which trains four more "
        "times (with choose none; not for steps)",
        False,
        advanced=True,
    )
    time_limit: float = option(
        "seconds after which choose tries no more", 300.0, above=0, advanced=True
    )
    regression: bool = option(
        "the labels are numbers, and a number is predicted (--method linear or finetune; "
        "glue:stsb needs no --regression)",
        False,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_weight is not None and self.method not in _WEIGHTED:
            raise InputError(
                f"--class-weight {self.class_weight}: --method {self.method} does not take it; "
                f"remove it, or use --method {' or '.join(_WEIGHTED)}"
            )
        if self.method == "steps":
            if self.calibrate:
                raise InputError(
                    "--calibrate: --method steps does not take it; remove it, or use another method"
                )
            return
        for setting in dataclasses.fields(InnerSettings):
            value = getattr(self, setting.name)
            if value is not None and value != ():
                shown = flag_and_value(setting.name, value)
                raise InputError(f"{shown}: --method {self.method} takes no inner steps; remove it")


def check_any_labels(settings: MethodSettings, labels: str) -> None:
    """Check the settings for a task whose texts do not have one class each.

    Args:
        settings: the method and its settings.
        labels: what they have instead, such as "the labels are numbers".

    Raises:
        InputError: the method, or one of its settings, needs one class for each text.
    """
    problem = f"needs one class for each text, but {labels}"
    if settings.method not in ANY_LABELS:
        allowed = " or ".join(ANY_LABELS)
        raise InputError(f"--method {settings.method}: {problem}; use {allowed}")
    for name in ("class_weight", "calibrate"):
        if getattr(settings, name):
            raise InputError(f"{flag(name)}: {problem}; remove it")
    if settings.weights == "choose":
        raise InputError(f"--weights choose: {problem}; use checkpoint or original")


@dataclass(frozen=True, kw_only=True)
class AlgorithmSettings(InnerSettings):
    """How the meta-gradient is computed."""

    algorithm: str = option(
        f"{', '.join(ALGORITHMS)}; see docs/guides/which-algorithm.md",
        "maml",
        choices=tuple(ALGORITHMS),
        metavar="NAME",
    )
    low_memory: bool = option("exact second order in less memory, but slower", False)
    meta_batch_size: int = option("episodes per step", 4, minimum=1)
    chunk_size: int | None = option(
        "episodes computed at once on a device; fewer take less memory and more time",
        None,
        minimum=1,
        advanced=True,
    )
    rates_learning_rate: float | None = option(
        f"peak learning rate of AdamW for learned inner rates (default {RATES_LEARNING_RATE})",
        None,
        above=0,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_taken(self.algorithm, dataclasses.asdict(self))


def check_taken(algorithm: str, given: Mapping[str, Any], *, of_model: bool = False) -> None:
    """Check that an algorithm takes the settings given; None, False and () are not given.

    Args:
        algorithm: a name in the registry.
        given: settings by name.
        of_model: whether the algorithm is the model's, so that `--algorithm` cannot change it.

    Raises:
        InputError: it does not take one of them.
    """
    entry = ALGORITHMS[algorithm]
    settings = dict.fromkeys(name for other in ALGORITHMS.values() for name in other.settings)
    for name in settings:
        value = given.get(name)
        untaken = name not in entry.settings
        if value is None or value is False or value == ():
            continue
        if untaken and name == "inner_steps" and value == 0:
            continue
        shown = flag_and_value(name, value)
        if untaken and of_model:
            raise InputError(
                f"{shown}: the model was meta-trained with {algorithm}, which does not take it; "
                f"remove {flag(name)}"
            )
        if untaken:
            takers = [other for other in ALGORITHMS if name in ALGORITHMS[other].settings]
            raise InputError(
                f"{shown}: {algorithm} does not take it; remove it, or use --algorithm "
                f"{' or '.join(takers[:3])}"
            )
        if name == "head" and value not in entry.heads:
            raise InputError(
                f"{shown}: {algorithm} does not take this value; choose {' or '.join(entry.heads)}"
            )
        if name == "inner_steps" and value < entry.least_steps:
            raise InputError(f"{shown}: too few for {algorithm}; give at least {entry.least_steps}")
