"""The one error that means: the user's input is at fault."""


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
