"""Count what a meta-gradient moves through an accelerator's memory. No accelerator is needed.

    python -m benchmarks.traffic                           # BERT-base on an H100, every engine
    python -m benchmarks.traffic --target v5e --engine default --chunk 1
    python -m benchmarks.traffic --engine default --kernels 20

The meta-gradient is that of `benchmarks.gpu`. The target's own compiler compiles it (extras
plan-cuda and plan-tpu), and the bytes are counted in the compiled text: what each kernel reads and
writes. The table has, for each engine and for all tasks, the temporary memory of the program, the
arithmetic of its products, bytes, kernels, and the estimated time: the products at the chip's peak
plus the bytes at its memory's bandwidth. Below are the bytes by kind of kernel and by part of the
model. --kernels also lists the JAX operations whose kernels move the most. Prints tables and, with
--output, writes them as JSON.
"""

import argparse
import collections
import json
import re
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

import metajax
from benchmarks.gpu import add_sizes, jitted
from benchmarks.memory import SHAPES, batch, bert
from metajax.algorithms.inner_loop import mean_recomputed_steps
from metajax.errors import InputError
from metajax.platforms import compiling_for
from metajax.training.flops import count_traced_flops
from metajax.training.hlo import Instruction, Program, parse
from metajax.training.targets import CHIPS, Target, compile_for_target, find_target
from metajax.training.traffic import Kernel, read_traffic

_PRODUCTS = {"dot", "convolution"}
_STACKS = {"dynamic-slice", "dynamic-update-slice"}
_PARTS = {"attention", "feed_forward", "layer_norm"}
_COPIES = {"copy", "copy-start", "broadcast", "pad", "concatenate", "transpose"}


def kind_of(program: Program, each: Instruction) -> str:
    """Return which kind of work a kernel does."""
    fused = program[str(each.called)] if each.opcode == "fusion" else None
    opcodes = {one.opcode for one in (fused.instructions.values() if fused else [each])}
    if opcodes & _PRODUCTS or "__cublas" in each.attributes:
        return "products"
    results = {one.opcode for one in fused.roots} if fused else opcodes
    if results & _STACKS:
        return "stacks of blocks or steps"
    return "copies and fills" if results <= _COPIES else "elementwise, sums and others"


def shapes_for(target: Target, shape: str, options: Any) -> tuple[Any, Any]:
    """Return the shapes of parameters and tasks, placed on one device of a target."""
    here = SingleDeviceSharding(target.devices[0])

    def placed(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=here)

    one = metajax.Task(*(batch(n, options.length) for n in (options.support, options.query)))
    tasks = jax.tree.map(lambda leaf: placed(options.tasks, *leaf.shape), one)
    shapes = jax.eval_shape(bert(shape, remat=False).init, jax.random.key(0))
    return jax.tree.map(lambda leaf: placed(*leaf.shape, dtype=leaf.dtype), shapes), tasks


def compiled_for(target: Target, shape: str, engine: str, options: Any) -> dict[str, Any]:
    """Compile a meta-gradient for one device of a target; return the row, with its kernels."""
    params, tasks = shapes_for(target, shape, options)
    repeated = mean_recomputed_steps(options.steps)
    with compiling_for(target.chip.platform):
        traced = jitted(shape, engine, options.dtype, options).trace(params, tasks)
        flops = count_traced_flops(traced.jaxpr.jaxpr, repeated)
        begun = time.perf_counter()
        compiled = compile_for_target(traced.lower())
    seconds, text = time.perf_counter() - begun, compiled.as_text() or ""
    traffic = read_traffic(text, repeated)
    program, _ = parse(text)
    named = {name: each for one in program.values() for name, each in one.instructions.items()}
    kinds: dict[str, float] = collections.Counter()
    parts: dict[str, float] = collections.Counter()
    for kernel in traffic.kernels:
        kinds[kind_of(program, named[kernel.name])] += kernel.bytes
        parts[part_of(kernel)] += kernel.bytes
    memory = compiled.memory_analysis()
    return {
        "engine": engine,
        "memory": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes,
        "flops": flops,
        "bytes": traffic.bytes,
        "kernels": round(traffic.launches),
        "seconds": target.chip.seconds(flops, traffic.bytes, options.dtype),
        "compile_seconds": seconds,
        "kinds": dict(kinds),
        "parts": dict(parts),
        "operations": by_operation(traffic.kernels),
    }


def part_of(kernel: Kernel) -> str:
    """Return the part of the model that a kernel belongs to: that of its last operation."""
    known = [part for part in re.split("[/()]", kernel.op_name) if part in _PARTS]
    return known[-1] if known else "the rest"


def by_operation(kernels: tuple[Kernel, ...]) -> dict[str, float]:
    """Return the bytes by part of the model and JAX operation."""
    totals: dict[str, float] = collections.Counter()
    for kernel in kernels:
        operation = re.split("[/()]", kernel.op_name)[-1] or kernel.opcode
        totals[f"{part_of(kernel)}: {operation}"] += kernel.bytes
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def show(row: dict[str, Any], kernels: int) -> None:
    """Print a row, and under it the bytes by kind and by operation."""
    print(
        f"{row['engine']:12} {row['memory'] / 1e9:8.2f} {row['flops'] / 1e12:8.1f} "
        f"{row['bytes'] / 1e9:8.0f} {row['kernels']:9} {row['seconds']:9.3f} "
        f"{row['compile_seconds']:9.0f}",
        flush=True,
    )
    largest = list(row["operations"].items())[:kernels]
    by_size = [sorted(row[name].items(), key=lambda item: -item[1]) for name in ("kinds", "parts")]
    for name, size in [*by_size[0], *by_size[1], *largest]:
        print(f"  {size / 1e9:8.0f} GB {100 * size / row['bytes']:5.1f}%  {name}")


def target_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what is compiled, for which target, and where the rows are written."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="h100", help=f"one of {', '.join(CHIPS)}")
    parser.add_argument("--model", choices=SHAPES, default="base")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--output", help="write the rows as JSON")
    add_sizes(parser)
    return parser


def chosen_target(parser: argparse.ArgumentParser, text: str) -> Target:
    """Return the target of a command line; exit if it is unknown or has no compiler here."""
    try:
        return find_target(text)
    except InputError as error:
        parser.error(str(error))


def main() -> None:
    """Print a table for each engine."""
    parser = target_parser(__doc__)
    parser.add_argument("--kernels", type=int, default=0, help="number of operations to list")
    options = parser.parse_args()
    target = chosen_target(parser, options.target)
    print("engine             GB    TFLOP GB moved   kernels   seconds  to compile")
    rows = []
    for engine in options.engine:
        rows.append(compiled_for(target, options.model, engine, options))
        show(rows[-1], options.kernels)
    if options.output:
        report = {"settings": vars(options), "jax": jax.__version__, "rows": rows}
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
