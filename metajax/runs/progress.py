"""Show progress: a bar in a terminal, periodic log lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Self, TypeVar

from tqdm import tqdm

T = TypeVar("T")

_log = logging.getLogger("metajax")
# Only its level is used: above INFO, nothing is shown.
PROGRESS = logging.getLogger("metajax.progress")
_SECONDS = 30  # Between two log lines.
# Without tqdm's estimate of the remaining time, which includes compilation.
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Progress:
    """Count finished items.

    Args:
        what: name of the work.
        unit: name of an item.
        total: number of items, if known.
        done: number of items that were finished before.
        shown: whether this process shows the progress.
        compiled_in: seconds of the last item that compiled, in an earlier process.
    """

    def __init__(
        self,
        what: str,
        unit: str,
        total: int | None = None,
        *,
        done: int = 0,
        shown: bool = True,
        compiled_in: float | None = None,
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
        self._last_logged = self._last = time.monotonic()
        self._compiles = False
        self._compiled_in = compiled_in
        self._seconds = self._timed = 0.0  # Of items that did not compile, and their number.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def compiling(self) -> None:
        """Tell that the next item compiles first. Its time is not used for estimates."""
        self._compiles = True
        last = "" if self._compiled_in is None else f" (last: {self._compiled_in:.0f} s)"
        self._bar.set_postfix_str(f"compiling{last}")
        if self._lines:
            _log.info("%s: compiling for %s %d%s", self._what, self._unit, self._done + 1, last)

    def update(self, note: str = "", *, count: int = 1) -> None:
        """Count more items; `note` describes the last one."""
        now = time.monotonic()
        if self._compiles:
            self._compiled_in = now - self._last
        else:
            self._seconds, self._timed = self._seconds + now - self._last, self._timed + count
        self._last, self._compiles, self._done = now, False, self._done + count
        left = self._left()
        self._bar.set_postfix_str(", ".join(filter(None, (left, note))), refresh=False)
        self._bar.update(count)
        if self._lines and now - self._last_logged >= _SECONDS:
            self._last_logged = now
            far = str(self._done) if self._total is None else f"{self._done} of {self._total}"
            far += f" ({left})" if left else ""
            _log.info("%s: %s %s, %s", self._what, self._unit, far, note or "done")

    def _left(self) -> str:
        """Return the estimated remaining time, without compilation; empty if unknown."""
        if self._total is None or not self._timed:
            return ""
        left = self._seconds / self._timed * (self._total - self._done)
        return f"{tqdm.format_interval(left)} left"


def progress(items: Sequence[T], what: str, unit: str) -> Iterator[T]:
    """Yield items and count them. The first one compiles what the others use."""
    with Progress(what, unit, len(items)) as counted:
        counted.compiling()
        for item in items:
            yield item
            counted.update()
