"""Predict the memory and arithmetic of meta-training by compiling a step, without a run."""

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

from metajax.algorithms import ALGORITHMS
from metajax.config.fields import flag_and_value
from metajax.config.settings import PlanSettings
from metajax.errors import InputError
from metajax.runs.cost import (
    Cost,
    count_parameters,
    measure,
    num_devices,
    target_of,
    tracing_for,
)
from metajax.runs.learner import UNROLLED
from metajax.runs.parts import check_split
from metajax.runs.progress import Progress
from metajax.runs.workdir import writable, write_atomically
from metajax.training.outer import default_chunk_size

_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_MOST = 4096  # Limit of the search for episodes at once and for inner steps.


def plan(settings: PlanSettings) -> dict[str, Any]:
    """Predict the cost of a step of `metatrain` with these settings.

    It assumes that all texts have `--max-length` tokens. A run packs shorter texts and needs less
    memory.

    Returns:
        `parameters` (their number), `cost`, `alternatives` (the cost after each change of
        settings), and with `--memory` or `--target` also `largest`: the maximum of episodes at once
        and of inner steps that fit.

    Raises:
        InputError: the input cannot be used.
    """
    output = writable(settings.output) if settings.output else None
    devices = num_devices(settings)
    check_split("--meta-batch-size", settings.meta_batch_size, settings.chunk_size, devices)
    memory = _memory(settings)
    with Progress("plan", "program") as progress, tracing_for(settings):
        costs = _Costs(progress)
        cost = costs.of(settings)
        report: dict[str, Any] = {
            "settings": dataclasses.asdict(settings),
            "parameters": count_parameters(settings),
            "cost": cost.as_json(),
            "alternatives": [
                {"change": name, **costs.of(changed).as_json()}
                for name, changed in _alternatives(settings)
            ],
        }
        if settings.target is not None:
            report["devices"] = devices
        if memory is not None:
            report["memory"] = memory
            report["largest"] = {
                name: _largest(settings, name, memory, costs)
                for name in ("chunk_size", "inner_steps")
                if name == "chunk_size" or name in ALGORITHMS[settings.algorithm].settings
            }
    if output:
        write_atomically(output, json.dumps(report, indent=2) + "\n")
    return report


def _memory(settings: PlanSettings) -> float | None:
    """Return the bytes of a device, if known."""
    if settings.memory is not None:
        return parse_memory(settings.memory)
    target = target_of(settings)
    return None if target is None else target.chip.memory


def parse_memory(text: str) -> float:
    """Return the number of bytes of a text such as `16GB` or `15.5GiB`.

    Raises:
        InputError: the text is not an amount of memory.
    """
    unit = text.lstrip("0123456789.")
    try:
        size = float(text.removesuffix(unit)) * _UNITS[unit.strip()]
    except (ValueError, KeyError):
        size = 0
    if not 0 < size < math.inf:
        raise InputError(
            f"--memory {text}: is not an amount of memory; give one such as 16GB or 15.5GiB"
        )
    return size


def _alternatives(settings: PlanSettings) -> Iterator[tuple[str, PlanSettings]]:
    """Yield changes of the settings that save memory: a name, and the changed settings."""
    changes: list[dict[str, Any]] = [{"remat": True}]
    if "low_memory" in ALGORITHMS[settings.algorithm].settings:
        changes += [{"low_memory": True}, {"remat": True, "low_memory": True}]
    if settings.algorithm in ("maml", "proto-maml"):
        changes += [{"algorithm": "fomaml", "low_memory": False}]
    share = settings.meta_batch_size // num_devices(settings)
    if (settings.chunk_size or default_chunk_size(share)) > 1:
        changes.append({"chunk_size": 1})
    known = {settings}
    for change in changes:
        changed = dataclasses.replace(settings, **change)
        if changed not in known:
            known.add(changed)
            shown = [flag_and_value(*each) for each in change.items() if each[1] is not False]
            yield " ".join(shown), changed


def _largest(settings: PlanSettings, name: str, memory: float, costs: "_Costs") -> int:
    """Find the largest value of a setting with which a step fits; 0 if no value fits.

    The result is exact to 5%. The search compiles steps. Memory grows almost linearly with the
    value, so the search follows the secant through the known points.
    """

    def total(value: int) -> int:
        changes: dict[str, Any] = {name: value}
        if name == "chunk_size":
            changes["meta_batch_size"] = value * num_devices(settings)
        return costs.of(dataclasses.replace(settings, **changes)).total

    # A loop of many steps may need less memory than a few unrolled steps.
    start = UNROLLED + 1 if name == "inner_steps" and total(UNROLLED + 1) <= memory else 1
    first = total(start)
    if first > memory:
        return 0
    fits, fails, probe, stride = start, _MOST + 1, start + 1, 1
    while fails - fits > 1 + fits // 20:
        size = total(probe)
        if size <= memory:
            fits = probe
        else:
            fails = probe
        slope = max(1.0, (size - first) / (probe - start))
        guess = start + int((memory - first) / slope)
        if not fits < guess < fails:
            guess = fits + stride if fails > _MOST else (fits + fails) // 2
            stride *= 2
        probe = min(guess, fails - 1)
    return fits


class _Costs:
    """Costs by settings. Each program is compiled once, with progress."""

    def __init__(self, progress: Progress) -> None:
        self._known: dict[PlanSettings, Cost] = {}
        self._progress = progress

    def of(self, settings: PlanSettings) -> Cost:
        if settings not in self._known:
            self._known[settings] = measure(settings)
            self._progress.update()
        return self._known[settings]


def summary(report: dict[str, Any]) -> str:
    """Format the report of `plan` as text."""
    cost = report["cost"]
    parts = {
        "parameters and optimizer": cost["state"],
        "tasks": cost["tasks"],
        "during a step": cost["working"],
        "total": cost["total"],
    }
    lines = [
        f"parameters                {report['parameters'] / 1e6:9.1f} million",
        f"on each of {report['devices']} devices:" if "devices" in report else "on each device:",
    ]
    lines += [f"  {name:23} {size / 1e9:9.2f} GB" for name, size in parts.items()]
    lines += [f"  arithmetic              {cost['flops'] / 1e12:9.2f} TFLOP per step"]
    lines += _estimate_lines(cost)
    if "largest" in report:
        episodes, steps = (report["largest"].get(name) for name in ("chunk_size", "inner_steps"))
        lines += [
            f"fits in {report['memory'] / 1e9:g} GB:",
            f"  episodes at once        {episodes:6} (more per step with --chunk-size {episodes})"
            if episodes
            else "  no episode",
        ]
        lines += [] if steps is None else [f"  or inner steps          {steps:6}"]
    lines += ["", f"{'instead':30}        GB    TFLOP"]
    lines += [
        f"  {row['change']:28} {row['total'] / 1e9:9.2f} {row['flops'] / 1e12:8.2f}"
        for row in report["alternatives"]
    ]
    return "\n".join([*lines, "", advice(report)])


def _estimate_lines(cost: dict[str, Any]) -> list[str]:
    """Format what a target's program does."""
    if "seconds" not in cost:
        return []
    return [
        f"  memory traffic          {cost['moved'] / 1e9:9.2f} GB per step, "
        f"{cost['kernels']} kernels",
        *(
            f"  {kind:23} {found['bytes'] / 1e9:9.2f} GB per step, {found['count']} in all"
            for kind, found in cost["collectives"].items()
        ),
        f"  time, estimated         {cost['seconds']:9.3f} s per step",
    ]


def advice(report: dict[str, Any]) -> str:
    """Explain the choice of the engine, or name settings that fit if these do not."""
    cost, rows, memory = report["cost"], report["alternatives"], report.get("memory", math.inf)
    if cost["total"] > memory:
        fitting = [row for row in rows if row["total"] <= memory]
        if not fitting:
            fewer = "layers" in ALGORITHMS[report["settings"]["algorithm"]].settings
            return "does not fit, nor do the alternatives; shorten the texts" + (
                ", or adapt fewer --layers" if fewer else ""
            )
        best = min(fitting, key=lambda row: row["flops"])
        times = best["flops"] / cost["flops"]
        return f"does not fit; {best['change']} fits, at {times:.2f} times the arithmetic"
    settings = report["settings"]
    if "low_memory" not in ALGORITHMS[settings["algorithm"]].settings:
        return f"{settings['algorithm']} has one engine, which needs little memory"
    if settings["low_memory"]:
        return "forward over reverse: exact; recomputes activations instead of storing them"
    return "reverse over reverse: the fastest exact engine; --low-memory is exact and the smallest"
