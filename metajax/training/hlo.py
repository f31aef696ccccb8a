"""Parse the text of a compiled program (XLA's HLO, as `compiled.as_text()` prints it)."""

import math
import re
from typing import NamedTuple

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"(calls|to_apply|body)=%?([\w.\-]+)")


class Array(NamedTuple):
    """The array of a value, or one of several.

    Attributes:
        length: number of elements.
        bits: of an element.
        off_chip: whether it is in the device's main memory.
    """

    length: int
    bits: int
    off_chip: bool

    def size(self, count: int | None = None) -> int:
        """Return the bytes of all elements, or of some."""
        return ((self.length if count is None else count) * self.bits + 7) // 8


class Instruction(NamedTuple):
    """An instruction.

    Attributes:
        name: its name in the text.
        opcode: `fusion`, `dot`, ...
        arrays: its results.
        operands: names of instructions; of a parameter, its number; of a constant,
            its value.
        attributes: the rest of its line.
    """

    name: str
    opcode: str
    arrays: list[Array]
    operands: list[str]
    attributes: str

    @property
    def called(self) -> str | None:
        """The computation that it runs, of a loop the body."""
        found = _CALLED.search(self.attributes)
        return found and found[2]


class Computation(NamedTuple):
    """A sequence of instructions: a fusion, the body of a loop, ...

    Attributes:
        instructions: by name, in order.
        roots: the one whose value is the result.
        users: for each value, the instructions that take it.
    """

    instructions: dict[str, Instruction]
    roots: list[Instruction]
    users: dict[str, list[Instruction]]

    @property
    def parameters(self) -> list[str]:
        """The names of the parameters, in order."""
        numbered = {
            int(each.operands[0]): name
            for name, each in self.instructions.items()
            if each.opcode == "parameter"
        }
        return [numbered[index] for index in sorted(numbered)]


Program = dict[str, Computation]


def parse(text: str) -> tuple[Program, str]:
    """Return the computations by name, and the name of the first to run.

    Raises:
        ValueError: the text is not a program.
    """
    program: Program = {}
    entry = None
    for line in text.splitlines():
        header, found = _HEADER.match(line), _INSTRUCTION.match(line)
        if header:
            computation = program[header[2]] = Computation({}, [], {})
            entry = header[2] if header[1] else entry
        elif found and program:
            each = _instruction(found[2], line[found.end() :])
            computation.instructions[each.name] = each
            for operand in dict.fromkeys(each.operands):
                computation.users.setdefault(operand, []).append(each)
            if found[1]:
                computation.roots.append(each)
    if entry is None:
        raise ValueError("the text is not a compiled program: it has no ENTRY computation")
    return program, entry


def _instruction(name: str, rest: str) -> Instruction:
    """Parse `TYPE OPCODE(OPERANDS), ATTRIBUTES`."""
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing - 1]
    opcode = rest[:opening]
    literal = opcode in ("parameter", "constant")
    operands = [inside] if literal else re.findall(r"%([\w.\-]+)", inside)
    return Instruction(name, opcode, _arrays(type_), operands, rest[closing:])


def _closing(text: str, opening: int) -> int:
    """Return the index after the parenthesis that closes the one at `opening`."""
    depth = 0
    for index in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    raise ValueError(f"the text is not a compiled program: {text[:80]}")


def _arrays(type_: str) -> list[Array]:
    """Return the arrays of a type such as `(f32[2,3]{1,0}, s32[])`."""
    return [
        Array(
            math.prod(int(size.lstrip("<=")) for size in shape.split(",") if size),
            _bits(dtype),
            not re.search(r"S\([1-9]", layout),
        )
        for dtype, shape, layout in _ARRAY.findall(type_)
    ]


def _bits(dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8 * (dtype == "pred")  # Tokens are empty.
