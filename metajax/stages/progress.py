"""How far long work is: a bar on a terminal, a line of the log now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Self, TypeVar

from tqdm import tqdm

T = TypeVar("T")

_log = logging.getLogger("metajax")
# Its level alone counts: above INFO, nothing is shown.
PROGRESS = logging.getLogger("metajax.progress")
_SECONDS = 30  # Between two lines.


class Progress:
    """Counts what is done.

    Args:
        what: what is being done.
        unit: what is counted.
        total: how many there are, if that is known.
        done: how many were done before.
        shown: whether this process shows it.
    """

    def __init__(
        self, what: str, unit: str, total: int | None = None, *, done: int = 0, shown: bool = True
    ) -> None:
        terminal = sys.stderr.isatty()
        shown = shown and PROGRESS.level <= logging.INFO
        self._bar = tqdm(
            desc=what, unit=unit, total=total, initial=done, disable=not (shown and terminal)
        )
        self._lines = shown and not terminal
        self._what, self._unit, self._total, self._done = what, unit, total, done
        self._said = time.monotonic()
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, note: str = "") -> None:
        """One more is done; `note` says how it went."""
        self._done += 1
        now = time.monotonic()
        if self._first is None:
            self._first = now, self._done
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update()
        if self._lines and now - self._said >= _SECONDS:
            self._said = now
            far = self._far(now, *self._first)
            _log.info("%s: %s %s, %s", self._what, self._unit, far, note or "done")

    def _far(self, now: float, begun: float, first: int) -> str:
        """What is done, and from the second on what is left: the first one compiles."""
        if self._total is None:
            return f"{self._done}"
        far = f"{self._done} of {self._total}"
        if self._done == first:
            return far
        left = (now - begun) / (self._done - first) * (self._total - self._done)
        return f"{far} ({tqdm.format_interval(left)} left)"


def progress(items: Sequence[T], what: str, unit: str) -> Iterator[T]:
    """The items, counted as they are done."""
    with Progress(what, unit, len(items)) as counted:
        for item in items:
            yield item
            counted.update()
