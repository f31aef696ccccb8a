"""Measure time and memory of one meta-gradient by number of inner steps.

    python -m benchmarks.steps                                   # MiniLM's shape, K = 1 to 50
    python -m benchmarks.steps --engine plain --steps 1 2 5 10 --picture steps.png

One task has --support and --query random texts of --length tokens in float32. The inner loop is SGD
on all blocks and the embeddings. Memory is the temporary memory of the compiled program. The last
column has the extra memory per further step, in copies of the adapted parameters. Seconds are
medians of --turns, in which the programs take turns. Prints a table; --output writes it as JSON.
"""

import argparse
import itertools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.memory import (
    CLASSES,
    ENGINES,
    SHAPES,
    Program,
    bert,
    build,
    memory_of,
    write_report,
)


def arguments_of(program: Program, shape: str) -> tuple[Any, Any]:
    """Create parameters and a task."""
    rng, vocabulary = np.random.default_rng(0), bert(shape, remat=False).config.vocab_size
    high = {"input_ids": vocabulary, "labels": CLASSES, "token_type_ids": 1}

    def fill(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if name == "attention_mask":
            return jnp.ones(leaf.shape, leaf.dtype)
        return jnp.asarray(rng.integers(0, high[name], leaf.shape), leaf.dtype)

    params = jax.jit(bert(shape, remat=False).replace(head="encoder").init)(jax.random.key(0))
    return params, jax.tree_util.tree_map_with_path(fill, program.task)


def measure(engine: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row per number of steps."""
    programs = {
        steps: build(options.model, engine, steps, None, options) for steps in options.steps
    }
    arguments = arguments_of(programs[options.steps[0]], options.model)
    copy = sum(leaf.nbytes for leaf in jax.tree.leaves(arguments[0]))
    seconds: dict[int, list[float]] = {steps: [] for steps in programs}
    for turn, (steps, program) in itertools.product(range(options.turns + 1), programs.items()):
        begun = time.perf_counter()
        jax.block_until_ready(program.compiled(*arguments))
        if turn:  # The first turn is not counted.
            seconds[steps].append(time.perf_counter() - begun)
    first, rows = options.steps[0], []
    for steps, program in programs.items():
        temporary = memory_of(program)["temporary"]
        more = temporary - memory_of(programs[first])["temporary"]
        rows.append(
            {
                "model": options.model,
                "engine": engine,
                "steps": steps,
                "seconds": statistics.median(seconds[steps]),
                "all_seconds": seconds[steps],
                "temporary": temporary,
                "copies_a_step": more / copy / (steps - first) if steps > first else None,
            }
        )
    return rows


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Draw time and memory by number of steps, one line per engine."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, key, scale, label in zip(
        figure.subplots(1, 2),
        ("seconds", "temporary"),
        (1, 1e9),
        ("seconds", "temporary memory (GB)"),
    ):
        for engine, group in itertools.groupby(rows, lambda row: row["engine"]):
            points = [(row["steps"], row[key] / scale) for row in group]
            axes.plot(*zip(*points), marker="o", label=engine)
        axes.set(xlabel="inner steps", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, default="minilm")
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=["low-memory"])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 5, 10, 20, 50])
    parser.add_argument("--support", type=int, default=8)
    parser.add_argument("--query", type=int, default=8)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", help="write the rows as JSON")
    parser.add_argument("--picture", help="draw them, as PNG or SVG")
    options = parser.parse_args()
    options.steps = sorted(set(options.steps))
    print("engine       steps   seconds   temporary GB   copies a further step")
    rows = []
    for engine in options.engine:
        for row in measure(engine, options):
            rows.append(row)
            more = row["copies_a_step"]
            print(
                f"{engine:12} {row['steps']:5}  {row['seconds']:8.3f}   "
                f"{row['temporary'] / 1e9:12.3f}" + ("" if more is None else f"   {more:21.2f}"),
                flush=True,
            )
    if options.output:
        write_report(options, rows)
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
