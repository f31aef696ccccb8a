"""One setting: its help, bounds and choices, the values it takes, its name on the command line."""

import dataclasses
import math
import operator
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metajax.errors import InputError
from metajax.reading import expand_home

_LARGEST = 2**31 - 1  # Steps are counted in 32 bits.
_KINDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    type(None): "None",
}
# Types of a file or the command line that are converted to the setting's type. YAML reads 2e-5 as a
# string, and `workdir: 2024` as a number.
_CONVERTED: dict[type, Any] = {str: int | float, int: str, float: str | int, bool: ()}
_BOUNDS = (
    ("minimum", operator.ge, "of at least"),
    ("above", operator.gt, "above"),
    ("maximum", operator.le, "of at most"),
)


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    metavar: str | None = None,
    if_empty: str | None = None,
    affects_results: bool = True,
    advanced: bool = False,
) -> Any:
    """Declare a setting.

    Args:
        help: what `--help` prints.
        default: if missing, the setting is required.
        minimum: the smallest value.
        above: an exclusive lower bound.
        maximum: the largest value.
        choices: the only values.
        metavar: placeholder for the value in `--help`.
        if_empty: if given, an empty string is refused; how to fix it.
        affects_results: whether a run is resumed only with the same value.
        advanced: whether only `--help-all` explains it.
    """
    return field(default=default, metadata=dict(locals()))


def flag(name: str, *, off: bool = False) -> str:
    """Return a setting's flag; with `off`, the one that turns a switch off."""
    return ("--no-" if off else "--") + name.replace("_", "-")


def flag_and_value(name: str, value: Any) -> str:
    """Return a setting as it is typed: `--lora 2`, or the flag alone for a switch turned on."""
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return flag(name) if value is True else f"{flag(name)} {shown}"


def is_required(setting: dataclasses.Field[Any]) -> bool:
    """Tell whether a setting has no default."""
    return setting.default is dataclasses.MISSING


def value_types(setting: dataclasses.Field[Any]) -> tuple[tuple[type, ...], bool]:
    """Return the types of a setting's value, or of its items, and whether it takes a tuple."""
    types = typing.get_args(setting.type) or (setting.type,)
    return (types[:1], True) if typing.get_origin(setting.type) is tuple else (types, False)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base class of all settings, which checks them.

    Raises:
        InputError: a value has the wrong type, is out of range or is not one of the choices.
    """

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            value = _as_text(getattr(self, setting.name))
            object.__setattr__(self, setting.name, value)
            check(setting, value)


def convert(setting: dataclasses.Field[Any], value: Any) -> Any:
    """Return a value of a file or the command line in the setting's type.

    The strings of a list may hold several items, separated by commas. A value that cannot be
    converted is returned as it is: `check` refuses it.
    """
    types, is_tuple = value_types(setting)
    if not is_tuple:
        return _convert_item(types[0], value)
    items = value if isinstance(value, list) else [value]
    return tuple(_convert_item(types[0], part) for item in items for part in _split(item))


def check(setting: dataclasses.Field[Any], value: Any, name: str | None = None) -> None:
    """Check a value of a setting.

    Args:
        setting: the setting.
        value: what it is given.
        name: the setting's name in the message; its flag by default.

    Raises:
        InputError: the value has the wrong type, is out of range or is not one of the choices.
    """
    name = name or flag(setting.name)
    types, is_tuple = value_types(setting)
    if is_tuple and not isinstance(value, tuple):
        example = tuple(value) if isinstance(value, list) else (value,)
        raise InputError(f"{name} {value}: wrong type; give a tuple: {example}")
    if value == () and is_required(setting):
        raise InputError(f"{name}: empty; give one or more")
    for item in value if is_tuple else (value,):
        if not _has_type(item, types):
            wanted = " or ".join(_KINDS[kind] for kind in types)
            raise InputError(f"{name} {item!r}: wrong type; give {wanted}")
        if item == "" and setting.metadata["if_empty"]:
            raise InputError(f"{name}: is empty; {setting.metadata['if_empty']}")
        if problem := _problem(item, setting.metadata):
            raise InputError(f"{name} {item}: {problem}")


def _as_text(value: Any) -> Any:
    """Return paths as strings, with a leading `~` expanded, and other values as they are."""
    if isinstance(value, tuple):
        return tuple(map(_as_text, value))
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    return expand_home(text) if isinstance(text, str) else text


def _split(item: Any) -> list[Any]:
    """Return the items between commas; the name of a file may contain commas."""
    if not isinstance(item, str) or os.path.exists(expand_home(item)):
        return [item]
    return [part.strip() for part in item.split(",") if part.strip()]


def _convert_item(kind: type, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, _CONVERTED[kind]):
        return value
    try:
        return kind(value)
    except (ValueError, OverflowError):
        return value


def _has_type(item: Any, types: tuple[type, ...]) -> bool:
    """Tell whether an item has one of the types; an int is a float too, a bool is not an int."""
    if isinstance(item, bool):
        return bool in types
    return isinstance(item, types) or (isinstance(item, int) and float in types)


def _problem(item: Any, limits: Mapping[str, Any]) -> str | None:
    """Return what is wrong with an item of the right type and how to fix it, or None."""
    if item is None or isinstance(item, bool):
        return None
    if limits["choices"] and item not in limits["choices"]:
        return f"unknown value; choose from {', '.join(limits['choices'])}"
    if isinstance(item, str):
        return "contains a NUL character; remove it" if "\0" in item else None
    if isinstance(item, float) and not math.isfinite(item):
        return "not finite; give a finite number"
    if item > _LARGEST:
        return f"out of range; give a number of at most {_LARGEST}"
    for key, holds, words in _BOUNDS:
        if limits[key] is not None and not holds(item, limits[key]):
            return f"out of range; give a number {words} {limits[key]}"
    return None
