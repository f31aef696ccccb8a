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
# tqdm's own time left takes the first step, which compiles, for one of many.
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


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
            desc=what,
            unit=unit,
            total=total,
            initial=done,
            disable=not (shown and terminal),
            bar_format=None if total is None else _BAR,
        )
        self._lines = shown and not terminal
        self._what, self._unit, self._total, self._done = what, unit, total, done
        self._said = self._last = time.monotonic()
        self._compiles = False
        self._seconds = self._timed = 0.0  # Of those that did not compile, and how many.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def compiling(self) -> None:
        """The next one compiles first: it takes longer, and says nothing of the others' time."""
        self._compiles = True
        self._bar.set_postfix_str("compiling")
        if self._lines:
            _log.info("%s: compiling for %s %d", self._what, self._unit, self._done + 1)

    def update(self, note: str = "") -> None:
        """One more is done; `note` says how it went."""
        now = time.monotonic()
        if not self._compiles:
            self._seconds, self._timed = self._seconds + now - self._last, self._timed + 1
        self._last, self._compiles, self._done = now, False, self._done + 1
        left = self._left()
        self._bar.set_postfix_str(", ".join(filter(None, (left, note))), refresh=False)
        self._bar.update()
        if self._lines and now - self._said >= _SECONDS:
            self._said = now
            far = str(self._done) if self._total is None else f"{self._done} of {self._total}"
            far += f" ({left})" if left else ""
            _log.info("%s: %s %s, %s", self._what, self._unit, far, note or "done")

    def _left(self) -> str:
        """The time that the others will take, without compiling; empty while that is unknown."""
        if self._total is None or not self._timed:
            return ""
        left = self._seconds / self._timed * (self._total - self._done)
        return f"{tqdm.format_interval(left)} left"


def progress(items: Sequence[T], what: str, unit: str) -> Iterator[T]:
    """The items, counted as they are done; the first one compiles what the others use."""
    with Progress(what, unit, len(items)) as counted:
        counted.compiling()
        for item in items:
            yield item
            counted.update()
