"""Count what a compiled program moves through memory, from its text (`compiled.as_text()`).

The text is XLA's optimized and scheduled program. A fusion, a matrix product, a copy and a call of
a library is one kernel: it reads its operands and writes its results. Of an array that a kernel
slices, gathers from or updates in place, only those elements count. A loop counts as often as its
body runs. On TPUs, arrays in on-chip memory do not count. Caches and padding are not modelled.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from metajax.training.hlo import Array, Computation, Instruction, Program, parse

# These take no time: they name memory, or end what another instruction began.
_FREE = {
    *("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "opt-barrier"),
    *("after-all", "partition-id", "replica-id", "add-dependency", "domain"),
}
_FREE_CALLS = {"AllocateBuffer", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}
_COLLECTIVES = {
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
    *("ragged-all-to-all", "collective-broadcast"),
}
# A kernel computes these element by element, as far as its result is needed.
_LAZY = {"bitcast", "convert", "copy", "reshape", "transpose"}
_SLICES = {"dynamic-slice", "slice", "gather"}

_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=([^,\s]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


class Kernel(NamedTuple):
    """An instruction of a program that runs on the device.

    Attributes:
        name: its name in the text.
        opcode: `fusion`, `dot`, `copy`, `custom-call`, ...
        op_name: the JAX operation it comes from, such as `jit(step)/while/body/dot_general`.
        read: bytes that it reads each time.
        written: bytes that it writes each time.
        times: how often it runs.
    """

    name: str
    opcode: str
    op_name: str
    read: int
    written: int
    times: float

    @property
    def bytes(self) -> float:
        """The bytes that it reads and writes in all."""
        return self.times * (self.read + self.written)


class Collective(NamedTuple):
    """A communication between devices.

    Attributes:
        kind: `all-reduce`, `all-gather`, ...
        size: bytes of its operands or of its results on a device, whichever are more.
        times: how often it runs.
    """

    kind: str
    size: int
    times: float


class Traffic(NamedTuple):
    """The kernels and the collectives of a program."""

    kernels: tuple[Kernel, ...]
    collectives: tuple[Collective, ...]

    @property
    def bytes(self) -> float:
        """The bytes that all kernels read and write."""
        return sum(kernel.bytes for kernel in self.kernels)

    @property
    def launches(self) -> float:
        """How many kernels run."""
        return sum(kernel.times for kernel in self.kernels)


def read_traffic(text: str, while_length: float = 1) -> Traffic:
    """Count the kernels, the bytes and the collectives of a compiled program.

    Args:
        text: `compiled.as_text()`, for a CPU, GPU or TPU.
        while_length: mean number of iterations of a loop whose number the text does not have.

    Raises:
        ValueError: the text is not a program.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.ones(1000)
        >>> program = jax.jit(lambda x: 2 * x).lower(x).compile()
        >>> read_traffic(program.as_text()).bytes
        8000.0
    """
    program, entry = parse(text)
    kernels: list[Kernel] = []
    collectives: list[Collective] = []
    for kernel, communication in _walk(program, entry, 1.0, while_length):
        kernels.append(kernel)
        collectives += communication
    return Traffic(tuple(kernels), tuple(collectives))


def _walk(
    program: Program, name: str, times: float, while_length: float
) -> Iterator[tuple[Kernel, list[Collective]]]:
    """Yield the kernels that a computation runs, with their collectives."""
    computation = program[name]
    for each in computation.instructions.values():
        match each.opcode:
            case "while":
                count = _iterations(program, each) or while_length
                yield from _walk(program, str(each.called), times * count, while_length)
            case "call" | "async-start":
                yield from _walk(program, str(each.called), times, while_length)
            case "conditional":
                found = _BRANCHES.findall(each.attributes)
                names = re.findall(r"[\w.\-]+", " ".join("".join(one) for one in found))
                branches = [list(_walk(program, one, times, while_length)) for one in names]
                yield from max(branches, key=lambda found: sum(one.bytes for one, _ in found))
            case _ if not _is_free(each):
                yield (
                    _kernel(program, computation, each, times),
                    list(_collectives(program, computation, each, times)),
                )


def _iterations(program: Program, loop: Instruction) -> float | None:
    """Return how often a loop runs, if the text tells it."""
    known = _TRIPS.search(loop.attributes)
    if known:
        return float(known[1])
    # A TPU's text has the condition alone. JAX's loops count from zero by ones.
    name = _CONDITION.search(loop.attributes)
    condition = program[name[1]] if name else None
    if condition is None or "direction=LT" not in condition.roots[0].attributes:
        return None
    limit = condition.instructions[condition.roots[0].operands[-1]]
    return float(limit.operands[0]) if limit.opcode == "constant" else None


def _is_free(each: Instruction) -> bool:
    target = _TARGET.search(each.attributes)
    named = target and target[1] in _FREE_CALLS
    return each.opcode in _FREE or each.opcode.endswith("-done") or bool(named)


def _kernel(program: Program, computation: Computation, each: Instruction, times: float) -> Kernel:
    read = 0
    for operand in dict.fromkeys(each.operands):
        arrays = computation.instructions[operand].arrays
        if len(arrays) == 1 and arrays[0].off_chip:
            read += arrays[0].size(_used_by(program, computation, each, operand))
        else:
            read += sum(array.size() for array in arrays if array.off_chip)
    results, counts = _results(each), _written(program, computation, each)
    written = sum(
        array.size(min(array.length, count))
        for array, count in zip(results, counts)
        if array.off_chip
    )
    op_name = _OP_NAME.search(each.attributes)
    return Kernel(each.name, each.opcode, op_name[1] if op_name else "", read, written, times)


def _results(each: Instruction) -> list[Array]:
    """Return the arrays that an instruction writes."""
    count = len(each.operands)
    if each.opcode == "copy-start":  # Its type is that of the copy, the operand and a context.
        return each.arrays[:count]
    if each.opcode.endswith("-start"):  # Operands, results and contexts, or results alone.
        return each.arrays[count : 2 * count] or each.arrays
    # What else these libraries return is workspace.
    return each.arrays[:1] if "__cublas" in each.attributes else each.arrays


def _used_by(program: Program, computation: Computation, user: Instruction, value: str) -> int:
    """Return how many elements of a value an instruction reads, at most all of them."""
    every = computation.instructions[value].arrays[0].length
    used = 0
    for position, operand in enumerate(user.operands):
        if operand != value:
            continue
        if user.opcode == "fusion":
            inner = program[str(user.called)]
            used += _used_within(program, inner, inner.parameters[position])
        elif user.opcode.removesuffix("-start") in _SLICES and position == 0:
            used += _results(user)[0].length
        elif user.opcode == "scatter" and position < len(user.arrays):
            used += computation.instructions[user.operands[-1]].arrays[0].length
        elif user.opcode != "dynamic-update-slice" or position:  # In place.
            used += every
    return min(used, every)


def _used_within(program: Program, fused: Computation, value: str) -> int:
    """Return how many elements of a value a fused computation reads, at most all of them."""
    used = 0
    for user in fused.users.get(value, []):
        if user.opcode in _LAZY and user not in fused.roots:
            used += _used_within(program, fused, user.name)
        else:
            used += _used_by(program, fused, user, value)
    return min(used, sum(array.length for array in fused.instructions[value].arrays))


def _written(
    program: Program, computation: Computation, each: Instruction, *, fused: bool = False
) -> list[int]:
    """Return how many elements of each result an instruction writes, alone or in a fusion."""

    def count(operand: str) -> int:
        return computation.instructions[operand].arrays[0].length

    in_place = not fused or _is_parameter(computation, each.operands[:1])
    match each.opcode:
        case "fusion":
            inner = program[str(each.called)]
            return _written(program, inner, inner.roots[0], fused=True)
        case "tuple" | "bitcast" if fused:
            parts = (computation.instructions[operand] for operand in each.operands)
            return [n for part in parts for n in _written(program, computation, part, fused=True)]
        case "dynamic-update-slice" if in_place:
            return [count(each.operands[1])]
        case "scatter" if in_place:
            return [count(each.operands[-1])] * len(each.arrays)
    return [array.length for array in _results(each)]


def _is_parameter(fused: Computation, operands: list[str]) -> bool:
    """Whether a value is a parameter of a fused computation, perhaps in another shape."""
    found = [fused.instructions[name] for name in operands if name in fused.instructions]
    if found and found[0].opcode == "bitcast":
        return _is_parameter(fused, found[0].operands)
    return bool(found) and found[0].opcode == "parameter"


def _collectives(
    program: Program, computation: Computation, each: Instruction, times: float
) -> Iterator[Collective]:
    """Yield the collectives of a kernel; a fusion may have one inside."""
    kind = each.opcode.removesuffix("-start")
    if kind in _COLLECTIVES:
        operands = [computation.instructions[name].arrays for name in each.operands]
        sizes = (
            sum(array.size() for arrays in operands for array in arrays),
            sum(array.size() for array in _results(each)),
        )
        yield Collective(kind, max(sizes), times)
    if each.opcode == "fusion":
        inner = program[str(each.called)]
        for one in inner.instructions.values():
            yield from _collectives(program, inner, one, times)
