"""One setting and what a set of them share: bounds, choices, names on the command line."""

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from typing import Any

from metajax.errors import InputError

_LARGEST = 2**31 - 1  # Steps are counted in 32 bits.


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


def flag(name: str) -> str:
    """A setting's name on the command line."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all stages' settings share: they are checked when made.

    Raises:
        InputError: a value is out of bounds or not one of the choices.
    """

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            value, limits = getattr(self, setting.name), setting.metadata
            if value is None:
                continue
            _check_kind(flag(setting.name), value, setting.type)
            for item in value if isinstance(value, tuple) else (value,):
                if limits["choices"] and item not in limits["choices"]:
                    raise InputError(
                        f"{flag(setting.name)} {item}: choose from {', '.join(limits['choices'])}"
                    )
                if not isinstance(item, str):
                    _check_bounds(flag(setting.name), item, limits)


def _check_kind(name: str, value: Any, kind: Any) -> None:
    """What the command line converts, Python may give as something else."""
    if typing.get_origin(kind) is tuple and not isinstance(value, tuple):
        raise InputError(f"{name} {value}: give a tuple, such as ({value!r},)")
    if isinstance(value, str) and str not in (kind, *typing.get_args(kind)):
        raise InputError(f"{name} {value!r}: give a number or a switch, not a text")


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
