"""The errors of metajax, and functions that make their messages one printable line."""

import re
from collections.abc import Sequence

# Control characters, line ends, changes of text direction, and lone surrogates.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_LONGEST = 1000  # Characters of a line.
_SHORT = 200  # Characters of a reason within a line.


class InputError(ValueError):
    """Error for input of the user that cannot be used.

    The message is one line: `where: what is wrong; how to fix it`. The command line prints it and
    ends with exit status 2.

    Examples:
        >>> import metajax
        >>> try:
        ...     metajax.from_pretrained("no/such/directory/here")
        ... except metajax.InputError:
        ...     print("refused")
        refused
    """


class StoppedError(Exception):
    """Error for a run that stops for other reasons than its input. Its checkpoints are intact."""


class LostError(StoppedError):
    """Error for a process that lost the other processes of its run. It must not wait for them."""


def printable(text: str, *, as_json: bool = False) -> str:
    """Replace characters that do not print by escapes, as in Python or JSON."""

    def escaped(match: re.Match[str]) -> str:
        return f"\\u{ord(match[0]):04x}" if as_json else ascii(match[0])[1:-1]

    return _UNPRINTABLE.sub(escaped, text)


def some(names: Sequence[str], most: int = 4) -> str:
    """Join at most so many names for a message, and say how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def one_line(message: object) -> str:
    """Return a message as one printable line, without the middle if it is long."""
    line = printable(" ".join(str(message).split()))
    if len(line) <= _LONGEST:
        return line
    half = _LONGEST // 2
    return f"{line[:half]} ... {line[-half:]}"


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, shortened, or else the name of its type."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0][:_SHORT])
