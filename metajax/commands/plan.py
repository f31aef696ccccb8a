"""Predict the memory and arithmetic of meta-training by compiling a step, without a run."""

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

from metajax.algorithms import ALGORITHMS
from metajax.config.fields import flag_and_value
from metajax.config.settings import PlanSettings
from metajax.errors import InputError
from metajax.platforms import target_platform
from metajax.runs.cost import (
    Cost,
    count_parameters,
    measure,
    num_devices,
    target_of,
    tracing_for,
)
from metajax.runs.few_shot import describe_few_shot
from metajax.runs.learner import UNROLLED
from metajax.runs.parts import check_split
from metajax.runs.progress import Progress
from metajax.runs.workdir import writable, write_atomically
from metajax.training.outer import default_chunk_size

_log = logging.getLogger("metajax")
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
    with Progress("plan", "program") as progress, tracing_for(settings), _each_warning_once():
        few_shot = describe_few_shot(settings.model, settings, settings, settings.ways)
        costs = _Costs(progress, few_shot.inner["inner_steps"])
        cost = costs.of(settings, "as given")
        report: dict[str, Any] = {
            "settings": dataclasses.asdict(settings),
            "parameters": count_parameters(settings),
            "cost": cost.as_json(),
            "alternatives": [
                {"change": name, **costs.of(changed, name).as_json()}
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


@contextlib.contextmanager
def _each_warning_once() -> Iterator[None]:
    """Leave out repeated warnings: each program describes the same model."""
    shown: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        repeated = record.levelno >= logging.WARNING and message in shown
        shown.add(message)
        return not repeated

    _log.addFilter(is_new)
    try:
        yield
    finally:
        _log.removeFilter(is_new)


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
    """Find the largest value of a setting with which a step fits; 0 if no value fits."""

    def total(value: int) -> int:
        changes: dict[str, Any] = {name: value}
        if name == "chunk_size":
            changes["meta_batch_size"] = value * num_devices(settings)
        return costs.of(dataclasses.replace(settings, **changes), flag_and_value(name, value)).total

    start = max(1, getattr(costs.program(settings), name))
    # A loop of many steps may need less memory than a few unrolled steps.
    unrolls = name == "inner_steps" and target_platform() == "cpu"
    if unrolls and total(UNROLLED + 1) <= memory:
        start = max(start, UNROLLED + 1)
    return largest_fitting(total, start, memory)


def largest_fitting(total: Callable[[int], int], start: int, memory: float) -> int:
    """Find the largest value whose total fits into the memory; 0 if none fits.

    If the total is linear in the value, the result is exact to 5%. The search follows the line
    through two known totals. It stops when this line leaves no room for a value 5% larger than the
    largest that is known to fit.

    Args:
        total: memory by value, which grows with the value.
        start: the first value to try.
        memory: the limit.
    """
    totals: dict[int, int] = {}
    probe = start
    while True:
        totals[probe] = total(probe)
        fitting = sorted(value for value in totals if totals[value] <= memory)
        failing = sorted(value for value in totals if totals[value] > memory)
        fits, fails = max(fitting, default=0), min(failing, default=_MOST + 1)
        nearest = fitting[-2:] if len(fitting) > 1 else (fitting + failing)[:2]
        limit, larger = _crossing(totals, nearest, memory), fits + 1 + fits // 20
        if fails <= larger or (fits and len(nearest) > 1 and limit < larger):
            return fits
        if failing and limit >= fails:
            limit = _crossing(totals, [fits, fails], memory)
        # A bracket loses an eighth at least, however far the totals are from a line.
        margin = (fails - fits) // 8 if fits and failing else 0
        limit = min(max(limit, fits + margin), fails - margin)
        probe = int(min(max(limit, fits + 1), fails - 1))


def _crossing(totals: dict[int, int], values: list[int], memory: float) -> float:
    """Return where the line through two totals reaches the memory. One total: from the origin."""
    low, high = values if len(values) > 1 else (0, values[0])
    base = totals.get(low, 0)
    rise = totals[high] - base
    return low + (memory - base) * (high - low) / rise if rise > 0 else 2.0 * high


class _Costs:
    """Costs by program. Each is compiled once, with progress.

    Args:
        progress: counts the programs.
        inner_steps: number of inner steps if the settings do not give it.
    """

    def __init__(self, progress: Progress, inner_steps: int) -> None:
        self._known: dict[PlanSettings, Cost] = {}
        self._progress, self._inner_steps = progress, inner_steps

    def program(self, settings: PlanSettings) -> PlanSettings:
        """Fill in the defaults, so that equal programs have equal settings."""
        steps = self._inner_steps if settings.inner_steps is None else settings.inner_steps
        chunk = settings.chunk_size or default_chunk_size(
            settings.meta_batch_size // num_devices(settings)
        )
        return dataclasses.replace(settings, chunk_size=chunk, inner_steps=steps)

    def of(self, settings: PlanSettings, name: str) -> Cost:
        """Compile a program, if it is new; the progress line has its name and total memory."""
        program = self.program(settings)
        if program not in self._known:
            cost = self._known[program] = measure(settings)
            self._progress.update(f"{name} needs {cost.total / 1e9:.2f} GB")
        return self._known[program]


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
