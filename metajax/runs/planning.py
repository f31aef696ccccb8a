"""The plan of a run: its cost, what it would be with other settings, and the largest that fits."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator
from typing import Any, cast

from metajax.algorithms import ALGORITHMS
from metajax.algorithms.adaptation import UNROLLED
from metajax.config.fields import flag_and_value
from metajax.config.plan import PlanSettings
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
from metajax.runs.fitting import largest_fitting
from metajax.runs.learner import takes_low_memory
from metajax.runs.parts import check_split
from metajax.runs.programs import described
from metajax.runs.progress import Progress
from metajax.training.outer import default_chunk_size

Value = str | int | float | bool | tuple[str, ...] | None  # Of a setting.

_log = logging.getLogger("metajax")
_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_FIRST_ORDER = {
    "maml": "fomaml",
    "proto-maml": "fomaml",
    "test-time-training": "first-order-test-time-training",
}


def plan(model: str, **settings: Value) -> dict[str, Any]:
    """Predict memory and arithmetic of a step by compiling it. Nothing runs.

    It needs no weights and no texts: all texts are assumed to have `max_length` tokens. With
    `target`, such as `"h100"` or `"v5e:2x4"`, the step is compiled for that machine. If JAX has
    not been used yet, the process can then use only the CPU.

    Args:
        model: hub id, Hugging Face directory or workdir.
        **settings: the flags of `metajax plan`, with underscores: `stage`, `target`, `memory`,
            `meta_batch_size`, `inner_steps`, `low_memory`, ...

    Returns:
        A dict with these keys:

        - `settings`: all settings by name.
        - `parameters`: their number.
        - `cost`, for each device: the bytes of `state` (parameters and optimizer), `tasks` (the
          batch), `working` (all else during the step) and `total`; the `flops` of matrix products.
          With `target` also `moved` (bytes through memory), `kernels`, `seconds` (an estimate) and
          `collectives` (for each kind their `count` and `bytes`).
        - `alternatives`: the cost after each `change` of settings.
        - with `target`: the number of `devices`, also as `chips`; `fits`, whether a step fits; and
          from `cost` the `flops`, the `collectives`, and the memory as `argument_bytes` (state and
          batch), `temporary_bytes` and `output_bytes` (the new state, which overwrites the old).
        - with `memory` or `target`: the bytes of `memory` that a program can use, and the `largest`
          values that fit: `chunk_size` (episodes at once on a device) and `inner_steps` of
          metatrain, `batch_size` of pretrain and finetune.

    Raises:
        InputError: the input cannot be used.
        TypeError: a setting has an unknown name.

    Examples:
        >>> import tempfile, metajax
        >>> from metajax.models import Transformer, TransformerConfig, save_config
        >>> config = TransformerConfig(
        ...     vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
        ...     intermediate_size=4, max_position_embeddings=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_config(folder, Transformer(config))
        ...     report = metajax.plan(folder, stage="pretrain", batch_size=2, max_length=8)
        >>> report["parameters"], report["cost"]["state"]
        (277, 3340)
        >>> [row["change"] for row in report["alternatives"]]
        ['--remat']
    """
    return make_report(PlanSettings(model=model, **cast(dict[str, Any], settings)))


def make_report(settings: PlanSettings) -> dict[str, Any]:
    """Make the report of `plan`."""
    devices = num_devices(settings)
    _check_devices(settings, devices)
    memory = _memory(settings)
    with Progress("plan", "program") as progress, tracing_for(settings), _each_warning_once():
        trains = settings.stage == "metatrain"
        costs = _Costs(progress, described(settings).inner["inner_steps"] if trains else None)
        cost = costs.of(settings, "as given")
        report: dict[str, Any] = {
            "settings": dataclasses.asdict(settings),
            "parameters": count_parameters(settings),
            "cost": cost.as_json(),
            "alternatives": [
                {"change": name, **costs.of(changed, name).as_json()}
                for name, changed in _alternatives(settings, costs)
            ],
        }
        if settings.target is not None:
            report |= {"devices": devices, **_summarized(settings, cost, devices, memory)}
        if memory is not None:
            report["memory"] = memory
            report["largest"] = {
                name: _largest(settings, name, memory, costs) for name in _searched(settings)
            }
    return report


def _summarized(
    settings: PlanSettings, cost: Cost, devices: int, memory: float | None
) -> dict[str, Any]:
    """Return the numbers of a target under the names of XLA's memory analysis."""
    return {
        "target": settings.target,
        "chips": devices,
        "argument_bytes": cost.state + cost.tasks,
        "temporary_bytes": cost.working,
        "output_bytes": cost.state,  # It overwrites the arguments.
        "fits": memory is None or cost.total <= memory,
        "flops": cost.flops,
        "collectives": {} if cost.estimate is None else cost.estimate.collectives,
    }


def _check_devices(settings: PlanSettings, devices: int) -> None:
    """Check that the devices can share the work of a step."""
    if settings.stage == "metatrain":
        check_split("--meta-batch-size", settings.meta_batch_size, settings.chunk_size, devices)
        return
    if settings.stage != "adapt":
        check_split("--batch-size", settings.rows, None, devices)
        return
    target = target_of(settings)
    if target is not None and len(target.devices) > 1:
        chip = str(settings.target).partition(":")[0]
        raise InputError(
            f"--target {settings.target}: adapt runs on one device; give --target {chip}"
        )


def _searched(settings: PlanSettings) -> tuple[str, ...]:
    """Return the settings whose largest values are searched."""
    if settings.stage == "adapt":
        return ()  # It takes one part of the examples at a time, and any number of steps.
    if settings.stage != "metatrain":
        return ("batch_size",)
    takes_steps = "inner_steps" in ALGORITHMS[settings.algorithm].settings
    return ("chunk_size", "inner_steps") if takes_steps else ("chunk_size",)


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
    """Return the bytes that a program can use on a device, if known."""
    if settings.memory != "auto":
        return parse_memory(settings.memory)
    target = target_of(settings)
    return None if target is None else target.chip.available


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


def _alternatives(settings: PlanSettings, costs: "_Costs") -> Iterator[tuple[str, PlanSettings]]:
    """Yield changes of the settings that save memory: a name, and the changed settings."""
    changes: list[dict[str, Any]] = [{"remat": True}]
    if settings.stage == "metatrain":
        if "low_memory" in ALGORITHMS[settings.algorithm].settings:
            changes += [{"low_memory": True}, {"remat": True, "low_memory": True}]
        if settings.algorithm in _FIRST_ORDER:
            first_order = _FIRST_ORDER[settings.algorithm]
            changes += [{"algorithm": first_order, "low_memory": False}]
        if (costs.program(settings).chunk_size or 1) > 1:
            changes.append({"chunk_size": 1})
    known = {costs.program(settings)}
    for change in changes:
        changed = dataclasses.replace(settings, **change)
        if costs.program(changed) not in known:
            known.add(costs.program(changed))
            shown = [flag_and_value(*each) for each in change.items() if each[1] is not False]
            yield " ".join(shown), changed


def _largest(settings: PlanSettings, name: str, memory: float, costs: "_Costs") -> int:
    """Find the largest value of a setting with which a step fits; 0 if no value fits."""
    devices = num_devices(settings)
    unit = devices if name == "batch_size" else 1  # The devices share a batch evenly.

    def total(value: int) -> int:
        changes: dict[str, Any] = {name: unit * value}
        if name == "chunk_size":
            changes["meta_batch_size"] = value * devices
        shown = flag_and_value(name, unit * value)
        return costs.of(dataclasses.replace(settings, **changes), shown).total

    start = max(1, getattr(costs.program(settings), name) // unit)
    # A loop of many steps may need less memory than a few unrolled steps.
    unrolls = name == "inner_steps" and target_platform() == "cpu"
    if unrolls and total(UNROLLED + 1) <= memory:
        start = max(start, UNROLLED + 1)
    return unit * largest_fitting(total, start, memory)


class _Costs:
    """Costs by program. Each is compiled once, with progress.

    Args:
        progress: counts the programs.
        inner_steps: number of inner steps of metatrain if the settings do not give it.
    """

    def __init__(self, progress: Progress, inner_steps: int | None) -> None:
        self._known: dict[PlanSettings, Cost] = {}
        self._progress, self._inner_steps = progress, inner_steps

    def program(self, settings: PlanSettings) -> PlanSettings:
        """Fill in the defaults, so that equal programs have equal settings."""
        if settings.stage == "adapt":
            return settings
        if settings.stage != "metatrain":
            return dataclasses.replace(settings, batch_size=settings.rows)
        steps = self._inner_steps if settings.inner_steps is None else settings.inner_steps
        share = settings.meta_batch_size // num_devices(settings)
        chunk = settings.chunk_size or default_chunk_size(share)
        low_memory = "low_memory" in ALGORITHMS[settings.algorithm].settings and takes_low_memory(
            settings.low_memory, remat=settings.remat
        )
        return dataclasses.replace(
            settings, chunk_size=chunk, inner_steps=steps, low_memory=low_memory
        )

    def of(self, settings: PlanSettings, name: str) -> Cost:
        """Compile a program, if it is new; the progress line has its name and total memory."""
        program = self.program(settings)
        if program not in self._known:
            cost = self._known[program] = measure(settings)
            self._progress.update(f"{name} needs {cost.total / 1e9:.2f} GB")
        return self._known[program]
