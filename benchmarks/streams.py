"""Measure memory and time of test-time training by number of inner steps, for every engine.

    python -m benchmarks.streams                             # K = 1, 2, 4, ..., 128
    python -m benchmarks.streams --engine low-memory --steps 32 64 128 --layers 8

A task is a stream of K chunks of --examples random tokens; an MLP of --layers layers of --width
units predicts the next token from one, and the inner loop is SGD on all of it. The meta-loss is the
mean loss before the steps (`metajax.test_time_training`). Memory is temporary memory of the
compiled program, in copies of the parameters; seconds are the least of --turns. `truncated` passes
gradients through the last 8 steps. Prints a Markdown table; --output writes the rows as JSON.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from benchmarks.memory import write_report

ENGINES: dict[str, dict[str, Any]] = {
    "reverse": {},
    "low-memory": {"low_memory": True},
    "truncated": {"truncate": 8},
    "truncated, low-memory": {"truncate": 8, "low_memory": True},
    "first-order": {"truncate": 0},
}


def loss_fn(params: list[jax.Array], tokens: jax.Array, rng: Any) -> tuple[Any, dict]:
    """Cross-entropy of an MLP that sees one token and predicts the next."""
    embeddings, *kernels = params
    hidden = embeddings[tokens[:-1]]
    for kernel in kernels:
        hidden = jnp.tanh(hidden @ kernel)
    logits = hidden @ embeddings.T
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:])
    return losses.mean(), {}


def measure(engine: str, steps: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return one row: copies of the parameters in temporary memory, and seconds."""
    draw = np.random.default_rng(0)
    width, scale = options.width, options.width**-0.5
    params = [
        jnp.asarray(draw.normal(size=(width, width), scale=scale), jnp.float32)
        for _ in range(options.layers + 1)
    ]
    task = metajax.Task(jnp.asarray(draw.integers(0, width, (steps, options.examples))), None)
    algorithm = metajax.test_time_training(loss_fn, optax.sgd(0.1), steps, **ENGINES[engine])
    begun = time.perf_counter()
    program = jax.jit(algorithm.meta_grad).lower(params, task, None).compile()
    compile_seconds = time.perf_counter() - begun
    analysis: Any = program.memory_analysis()
    seconds = []
    for _ in range(options.turns):
        begun = time.perf_counter()
        jax.block_until_ready(program(params, task, None))
        seconds.append(time.perf_counter() - begun)
    return {
        "engine": engine,
        "steps": steps,
        "copies": analysis.temp_size_in_bytes / sum(leaf.nbytes for leaf in params),
        "seconds": min(seconds),
        "compile_seconds": compile_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    powers = [2**i for i in range(8)]
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--steps", nargs="+", type=int, default=powers, help="numbers of steps, K")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--examples", type=int, default=64, help="tokens per chunk")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", help="write the rows as JSON")
    options = parser.parse_args()
    rows = []
    print(
        "| copies of the parameters; ms | " + " | ".join(f"K = {k}" for k in options.steps) + " |"
    )
    print("|---" * (1 + len(options.steps)) + "|")
    for engine in options.engine:
        found = [measure(engine, steps, options) for steps in options.steps]
        cells = [f"{row['copies']:.1f}; {1000 * row['seconds']:.1f}" for row in found]
        print(f"| {engine} | " + " | ".join(cells) + " |", flush=True)
        rows += found
    if options.output:
        write_report(options, rows)


if __name__ == "__main__":
    main()
