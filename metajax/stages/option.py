"""One setting and what a set of them share: bounds, choices, names on the command line."""

import dataclasses
import difflib
import math
import os
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from metajax.errors import InputError

_LARGEST = 2**31 - 1  # Steps are counted in 32 bits.
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
    matters: bool = True,
    rare: bool = False,
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
        "matters": matters,
        "rare": rare,
    }
    if default is dataclasses.MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def flag(name: str, *, off: bool = False) -> str:
    """A setting's name on the command line; `off`, with which a switch is turned off."""
    return ("--no-" if off else "--") + name.replace("_", "-")


def nearest(name: str, names: Iterable[str]) -> str:
    """The name that one which is none of them was meant for, as far as one can tell."""
    return difflib.get_close_matches(name, names, n=1, cutoff=0)[0]


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
    """The value, paths as text."""
    if isinstance(value, tuple):
        return tuple(map(_as_text, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else value


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
