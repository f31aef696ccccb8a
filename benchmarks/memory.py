"""Memory of one meta-gradient, from the compiler's analysis. Nothing is run or downloaded.

    python -m benchmarks.memory                       # BERT-base, K = 1 and 6, every engine
    python -m benchmarks.memory --model large --steps 5 --engine low-memory
    python -m benchmarks.memory --layers 1 3 6 --tasks 1 4 --chunk 4

A task has --support and --query examples of --length tokens in float32. The inner loop is SGD on
all blocks and the embeddings, or on the upper --layers blocks. Of several --tasks, --chunk at a
time (default one) run under vmap. The numbers are arguments, results and temporary memory of the
compiled program. Prints a table and, with --output, writes it as JSON.
"""

import argparse
import functools
import itertools
import json
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from metajax.models import (
    Transformer,
    TransformerConfig,
    classification_loss,
    prototype_init,
    upper_layers,
)
from metajax.training.outer import map_tasks, task_keys

SHAPES = {
    "tiny": (2, 32, 2, 64),
    "minilm": (6, 384, 12, 1536),
    "base": (12, 768, 12, 3072),
    "large": (24, 1024, 16, 4096),
}
# For each engine: remat, low_memory, first_order.
ENGINES = {
    "plain": (False, False, False),
    "remat": (True, False, False),
    "low-memory": (True, True, False),
    "first-order": (True, False, True),
}
CLASSES = 5


def bert(shape: str, remat: bool) -> Transformer:
    layers, hidden, heads, inner = SHAPES[shape]
    config = TransformerConfig(
        vocab_size=30522 if shape != "tiny" else 100,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=512,
    )
    settings: dict[str, Any] = {"pooling": "mean", "feature_norm": np.sqrt(10)}
    return Transformer(
        config, head="classification", num_labels=(CLASSES,), remat=remat, **settings
    )


def batch(examples: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    tokens = ("input_ids", "attention_mask", "token_type_ids")
    shapes = dict.fromkeys(tokens, (examples, length)) | {"labels": (examples,)}
    return {key: jax.ShapeDtypeStruct(shape, jnp.int32) for key, shape in shapes.items()}


class Program(NamedTuple):
    """A compiled meta-gradient, the shapes of its arguments, and its compile time."""

    compiled: Any
    params: Any
    task: metajax.Task
    seconds: float


def build(
    shape: str, engine: str, steps: int, layers: int | None, sizes: Any, tasks: int = 1
) -> Program:
    """Compile a meta-gradient; `sizes` has `support`, `query`, `length` and `chunk`."""
    remat, low_memory, first_order = ENGINES[engine]
    model = bert(shape, remat)
    loss_fn = classification_loss(model)
    algorithm = metajax.maml(
        lambda params, batch, rng: loss_fn(params, batch, None),
        optax.sgd(0.1),
        steps,
        first_order=first_order,
        low_memory=low_memory,
        init_fn=prototype_init(model),
        reparametrize=None if layers is None else upper_layers(model, layers),
    )
    params = jax.eval_shape(model.replace(head="encoder").init, jax.random.key(0))
    task = metajax.Task(batch(sizes.support, sizes.length), batch(sizes.query, sizes.length))

    def run(params: Any, task: metajax.Task, key: Any = None) -> Any:
        del key
        return algorithm.meta_grad(params, task, None)

    whole = run
    if tasks > 1:
        task = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((tasks, *leaf.shape), leaf.dtype), task
        )
        keys = task_keys(jax.random.key(0), 0, tasks)
        whole = lambda params, batch: map_tasks(  # noqa: E731
            functools.partial(run, params), batch, keys, sizes.chunk
        )
    begun = time.perf_counter()
    compiled = jax.jit(whole).lower(params, task).compile()
    return Program(compiled, params, task, time.perf_counter() - begun)


def memory_of(program: Program) -> dict[str, int]:
    """Return its bytes by part, and the total."""
    analysis = program.compiled.memory_analysis()
    parts = {
        "arguments": analysis.argument_size_in_bytes,
        "results": analysis.output_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
    }
    return parts | {"total": sum(parts.values())}


def write_report(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write the rows as JSON to `--output`, with versions, device and settings."""
    about = {
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
    }
    report = {"settings": vars(options), "versions": about, "rows": rows}
    Path(options.output).write_text(json.dumps(report, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=SHAPES, default=["base"])
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 6])
    parser.add_argument(
        "--layers", nargs="+", type=int, help="number of adapted blocks, from the top"
    )
    parser.add_argument("--tasks", nargs="+", type=int, default=[1])
    parser.add_argument("--chunk", type=int, default=1, help="tasks at once")
    parser.add_argument("--support", type=int, default=64)
    parser.add_argument("--query", type=int, default=192)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--output", help="write the rows as JSON")
    options = parser.parse_args()
    print("model   engine       steps  layers  tasks  arguments  results  temporary    total (GB)")
    rows = []
    layers_given = options.layers or [None]
    grid = itertools.product(
        options.model, options.engine, options.steps, layers_given, options.tasks
    )
    for shape, engine, steps, layers, tasks in grid:
        program = build(shape, engine, steps, layers, options, tasks)
        row: dict[str, Any] = {"model": shape, "engine": engine, "steps": steps, "layers": layers}
        row["tasks"] = tasks
        row |= memory_of(program) | {"compile_seconds": round(program.seconds, 1)}
        rows.append(row)
        gigabytes = [row[part] / 1e9 for part in ("arguments", "results", "temporary", "total")]
        print(
            f"{shape:7} {engine:12} {steps:5}  {layers or 'all':>6}  {tasks:5}"
            + "  {:9.2f}  {:7.2f}  {:9.2f}  {:7.2f}".format(*gigabytes),
            flush=True,
        )
    if options.output:
        write_report(options, rows)


if __name__ == "__main__":
    main()
