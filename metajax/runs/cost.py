"""The cost of a step of meta-training: memory, arithmetic, traffic. A step is compiled, not run."""

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax.algorithms.inner_loop import mean_recomputed_steps
from metajax.config.settings import PlanSettings
from metajax.platforms import compiling_for
from metajax.runs.few_shot import FewShot, describe_few_shot
from metajax.runs.loop import compiler_options
from metajax.runs.parts import make_mesh
from metajax.training.flops import count_traced_flops
from metajax.training.optimizer import adamw
from metajax.training.outer import AlgorithmOrSchedule, OuterState, initial_state, outer_step
from metajax.training.parallel import all_devices, outer_loop
from metajax.training.sharding import shardings
from metajax.training.targets import Target, compile_for_target, find_target
from metajax.training.traffic import Collective, read_traffic
from metajax.types import Params, Task

# A CPU's compiler assigns memory before it makes machine code, so the code need not be optimized.
_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_OUTER_STEPS = 100  # Enough to include all variants of an algorithm that changes during training.
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
    return len(all_devices() if target is None else target.devices)


def tracing_for(settings: PlanSettings) -> AbstractContextManager[None]:
    """Trace for the machine to compile for; see `compiling_for`."""
    target = target_of(settings)
    return nullcontext() if target is None else compiling_for(target.chip.platform)


def measure(settings: PlanSettings) -> Cost:
    """Compile a step, and return its cost on each device."""
    target = target_of(settings)
    with tracing_for(settings):
        program = _describe(settings)
        return program.cost_here(settings) if target is None else program.cost_on(target, settings)


class _Program(NamedTuple):
    """A step, from shapes."""

    few_shot: FewShot
    algorithm: AlgorithmOrSchedule
    optimizer: optax.GradientTransformation
    state: OuterState

    def trace(self, settings: PlanSettings, tasks: Task) -> tuple[jax.stages.Traced, int]:
        """Trace a step of one device, and count its arithmetic."""
        step = outer_step(
            self.algorithm,
            self.optimizer,
            chunk_size=settings.chunk_size,
            frozen=self.few_shot.frozen,
        )
        traced = jax.jit(step, donate_argnums=0).trace(self.state, tasks)
        return traced, round(count_traced_flops(traced.jaxpr.jaxpr, self.repeated_steps))

    @property
    def repeated_steps(self) -> float:
        return mean_recomputed_steps(self.few_shot.inner["inner_steps"])

    def cost_here(self, settings: PlanSettings) -> Cost:
        """Compile the share of one of this machine's devices."""
        tasks = _tasks(self.few_shot, settings, settings.meta_batch_size // num_devices(settings))
        traced, flops = self.trace(settings, tasks)
        compiled = traced.lower().compile(_QUICKLY | compiler_options(settings))
        return Cost(_bytes(self.state), _bytes(tasks), _working(compiled), flops)

    def cost_on(self, target: Target, settings: PlanSettings) -> Cost:
        """Compile the program that a run on the target compiles."""
        mesh, count = make_mesh(settings.shards, target.devices), settings.meta_batch_size
        outer = outer_loop(
            self.algorithm,
            self.optimizer,
            chunk_size=settings.chunk_size,
            donate=True,
            mesh=mesh,
            frozen=self.few_shot.frozen,
        )
        share = _tasks(self.few_shot, settings, count // len(target.devices))
        flops = self.trace(settings, share)[1]
        shards = jax.tree.map(
            lambda leaf, sharding: leaf.update(shape=sharding.shard_shape(leaf.shape)),
            *(self.state, shardings(self.state, mesh)),
        )
        per_process = _tasks(self.few_shot, settings, count // target.num_processes)
        lowered = outer.lower(self.state, per_process)
        memory = (_bytes(shards), _bytes(share))
        try:
            compiled = compile_for_target(lowered)
        except jax.errors.JaxRuntimeError as error:
            return Cost(*memory, _needed(error), flops)
        traffic = read_traffic(compiled.as_text() or "", self.repeated_steps)
        seconds = target.chip.seconds(flops, traffic.bytes, settings.dtype)
        found = Estimate(
            round(traffic.bytes), round(traffic.launches), seconds, _by_kind(traffic.collectives)
        )
        return Cost(*memory, _working(compiled), flops, found)


def _describe(settings: PlanSettings) -> _Program:
    few_shot = describe_few_shot(settings.model, settings, settings, settings.ways)
    algorithm = few_shot.schedule(_OUTER_STEPS, low_memory=settings.low_memory)
    optimizer = adamw(1.0, weight_decay=1.0, clip_norm=1.0)  # The values have no effect.

    def begin(params: Params) -> OuterState:
        source = few_shot.source._replace(params=params)
        start = few_shot._replace(source=source, params=params).start
        return initial_state(algorithm, optimizer, start, jax.random.key(0), few_shot.frozen)

    return _Program(few_shot, algorithm, optimizer, jax.eval_shape(begin, few_shot.params))


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


def count_parameters(settings: PlanSettings) -> int:
    """Return how many parameters the model has."""
    few_shot: FewShot = describe_few_shot(settings.model, settings, settings, settings.ways)
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(few_shot.params))


def _working(compiled: jax.stages.Compiled) -> int:
    """Return the bytes that a compiled step needs besides its arguments."""
    analysis = compiled.memory_analysis()
    assert analysis is not None
    # The rest is results that do not overwrite an argument, and the compiler's buffers.
    beyond = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return int(analysis.temp_size_in_bytes + max(0, beyond))


def _needed(error: jax.errors.JaxRuntimeError) -> int:
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
