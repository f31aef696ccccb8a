"""Reading what others wrote: plain files alone, and JSON whatever is wrong with it."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from metajax.errors import InputError


def expand_home(text: str) -> str:
    """Returns a path with its leading `~` or `~USER` expanded, as a shell does.

    A shell leaves `--workdir=~/run` and paths in files alone. A prefix such as `smlmt:` is kept.
    """
    prefix = re.match(r"(?:[a-z]+:)?(?=~)", text)
    if prefix is None:
        return text
    return prefix[0] + os.path.expanduser(text[prefix.end() :])


def read_bytes(path: str | Path) -> bytes:
    """Returns a file's content; `~` in its path is expanded.

    Raises:
        InputError: If it is missing, unreadable, or no plain file: a pipe may never end.
    """
    path = Path(expand_home(str(path)))
    try:
        if path.is_file():
            return path.read_bytes()
        problem = "no such file; check the path"
        if path.is_dir():
            problem = "is a directory; give a file in it"
        elif path.exists():
            problem = "is not a plain file; give one"
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); check the path"
    raise InputError(f"{path}: {problem}")


def parse_json(text: str | bytes, *, unique: bool = False) -> Any:
    """Returns what JSON text holds.

    Args:
        text: The text.
        unique: Whether an object that has a name twice is refused; else the last one counts.

    Raises:
        ValueError: If it is not JSON, is nested too deeply, or has a number of too many digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_names if unique else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return found


def is_number(value: Any, *, finite: bool = True) -> bool:
    """Tells whether a value of JSON is a number that a float can hold; a truth value is none."""
    if isinstance(value, float) and not finite:
        return True
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and abs(value) <= sys.float_info.max
