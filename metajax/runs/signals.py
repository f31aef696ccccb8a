"""SIGTERM and SIGINT: finish and checkpoint the current step; stop measurements at once."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

import jax

from metajax.errors import StoppedError


class Stop:
    """Whether a signal has asked the run to stop.

    Attributes:
        asked: the name of the signal, or None.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._at_once = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: record it, or stop at once if nothing would be lost."""
        if self.asked is not None:
            raise KeyboardInterrupt  # A second signal stops at once.
        self.asked = signal.Signals(number).name
        if self._at_once:
            self.check()

    def check(self) -> None:
        """Stop the run if a signal has asked for it.

        Raises:
            StoppedError: a signal has asked for it.
        """
        if self.asked is not None:
            raise StoppedError(f"stopped by {self.asked}; the same command resumes")

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside this context a signal stops the run at once, not after the current step."""
        self.check()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False


@contextlib.contextmanager
def handle_signals() -> Iterator[Stop]:
    """Handle the signals during a run."""
    stop = Stop()
    handlers = {signal.SIGTERM: stop.handle, signal.SIGINT: stop.handle}
    if jax.process_count() > 1:
        # With several processes JAX handles SIGTERM, so that all stop after the same step.
        handlers = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
    try:
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    except ValueError:  # Signals can only be handled in the main thread.
        yield stop
        return
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
