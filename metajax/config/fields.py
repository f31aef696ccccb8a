"""One setting and what a set of them share: bounds, choices, names on the command line."""

import dataclasses
import difflib
import math
import os
import typing
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from metajax.errors import InputError
from metajax.reading import expand_home

_LARGEST = 2**31 - 1  # Steps are counted in 32 bits.
_ALIKE = 0.7  # How similar (difflib's ratio, 0..1) a name has to be to be suggested.
# What transformers, SetFit, scikit-learn, PEFT and papers call our settings. Of several of ours,
# the first one that the command has is meant.
_ELSEWHERE = {
    "learning_rate inner_lr": "learning_rate lr outer_lr meta_lr body_learning_rate",
    "inner_lr": "alpha inner_rate inner_learning_rate adapt_lr",
    "steps inner_steps": "steps max_steps num_steps num_iterations max_iter",
    "inner_steps": "adaptation_steps adapt_steps num_inner_steps",
    "epochs steps inner_steps": "epochs num_epochs num_train_epochs",
    "batch_size meta_batch_size": "batch_size train_batch_size per_device_train_batch_size",
    "warmup": "warmup_ratio warmup_steps",
    "clip_norm": "max_grad_norm",
    "remat": "gradient_checkpointing",
    "dtype": "bf16 fp16 precision torch_dtype",
    "mask_rate": "mlm_probability",
    "max_length": "max_seq_length max_seq_len model_max_length",
    "model": "model_name model_name_or_path checkpoint encoder",
    "workdir output": "output output_dir out resume_from_checkpoint",
    "tasks text input": "dataset dataset_name data train_file train_data",
    "input tasks text": "tasks file texts",
    "finetune": "train",
    "adapt": "fit",
    "dev held_out": "validation_file eval_file test_file eval_data",
    "classes label_column": "labels",
    "ways": "n_way num_ways num_classes",
    "shots": "k k_shot n_shot num_shots num_samples",
    "queries": "n_query num_queries",
    "episodes": "num_episodes",
    "algorithm": "first_order order",
    "methods algorithm": "method",
    "lora": "r lora_r lora_rank rank",
    "seed": "random_state",
    "save_every": "save_steps",
    "keep": "save_total_limit",
    "track": "report_to",
    "text_column": "text_field column_mapping",
    "label_column": "label_field",
}
_KINDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "a switch, True or False",
    type(None): "None",
}


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    metavar: str | None = None,
    affects_results: bool = True,
    advanced: bool = False,
) -> Any:
    """A setting: its help, default (none: required), bounds, choices and part in resuming.

    A `rare` one is explained by `--help-all` alone.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "above": above,
        "maximum": maximum,
        "choices": choices,
        "metavar": metavar,
        "affects_results": affects_results,
        "advanced": advanced,
    }
    if default is dataclasses.MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def flag(name: str, *, off: bool = False) -> str:
    """A setting's name on the command line; `off`, with which a switch is turned off."""
    return ("--no-" if off else "--") + name.replace("_", "-")


def suggestion(name: str, names: Collection[str], help_command: str) -> str:
    """What to do about an unknown name of a setting, a flag or a command.

    Args:
        name: what was given: `learning_rate`, `--learning-rate` or `train`.
        names: those that exist, written in the same way.
        help_command: the command that lists them.

    Returns:
        The name of the same meaning (`_ELSEWHERE`), or else one that is spelled nearly alike, if
        there is one; and where to look.
    """
    key, is_flag = name.lstrip("-").replace("-", "_").lower(), name.startswith("--")
    ours = [own for own, others in _ELSEWHERE.items() if key in others.split()]
    same = [flag(own) if is_flag else own for own in " ".join(ours).split()]
    close = difflib.get_close_matches(name, names, n=1, cutoff=_ALIKE)
    found = next((own for own in same + close if own in names), None)
    return f"did you mean {found}? See {help_command}" if found else f"see {help_command}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all stages' settings share: they are checked when made.

    Raises:
        InputError: a value is of another kind, out of bounds or not one of the choices.
    """

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            value = _as_text(getattr(self, setting.name))
            object.__setattr__(self, setting.name, value)
            check(setting, value)


def check(setting: dataclasses.Field[Any], value: Any) -> None:
    """Checks what a setting is given.

    Raises:
        InputError: it is of another kind, out of bounds or not one of the choices.
    """
    name, limits = flag(setting.name), setting.metadata
    _check_kind(name, value, setting.type)
    if value is None:
        return
    if value == () and setting.default is dataclasses.MISSING:
        raise InputError(f"{name}: give one or more")
    for item in value if isinstance(value, tuple) else (value,):
        if limits["choices"] and item not in limits["choices"]:
            raise InputError(f"{name} {item}: choose from {', '.join(limits['choices'])}")
        if not isinstance(item, str):
            _check_bounds(name, item, limits)
        elif "\0" in item:
            raise InputError(f"{name} {item}: has a NUL in it: leave it out")


def _as_text(value: Any) -> Any:
    """The value, paths as text and with their `~` expanded."""
    if isinstance(value, tuple):
        return tuple(map(_as_text, value))
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    return expand_home(text) if isinstance(text, str) else text


def _check_kind(name: str, value: Any, kind: Any) -> None:
    """What the command line converts, Python may give as something else."""
    kinds, items = typing.get_args(kind) or (kind,), (value,)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            such = tuple(value) if isinstance(value, list) else (value,)
            raise InputError(f"{name} {value}: give a tuple, such as {such}")
        kinds, items = kinds[:1], value
    for item in items:
        if not _is_one_of(item, kinds):
            wanted = " or ".join(_KINDS[kind] for kind in kinds)
            raise InputError(f"{name} {item!r}: give {wanted}")


def _is_one_of(item: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether an item is of one of the kinds; a whole number is a number, a switch is neither."""
    if isinstance(item, bool):
        return bool in kinds
    return isinstance(item, kinds) or (isinstance(item, int) and float in kinds)


def _check_bounds(name: str, value: float, limits: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} {value}: give a finite number")
    if value > _LARGEST:
        raise InputError(f"{name} {value}: give a number of at most {_LARGEST}")
    minimum, above, maximum = limits["minimum"], limits["above"], limits["maximum"]
    if minimum is not None and value < minimum:
        raise InputError(f"{name} {value}: give a number of at least {minimum}")
    if above is not None and value <= above:
        raise InputError(f"{name} {value}: give a number above {above}")
    if maximum is not None and value > maximum:
        raise InputError(f"{name} {value}: give a number of at most {maximum}")
