"""The plan of a run: the fastest exact way to compute its steps that fits into the memory."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import jax

from metajax.algorithms import ALGORITHMS
from metajax.config.fields import flag_and_value
from metajax.config.settings import MetatrainSettings
from metajax.errors import InputError
from metajax.runs.cost import needed_bytes, working_bytes
from metajax.runs.document_tasks import are_documents
from metajax.runs.loop import Stage, lower_step
from metajax.runs.planning import parse_memory
from metajax.training import distributed
from metajax.training.outer import default_chunk_size
from metajax.training.parallel import all_devices
from metajax.types import Params

Plan = dict[str, Any]  # Changes of settings: `chunk_size`, `low_memory` and `remat`.

_log = logging.getLogger("metajax")


def device_memory(settings: MetatrainSettings) -> float | None:
    """Return the bytes that a step may use on each device: as given, or those of the device.

    None if neither is known, as on a CPU.

    Raises:
        InputError: `--memory` is not an amount of memory.
    """
    if settings.memory != "auto":
        return parse_memory(settings.memory)
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    return min(filter(None, limits), default=None)


def choose_plan(
    settings: MetatrainSettings,
    algorithm: str,
    memory: float,
    step_memory: Callable[[MetatrainSettings], int],
) -> Plan:
    """Find the fastest exact plan that fits: the settings as given, or the fewest changes.

    The changes, in this order: fewer tasks at once, then one at a time with `low_memory`, then with
    `remat` too. What the settings ask for stays. Several processes choose the same plan.

    Args:
        settings: the settings as given.
        algorithm: the algorithm that they mean.
        memory: bytes of a device.
        step_memory: from settings to the bytes that a step needs on each device.

    Raises:
        InputError: no plan fits.
    """
    memory = -distributed.largest(-memory)

    def needed(plan: Plan) -> float:
        _log.info("metatrain: compiling a step%s to see if it fits", _with(plan))
        begun = time.monotonic()
        size = distributed.largest(step_memory(dataclasses.replace(settings, **plan)))
        _log.info("metatrain: compiled in %.0f s", time.monotonic() - begun)
        return size

    share = settings.meta_batch_size // len(all_devices())
    chunk = settings.chunk_size or default_chunk_size(share)
    switches = _switches(settings, algorithm)
    plan: Plan = {}
    size = smallest = first = needed(plan)
    while size > memory:
        before = dict(plan)
        # How many tasks would fit if all memory were the tasks'. In fact fewer do.
        most = memory * chunk / size
        if chunk > 1:
            chunk = _divisor(share, min(most, chunk // 2))
            plan["chunk_size"] = chunk
        if most < 1 and switches:
            plan[switches.pop(0)] = True
        if plan == before:
            raise InputError(_too_large(settings, algorithm, smallest, memory))
        size = needed(plan)
        smallest = min(smallest, size)
    if plan:
        _log.info(
            "metatrain: the step needs %.3g GB of %.3g;%s it needs %.3g GB",
            *(first / 1e9, memory / 1e9, _with(plan), size / 1e9),
        )
    return plan


def with_plan(settings: MetatrainSettings, plan: Plan) -> MetatrainSettings:
    """Return the settings with a plan, also on more devices than it was made for."""
    share = settings.meta_batch_size // len(all_devices())
    chunk = {"chunk_size": math.gcd(plan["chunk_size"], share)} if "chunk_size" in plan else {}
    return dataclasses.replace(settings, **plan | chunk)


def step_memory(stage: Stage, params: Params) -> int:
    """Compile the first step of a stage, and return the bytes that it needs on each device."""
    lowered = lower_step(stage, params)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        leaves = jax.tree.leaves(lowered.in_avals)
        return needed_bytes(error) + sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return int(analysis.argument_size_in_bytes) + working_bytes(compiled)


def _switches(settings: MetatrainSettings, algorithm: str) -> list[str]:
    """Return the switches that save memory and are not on, the one that costs less time first."""
    known = {"low_memory": "low_memory" in ALGORITHMS[algorithm].settings, "remat": True}
    return [name for name, has in known.items() if has and not getattr(settings, name)]


def _divisor(number: int, limit: float) -> int:
    """Return the largest divisor up to a limit; at least one."""
    return max(
        each for each in range(1, number + 1) if number % each == 0 and each <= max(1, limit)
    )


def _with(plan: Plan) -> str:
    """Return how a log line names a plan: nothing for the settings as given."""
    flags = " ".join(flag_and_value(*each) for each in plan.items())
    return f" with {flags}" if flags else ""


def _too_large(settings: MetatrainSettings, algorithm: str, smallest: float, memory: float) -> str:
    has_layers = "layers" in ALGORITHMS[algorithm].settings and not are_documents(settings)
    layers = ", adapt fewer --layers" if has_layers else ""
    return (
        f"metatrain: the smallest exact step needs {smallest / 1e9:.3g} GB of {memory / 1e9:.3g}; "
        f"use a smaller --max-length{layers}, or use more devices with --shards"
    )
