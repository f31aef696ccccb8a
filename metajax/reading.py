"""Read plain files and JSON, with an error for everything that can be wrong."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from metajax.errors import InputError


def expand_home(text: str) -> str:
    """Expand a leading `~` or `~USER` of a path, as a shell does.

    A shell does not expand `--workdir=~/run` and paths in files. A prefix such as `smlmt:` is kept.
    """
    prefix = re.match(r"(?:[a-z]+:)?(?=~)", text)
    if prefix is None:
        return text
    return prefix[0] + os.path.expanduser(text[prefix.end() :])


def read_bytes(path: str | Path) -> bytes:
    """Return the content of a file; expand `~` in its path.

    Raises:
        InputError: it is missing, unreadable, or not a plain file. (A pipe may never end.)
    """
    path = Path(expand_home(str(path)))
    try:
        if path.is_file():
            return path.read_bytes()
        problem = "no such file; check the path"
        if path.is_dir():
            problem = "is a directory; give a file in it"
        elif path.exists():
            problem = "is not a plain file; give a plain file"
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); check the path"
    raise InputError(f"{path}: {problem}")


def parse_json(text: str, *, unique: bool = False) -> Any:
    """Return the value of JSON text.

    Args:
        text: the text.
        unique: whether to refuse an object with a repeated name. If not, the last value is used.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has a number of too many digits.
    """
    try:
        # `json.loads` would make a decoder at each call, for example for each line of a file.
        return _UNIQUE.decode(text) if unique else json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in values if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return values


_UNIQUE = json.JSONDecoder(object_pairs_hook=_unique_names)


def is_number(value: Any, *, finite: bool = True) -> bool:
    """Return whether a JSON value is a number in the range of a float; booleans are not."""
    if isinstance(value, float) and not finite:
        return True
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and abs(value) <= sys.float_info.max
