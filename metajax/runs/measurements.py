"""Measurements of an outer step: losses, time and memory."""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from metajax.runs.by_source import losses_by_source
from metajax.training.outer import Metrics


class Clock:
    """A clock for the time of a step, and for the part of it that was spent waiting for data."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0

    def wait_for(self, result: Callable[[], Any]) -> Any:
        """Return a result, and count the time until then as waiting for data."""
        before = time.perf_counter()
        value = result()
        self._waited += time.perf_counter() - before
        return value

    def lap(self) -> dict[str, float]:
        """Return the seconds since the last lap, and the share of them (0..1) spent on waiting."""
        now = time.perf_counter()
        seconds, waited = now - self._start, self._waited
        self._start, self._waited = now, 0.0
        return {"seconds": round(seconds, 6), "data_wait": round(waited / seconds, 6)}


def metrics_row(
    step: int, metrics: Metrics, sources: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return metrics as JSON: scalars by name, and the support losses as a list.

    Args:
        step: the number of outer steps taken.
        metrics: of the last of them.
        sources: the source of each task, to add the scalars by source.
    """
    host = jax.device_get(metrics)
    row: dict[str, Any] = {"step": step, "loss": _number(host.query_loss)}
    row |= {name: _number(value) for name, value in host.query_aux.items() if np.ndim(value) == 0}
    if host.support_loss.size:
        row["support_loss"] = [_number(value) for value in host.support_loss]
    row["grad_norm"] = _number(host.grad_norm)
    if sources is not None:
        row["sources"] = losses_by_source(sources, host.tasks)
    return row | {"skipped": True} if host.skipped else row


def _number(value: Any) -> float | None:
    """Return a number as JSON, with None for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def peak_memory() -> dict[str, int]:
    """Return the peak memory of the process and of the accelerator with the highest peak."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In kilobytes, except on macOS.
    memory = {"peak_memory_bytes": resident if sys.platform == "darwin" else 1024 * resident}
    devices = [device.memory_stats() or {} for device in jax.local_devices()]
    peak = max(stats.get("peak_bytes_in_use", 0) for stats in devices)
    return memory | ({"peak_device_memory_bytes": peak} if peak else {})
