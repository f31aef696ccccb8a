"""The one error that means: the user's input is at fault; and how a terminal is told of it."""

import re

# What commands a terminal, ends a line, turns the direction of the text or is half a character.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_LONGEST = 1000  # Characters of a line.
_SHORT = 200  # Of a reason within one.


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that says what is wrong, where (file and line), and
    what to do. The command line prints it and ends with exit status 2.

    Examples:
        >>> import metajax
        >>> try:
        ...     metajax.from_pretrained("no/such/directory/here")
        ... except metajax.InputError:
        ...     print("refused")
        refused
    """


class StoppedError(Exception):
    """A run has stopped for a reason that is not its input's; what is saved stays good."""


class LostError(StoppedError):
    """One of several processes has lost the others: it must not wait for them any more."""


def printable(text: str, *, as_json: bool = False) -> str:
    """The text with escapes, as Python or JSON writes them, in place of what does not print."""

    def escaped(found: re.Match[str]) -> str:
        return f"\\u{ord(found[0]):04x}" if as_json else ascii(found[0])[1:-1]

    return _UNPRINTABLE.sub(escaped, text)


def one_line(message: object) -> str:
    """What something says as one printable line; of a long one, the middle is left out."""
    line = printable(" ".join(str(message).split()))
    if len(line) <= _LONGEST:
        return line
    half = _LONGEST // 2
    return f"{line[:half]} ... {line[-half:]}"


def reason_of(error: BaseException) -> str:
    """What an error of a library says in its first line, cut short; or else its kind."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0][:_SHORT])
