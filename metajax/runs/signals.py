"""SIGTERM and SIGINT: what is in hand is finished and saved, a measurement is dropped at once."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

import jax

from metajax.errors import StoppedError


class Stop:
    """Whether a run has been asked to stop.

    Attributes:
        asked: the signal's name, once one has come.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._at_once = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Takes a signal: notes it, or stops the run where nothing would be lost."""
        if self.asked is not None:
            raise KeyboardInterrupt  # The second one is impatient.
        self.asked = signal.Signals(number).name
        if self._at_once:
            self.check()

    def check(self) -> None:
        """Stops the run if it has been asked to.

        Raises:
            StoppedError: it has.
        """
        if self.asked is not None:
            raise StoppedError(f"stopped by {self.asked}; the same command resumes")

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """In here a signal stops the run immediately; elsewhere it waits for what is in hand."""
        self.check()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False


@contextlib.contextmanager
def handle_signals() -> Iterator[Stop]:
    """Listens for the signals while a run is at work."""
    stop = Stop()
    handlers = {signal.SIGTERM: stop.handle, signal.SIGINT: stop.handle}
    if jax.process_count() > 1:
        # Of several processes SIGTERM is JAX's, so that all stop after the same step.
        handlers = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
    try:
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    except ValueError:  # Not in the main thread: then they are not ours to handle.
        yield stop
        return
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
