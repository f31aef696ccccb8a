"""SIGTERM and SIGINT: the step in hand is finished and saved, anything else stops at once."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

import jax

from metajax.errors import StoppedError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether a run has been asked to stop.

    Attributes:
        asked: the signal's name, once one has come.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._stepping = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Stops the run, unless it is in the middle of what is not saved yet."""
        name = signal.Signals(number).name
        impatient, self.asked = self.asked is not None, name
        if impatient or not self._stepping:
            raise StoppedError(f"stopped by {name}; the same command resumes")

    @contextlib.contextmanager
    def after_this(self) -> Iterator[None]:
        """In here a signal only sets `asked`; a second one stops at once."""
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Listens for the signals while a run is at work."""
    stop = Stop()
    try:
        # Of several processes SIGTERM is JAX's, so that all stop after the same step.
        numbers = _SIGNALS if jax.process_count() == 1 else _SIGNALS[1:]
        before = {number: signal.signal(number, stop.handle) for number in numbers}
    except ValueError:  # Not in the main thread: then they are not ours to handle.
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
