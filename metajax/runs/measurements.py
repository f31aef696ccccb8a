"""What is measured of an outer step: losses, time and memory."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from metajax.training.outer import Metrics


class Clock:
    """Times a step, and how much of it was spent waiting for data."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0

    def wait_for(self, result: Callable[[], Any]) -> Any:
        """Returns a result, and counts the time until it is there as waiting for data."""
        before = time.perf_counter()
        value = result()
        self._waited += time.perf_counter() - before
        return value

    def lap(self) -> dict[str, float]:
        """Seconds since the last lap, and the share of them (0..1) spent waiting for data."""
        now = time.perf_counter()
        seconds, waited = now - self._start, self._waited
        self._start, self._waited = now, 0.0
        return {"seconds": round(seconds, 6), "data_wait": round(waited / seconds, 6)}


def metrics_row(step: int, metrics: Metrics) -> dict[str, Any]:
    """Metrics as JSON: scalars by name, the support losses as a list."""
    host = jax.device_get(metrics)
    row: dict[str, Any] = {"step": step, "loss": _number(host.query_loss)}
    row |= {name: _number(value) for name, value in host.query_aux.items() if np.ndim(value) == 0}
    if host.support_loss.size:
        row["support_loss"] = [_number(value) for value in host.support_loss]
    row["grad_norm"] = _number(host.grad_norm)
    return row | {"skipped": True} if host.skipped else row


def _number(value: Any) -> float | None:
    """As JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None


def peak_memory() -> dict[str, int]:
    """The most bytes this process has held and, if it has accelerators, the fullest of them."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In kilobytes, except on macOS.
    memory = {"peak_memory_bytes": resident if sys.platform == "darwin" else 1024 * resident}
    devices = [device.memory_stats() or {} for device in jax.local_devices()]
    peak = max(stats.get("peak_bytes_in_use", 0) for stats in devices)
    return memory | ({"peak_device_memory_bytes": peak} if peak else {})
