"""The cost of a step of meta-training: memory, arithmetic, traffic. A step is compiled, not run."""

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from metajax.config.plan import PlanSettings
from metajax.platforms import compiling_for, quick_jit
from metajax.runs.loop import compiler_options
from metajax.runs.parts import make_mesh
from metajax.runs.programs import (
    Adaptation,
    Training,
    describe_adaptation,
    describe_training,
    described,
)
from metajax.training.flops import count_traced_flops
from metajax.training.optimizer import adamw
from metajax.training.outer import OuterState, initial_state, outer_step
from metajax.training.parallel import all_devices, outer_loop
from metajax.training.sharding import shardings
from metajax.training.targets import Target, compile_for_target, find_target
from metajax.training.traffic import Collective, read_traffic
from metajax.types import Params, Task

# A CPU's compiler assigns memory before it makes machine code, so the code need not be optimized.
_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_POWERS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Estimate(NamedTuple):
    """What the program for a target does in a step on each device.

    Attributes:
        moved: bytes that it moves through the device's memory.
        kernels: number of kernels that it runs.
        seconds: the products at the chip's peak plus the bytes at its memory's bandwidth.
        collectives: for each kind, how many there are and their bytes in all.
    """

    moved: int
    kernels: int
    seconds: float
    collectives: dict[str, dict[str, int]]


class Cost(NamedTuple):
    """The cost of a step on each device. Memory is in bytes.

    Attributes:
        state: memory of the parameters and of the outer optimizer's two moments.
        tasks: memory of the batch.
        working: memory of activations, adapted parameters and gradients during the step.
        flops: floating-point operations of matrix products.
        estimate: with a target, what its program does; None if that does not fit.
    """

    state: int
    tasks: int
    working: int
    flops: int
    estimate: Estimate | None = None

    @property
    def total(self) -> int:
        """The total memory."""
        return self.state + self.tasks + self.working

    def as_json(self) -> dict[str, Any]:
        """Return the numbers, without an estimate if there is none."""
        memory = {name: getattr(self, name) for name in ("state", "tasks", "working", "flops")}
        return memory | {"total": self.total} | (self.estimate._asdict() if self.estimate else {})


def target_of(settings: PlanSettings) -> Target | None:
    """Return the machine to compile for; None for this one.

    Raises:
        InputError: there is no such machine, or its compiler is not installed.
    """
    return None if settings.target is None else find_target(settings.target)


def num_devices(settings: PlanSettings) -> int:
    """Return how many devices share the tasks of a step."""
    target = target_of(settings)
    if settings.stage == "adapt":
        return 1
    return len(all_devices() if target is None else target.devices)


def tracing_for(settings: PlanSettings) -> AbstractContextManager[None]:
    """Trace for the machine to compile for; see `compiling_for`."""
    target = target_of(settings)
    return nullcontext() if target is None else compiling_for(target.chip.platform)


def measure(settings: PlanSettings) -> Cost:
    """Compile a step, and return its cost on each device."""
    target = target_of(settings)
    with tracing_for(settings):
        if settings.stage == "adapt":
            return _cost_of_adaptation(describe_adaptation(settings), target, settings)
        program = _Program(describe_training(settings, num_devices(settings)))
        return program.cost_here(settings) if target is None else program.cost_on(target, settings)


class _Program:
    """A step of an outer loop, from shapes."""

    def __init__(self, training: Training) -> None:
        self.training = training
        # The values have no effect.
        self.optimizer = adamw(1.0, weight_decay=1.0, clip_norm=1.0)
        self.state: OuterState = jax.eval_shape(self._begin, training.params)

    def _begin(self, params: Params) -> OuterState:
        start, key = self.training.start(params), jax.random.key(0)
        training = self.training
        return initial_state(training.algorithm, self.optimizer, start, key, training.frozen)

    def trace(self, tasks: Task) -> tuple[jax.stages.Traced, int]:
        """Trace a step of one device, and count its arithmetic."""
        step = outer_step(
            self.training.algorithm,
            self.optimizer,
            chunk_size=self.training.chunk_size,
            frozen=self.training.frozen,
        )
        traced = jax.jit(step, donate_argnums=0).trace(self.state, tasks)
        repeated = self.training.repeated_steps
        return traced, round(count_traced_flops(traced.jaxpr.jaxpr, repeated))

    def cost_here(self, settings: PlanSettings) -> Cost:
        """Compile the share of one of this machine's devices."""
        tasks = self.training.tasks(self.training.num_tasks // num_devices(settings))
        traced, flops = self.trace(tasks)
        options = compiler_options(settings, short=self.training.short)
        compiled = traced.lower().compile(_QUICKLY | options)
        return Cost(_bytes(self.state), _bytes(tasks), working_bytes(compiled), flops)

    def cost_on(self, target: Target, settings: PlanSettings) -> Cost:
        """Compile the program that a run on the target compiles."""
        mesh, count = make_mesh(settings.shards, target.devices), self.training.num_tasks
        outer = outer_loop(
            self.training.algorithm,
            self.optimizer,
            chunk_size=self.training.chunk_size,
            donate=True,
            compiler_options=compiler_options(settings, short=self.training.short),
            mesh=mesh,
            frozen=self.training.frozen,
        )
        share = self.training.tasks(count // len(target.devices))
        flops = self.trace(share)[1]
        shards = jax.tree.map(
            lambda leaf, sharding: leaf.update(shape=sharding.shard_shape(leaf.shape)),
            *(self.state, shardings(self.state, mesh)),
        )
        lowered = outer.lower(self.state, self.training.tasks(count // target.num_processes))
        cost = Cost(_bytes(shards), _bytes(share), 0, flops)
        return _on_target(cost, lowered, target, settings.dtype, self.training.repeated_steps)


def _cost_of_adaptation(
    adaptation: Adaptation, target: Target | None, settings: PlanSettings
) -> Cost:
    """Compile what adapt compiles, for one device."""
    arguments = adaptation.arguments
    if target is not None:
        home = SingleDeviceSharding(target.devices[0])
        arguments = jax.tree.map(lambda leaf: leaf.update(sharding=home), arguments)
    donated = 0 if adaptation.donates else ()
    traced = quick_jit(adaptation.function, donate_argnums=donated).trace(*arguments)
    flops = round(count_traced_flops(traced.jaxpr.jaxpr, 1))
    cost = Cost(_bytes(adaptation.kept), _bytes(adaptation.examples), 0, flops)
    if target is not None:
        return _on_target(cost, traced.lower(), target, settings.dtype, 1)
    compiled = traced.lower().compile(_QUICKLY)
    return cost._replace(working=working_bytes(compiled))


def _on_target(
    cost: Cost, lowered: jax.stages.Lowered, target: Target, dtype: str, repeated_steps: float
) -> Cost:
    """Compile a program for a target, and add what it needs and does to a cost."""
    try:
        compiled = compile_for_target(lowered)
    except jax.errors.JaxRuntimeError as error:
        return cost._replace(working=needed_bytes(error))
    traffic = read_traffic(compiled.as_text() or "", repeated_steps)
    seconds = target.chip.seconds(cost.flops, traffic.bytes, dtype)
    found = Estimate(
        round(traffic.bytes), round(traffic.launches), seconds, _by_kind(traffic.collectives)
    )
    return cost._replace(working=working_bytes(compiled), estimate=found)


def count_parameters(settings: PlanSettings) -> int:
    """Return how many parameters the model has."""
    if settings.stage == "adapt":
        params = described(settings).params
    else:
        params = describe_training(settings, num_devices(settings)).params
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def working_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the bytes that a compiled step needs besides its arguments."""
    analysis = compiled.memory_analysis()
    assert analysis is not None
    # The rest is results that do not overwrite an argument, and the compiler's buffers.
    beyond = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return int(analysis.temp_size_in_bytes + max(0, beyond))


def needed_bytes(error: jax.errors.JaxRuntimeError) -> int:
    """Return the bytes of a program that a TPU's compiler refuses, because they do not fit."""
    found = re.search(r"RESOURCE_EXHAUSTED.*?([\d.]+)([KMGT])\b", str(error), re.DOTALL)
    if found is None:
        raise error
    return round(float(found[1]) * _POWERS[found[2]])


def _by_kind(all_collectives: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """Return for each kind of collective their number and their bytes."""
    found: dict[str, dict[str, int]] = {}
    for each in all_collectives:
        known = found.setdefault(each.kind, {"count": 0, "bytes": 0})
        known["count"] += round(each.times)
        known["bytes"] += round(each.times * each.size)
    return found


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
