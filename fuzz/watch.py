"""Detect readers that write elsewhere, run code, start a process, use the network, or hang."""

import contextlib
import os
import signal
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from fuzz.mutate import CANARY

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# For each event, how many of its first arguments are paths that it changes.
_CHANGES = {
    **dict.fromkeys(("os.rename", "os.link", "os.symlink", "shutil.move"), 2),
    **dict.fromkeys(
        ("os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.chmod", "os.chown"), 1
    ),
    "shutil.rmtree": 1,
}
_FORBIDDEN = (
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"),
    *("pickle.find_class", "socket.connect", "socket.getaddrinfo", "webbrowser.open"),
)
_TRUSTED = tuple(
    {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        *(str(Path(path).resolve()) for path in sys.path if path),
        str(Path(__file__).parents[2]),
        "<frozen",
    }
)


class Hung(BaseException):
    """An input took too long. No reader catches this exception."""


class Watch:
    """Record what a reader does.

    Args:
        scratch: the directory that the reader may write to.
        outside: a directory that it must not even read.

    Attributes:
        seen: forbidden actions of the reader.
    """

    def __init__(self, scratch: Path, outside: Path) -> None:
        self._scratch, self._outside = os.path.realpath(scratch), os.path.realpath(outside)
        self._on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)  # An audit hook cannot be removed.

    @contextlib.contextmanager
    def on(self, seconds: float) -> Iterator[None]:
        """Watch the reader, and stop it after a time limit.

        Raises:
            Hung: it took longer.
        """
        self.seen = []

        def end(number: int, frame: FrameType | None) -> None:
            raise Hung(f"more than {seconds:g} seconds")

        before = signal.signal(signal.SIGALRM, end)
        self._on = True
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._on = False
            signal.signal(signal.SIGALRM, before)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event == "open":
            self._opened(*arguments)
        elif event in _CHANGES:
            for path in arguments[: _CHANGES[event]]:
                if not self._is_inside(path):
                    self.seen.append(f"{event} {path!r}")
        elif event in _FORBIDDEN:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "import" and CANARY in str(arguments[0]):
            self.seen.append(f"import of {arguments[0]}")
        elif event == "exec" and not _is_known(arguments[0]):
            self.seen.append(f"ran code of {arguments[0].co_filename}")

    def _opened(self, path: Any, mode: str | None, flags: int) -> None:
        if isinstance(path, int):
            return
        place = os.path.realpath(os.fsdecode(path))
        if place.startswith(self._outside):
            self.seen.append(f"read {path!r}")
        elif flags & _WRITES and place != os.devnull and not self._is_inside(path):
            self.seen.append(f"wrote {path!r}")

    def _is_inside(self, path: Any) -> bool:
        if isinstance(path, int):
            return True
        place = os.path.realpath(os.fsdecode(path))
        return place == self._scratch or place.startswith(self._scratch + os.sep)


def _is_known(code: CodeType) -> bool:
    """Return whether code belongs to a module, or is made during its import (dataclasses)."""
    if code.co_filename.startswith(_TRUSTED):
        return True
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
