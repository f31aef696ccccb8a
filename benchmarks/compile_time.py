"""Measure how long a meta-gradient takes to compile, by phase. No accelerator is needed.

    python -m benchmarks.compile_time                  # BERT-base on an H100, the default engine
    python -m benchmarks.compile_time --target v5e --engine low-memory --chunk 1

The meta-gradient is that of `benchmarks.gpu`. The target's own compiler compiles it (extras
plan-cuda and plan-tpu). The phases are JAX's trace of the Python code, its lowering to StableHLO,
and XLA's compilation. A GPU's kernels are not tuned, because this needs the device. Other jobs
change the time that passes, but hardly the CPU time. Prints a table and, with --output, writes it
as JSON.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
from jax.extend import core

from benchmarks.gpu import jitted
from benchmarks.traffic import chosen_target, shapes_for, target_parser
from metajax.platforms import compiling_for
from metajax.training.targets import Target, compile_for_target

T = TypeVar("T")


class Phase(NamedTuple):
    """A phase of the compilation.

    Attributes:
        name: `trace`, `lower` or `compile`.
        cpu: seconds in user code, of all threads and child processes that ended.
        seconds: seconds that passed.
        size: equations, lines of StableHLO or instructions of its result.
    """

    name: str
    cpu: float
    seconds: float
    size: int


def phases_for(target: Target, shape: str, engine: str, options: Any) -> Iterator[Phase]:
    """Compile a meta-gradient for one device of a target; yield the three phases."""
    params, tasks = shapes_for(target, shape, options)
    with compiling_for(target.chip.platform):
        function = jitted(shape, engine, options.dtype, options)
        traced, cpu, seconds = timed(lambda: function.trace(params, tasks))
        yield Phase("trace", cpu, seconds, count_equations(traced.jaxpr.jaxpr))
        lowered, cpu, seconds = timed(traced.lower)
        yield Phase("lower", cpu, seconds, lowered.as_text().count("\n"))
        compiled, cpu, seconds = timed(lambda: compile_for_target(lowered))
        yield Phase("compile", cpu, seconds, (compiled.as_text() or "").count(" = "))


def timed(run: Callable[[], T]) -> tuple[T, float, float]:
    """Return the result of a function, its CPU seconds, and the seconds that passed."""
    before, begun = os.times(), time.perf_counter()
    result = run()
    after, seconds = os.times(), time.perf_counter() - begun
    cpu = after.user + after.children_user - before.user - before.children_user
    return result, cpu, seconds


def count_equations(jaxpr: Any) -> int:
    """Return the number of equations, with those of loops and calls once for each use."""
    inner = core.jaxprs_in_params
    return len(jaxpr.eqns) + sum(
        count_equations(each) for eqn in jaxpr.eqns for each in inner(eqn.params)
    )


def main() -> None:
    """Print the phases of each engine."""
    parser = target_parser(__doc__)
    parser.set_defaults(engine=["default"])
    options = parser.parse_args()
    target = chosen_target(parser, options.target)
    print("engine       phase    CPU seconds   seconds      size")
    rows = []
    for engine in options.engine:
        for phase in phases_for(target, options.model, engine, options):
            rows.append({"engine": engine, **phase._asdict()})
            print(
                f"{engine:12} {phase.name:8} {phase.cpu:11.1f} {phase.seconds:9.1f} {phase.size:9}",
                flush=True,
            )
    if options.output:
        report = {"settings": vars(options), "jax": jax.__version__, "rows": rows}
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
