"""Predict the memory and arithmetic of meta-training by compiling a step, without a run."""

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.algorithms import ALGORITHMS
from metajax.algorithms.inner_loop import mean_recomputed_steps
from metajax.config.fields import flag_and_value
from metajax.config.settings import PlanSettings
from metajax.errors import InputError
from metajax.runs.few_shot import FewShot, describe_few_shot
from metajax.runs.learner import UNROLLED
from metajax.runs.loop import compiler_options
from metajax.runs.parts import check_split
from metajax.runs.progress import Progress
from metajax.runs.workdir import writable, write_atomically
from metajax.training.flops import count_traced_flops
from metajax.training.optimizer import adamw
from metajax.training.outer import OuterState, default_chunk_size, initial_state, outer_step
from metajax.types import Params, Task

_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# XLA assigns memory before it makes machine code, so the code need not be optimized.
_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_OUTER_STEPS = 100  # Enough to include all variants of an algorithm that changes during training.
_MOST = 4096  # Limit of the search for episodes at once and for inner steps.


class Cost(NamedTuple):
    """The cost of a step on each device. Memory is in bytes.

    Attributes:
        state: memory of the parameters and of the outer optimizer's two moments.
        tasks: memory of the batch.
        working: memory of activations, adapted parameters and gradients during the step.
        flops: floating-point operations of matrix products.
    """

    state: int
    tasks: int
    working: int
    flops: int

    @property
    def total(self) -> int:
        """The total memory."""
        return self.state + self.tasks + self.working


def plan(settings: PlanSettings) -> dict[str, Any]:
    """Predict the cost of a step of `metatrain` with these settings.

    It assumes that all texts have `--max-length` tokens. A run packs shorter texts and needs less
    memory.

    Returns:
        `parameters` (their number), `cost`, `alternatives` (the cost after each change of
        settings), and with `--memory` also `largest`: the maximum of episodes at once and of inner
        steps that fit.

    Raises:
        InputError: the input cannot be used.
    """
    output = writable(settings.output) if settings.output else None
    check_split("--meta-batch-size", settings.meta_batch_size, settings.chunk_size)
    memory = None if settings.memory is None else parse_memory(settings.memory)
    with Progress("plan", "program") as progress:
        costs = _Costs(progress)
        cost = costs.of(settings)
        report: dict[str, Any] = {
            "settings": dataclasses.asdict(settings),
            "parameters": _count_parameters(settings),
            "cost": _as_json(cost),
            "alternatives": [
                {"change": name, **_as_json(costs.of(changed))}
                for name, changed in _alternatives(settings)
            ],
        }
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


def measure(settings: PlanSettings) -> Cost:
    """Compile one device's share of a step, and return its cost."""
    few_shot = describe_few_shot(settings.model, settings, settings, settings.ways)
    algorithm = few_shot.schedule(_OUTER_STEPS, low_memory=settings.low_memory)
    outer_optimizer = adamw(1.0, weight_decay=1.0, clip_norm=1.0)  # The values have no effect.
    count = settings.meta_batch_size // jax.local_device_count()
    frozen = few_shot.frozen
    step = outer_step(algorithm, outer_optimizer, chunk_size=settings.chunk_size, frozen=frozen)

    def begin(params: Params) -> OuterState:
        start = few_shot._replace(source=few_shot.source._replace(params=params), params=params)
        return initial_state(algorithm, outer_optimizer, start.start, jax.random.key(0), frozen)

    state = jax.eval_shape(begin, few_shot.params)
    tasks = _tasks(few_shot, settings, count)
    traced = jax.jit(step, donate_argnums=0).trace(state, tasks)
    analysis = traced.lower().compile(_QUICKLY | compiler_options(settings)).memory_analysis()
    assert analysis is not None
    state_bytes, task_bytes = _bytes(state), _bytes(tasks)
    # The rest is results that do not overwrite an argument, and the compiler's buffers.
    beyond = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    working = analysis.temp_size_in_bytes + max(0, beyond)
    flops = count_traced_flops(
        traced.jaxpr.jaxpr, mean_recomputed_steps(few_shot.inner["inner_steps"])
    )
    return Cost(state_bytes, task_bytes, working, round(flops))


def _tasks(few_shot: FewShot, settings: PlanSettings, count: int) -> Task:
    """Return the shapes of a batch of episodes, with one text per row."""
    length = few_shot.text_length(settings.max_length)

    def batch(examples: int) -> dict[str, jax.ShapeDtypeStruct]:
        tokens = ("input_ids", "token_type_ids", "position_ids", "example_ids")
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(tokens, (count, examples, length))
        shapes |= {"first_token": (count, examples), "labels": (count, examples)}
        masks = {"example_mask": (count, examples), "class_mask": (count, settings.ways)}
        return {key: jax.ShapeDtypeStruct(shape, jnp.int32) for key, shape in shapes.items()} | {
            key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in masks.items()
        }

    return Task(batch(settings.ways * settings.shots), batch(settings.ways * settings.queries))


def _alternatives(settings: PlanSettings) -> Iterator[tuple[str, PlanSettings]]:
    """Yield changes of the settings that save memory: a name, and the changed settings."""
    changes: list[dict[str, Any]] = [{"remat": True}]
    if "low_memory" in ALGORITHMS[settings.algorithm].settings:
        changes += [{"low_memory": True}, {"remat": True, "low_memory": True}]
    if settings.algorithm in ("maml", "proto-maml"):
        changes += [{"algorithm": "fomaml", "low_memory": False}]
    if (settings.chunk_size or default_chunk_size(settings.meta_batch_size)) > 1:
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
            changes["meta_batch_size"] = value * jax.local_device_count()
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
        "on each device:",
    ]
    lines += [f"  {name:23} {size / 1e9:9.2f} GB" for name, size in parts.items()]
    lines += [f"  arithmetic              {cost['flops'] / 1e12:9.2f} TFLOP per step"]
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


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _count_parameters(settings: PlanSettings) -> int:
    few_shot: FewShot = describe_few_shot(settings.model, settings, settings, settings.ways)
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(few_shot.params))


def _as_json(cost: Cost) -> dict[str, int]:
    return cost._asdict() | {"total": cost.total}
