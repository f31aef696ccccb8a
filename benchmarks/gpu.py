"""Measure meta-gradients of BERT on an accelerator: tasks per second, utilization, peak memory.

    python -m benchmarks.gpu                          # BERT-base and -large, both dtypes
    python -m benchmarks.gpu --model tiny --tasks 2   # a test that runs on any machine
    python -m benchmarks.gpu --peer-python peers/bin/python   # and torch.func

Compilation takes most of the time of a row, so --jobs rows compile at once. (The compile times show
this.) Then each row is timed alone. One step is the mean meta-gradient of --tasks tasks under one
vmap, or of --chunk tasks at a time. The texts are random and have --length tokens. The inner loop
is SGD on all blocks and the embeddings. Each row runs in a separate process, to measure its own
peak memory. Utilization counts the products of the plain algorithm, without what an engine computes
again, relative to --peak-tflops (known for some GPUs). The engine low-memory also checkpoints the
blocks, and plain-xla has none of the library's compiler options. The peer's parameters have the
dtype of its computation; ours are float32. Rows that run out of memory are marked. Prints a table
and, with --output, writes it as JSON.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers import Case, Contender, write_case


class Engine(NamedTuple):
    """How a meta-gradient is computed.

    Attributes:
        first_order: whether the inner gradients are constants.
        low_memory: whether few inner steps are stored.
        remat: whether blocks are checkpointed.
        loop: whether a loop runs over the blocks. Otherwise they are compiled one by one.
        keeps_all: whether second order stores all values of an inner step, as on a CPU.
        plain: whether it has none of the library's compiler options.
    """

    first_order: bool = False
    low_memory: bool = False
    remat: bool = False
    loop: bool = False
    keeps_all: bool = False
    plain: bool = False


ENGINES = {
    "default": Engine(),
    "plain-xla": Engine(plain=True),
    "low-memory": Engine(low_memory=True, remat=True, loop=True),
    "first-order": Engine(first_order=True),
}
# Those of 33d57cb that changed since; they were measured on an H100 (logs/gpu.md).
EARLIER = {
    "earlier-plain": Engine(loop=True, keeps_all=True, plain=True),
    "earlier-remat": Engine(remat=True, loop=True, keeps_all=True, plain=True),
    "earlier-low-memory": Engine(low_memory=True, remat=True, loop=True, plain=True),
    "earlier-first-order": Engine(first_order=True, remat=True, loop=True, plain=True),
}
# Dense products in TFLOP/s, from data sheets. Float32 means TF32, JAX's default.
PEAKS = {
    "H200": {"bfloat16": 989.0, "float32": 494.0},
    "H100": {"bfloat16": 989.0, "float32": 494.0},
    "A100": {"bfloat16": 312.0, "float32": 156.0},
}
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "OutOfMemoryError")


def meta_gradient(shape: str, engine: str, dtype: str, options: argparse.Namespace) -> Any:
    """Return `(params, tasks) -> mean meta-gradient` with the choices that `metatrain` makes."""
    import jax
    import jax.numpy as jnp
    import optax

    import metajax
    from benchmarks.memory import bert
    from metajax.models import classification_loss, compose, mentioned_rows, separate_layers
    from metajax.platforms import compiling_for, target_platform
    from metajax.training.outer import map_tasks, task_keys

    chosen = (ENGINES | EARLIER)[engine]
    model = bert(shape, remat=chosen.remat).replace(dtype=jnp.dtype(dtype))
    network_loss, rows = classification_loss(model), mentioned_rows(model)

    def meta_grad(params: Any, tasks: Any) -> Any:
        platform = target_platform()

        def loss_fn(params: Any, batch: Any, rng: Any) -> Any:
            with compiling_for(platform):
                return network_loss(params, batch, None)

        algorithm = metajax.maml(
            loss_fn,
            optax.sgd(0.01),
            options.steps,
            first_order=chosen.first_order,
            low_memory=chosen.low_memory,
            reparametrize=rows if chosen.loop else compose(separate_layers(), rows),
        )
        keys = task_keys(jax.random.key(0), 0, options.tasks)
        one = lambda task, key: algorithm.meta_grad(params, task, key)  # noqa: E731
        # The inner loop chooses by the platform what it stores.
        with compiling_for("cpu" if chosen.keeps_all else platform):
            return map_tasks(one, tasks, keys, options.chunk or options.tasks)[0]

    return meta_grad


def jitted(shape: str, engine: str, dtype: str, options: argparse.Namespace) -> Any:
    """Return `meta_gradient` under `jax.jit`, with the compiler options of its engine."""
    import jax

    from metajax.platforms import xla_options

    chosen = (ENGINES | EARLIER)[engine]
    return jax.jit(
        meta_gradient(shape, engine, dtype, options),
        compiler_options={} if chosen.plain else xla_options(quick=False),
    )


def work(options: argparse.Namespace) -> None:
    """Measure one row in this process: compile, report this, and measure when asked."""
    import jax
    import numpy as np

    import metajax
    from benchmarks.memory import CLASSES, bert
    from benchmarks.peers import random_texts
    from metajax.training.flops import count_flops

    (shape,), (engine,), (dtype,) = options.model, options.engine, options.dtype
    model = bert(shape, False)
    sizes = {
        part: (options.tasks, count, options.length)
        for part, count in (("support", options.support), ("query", options.query))
    }
    arrays = random_texts(sizes, model.config.vocab_size)
    tasks = metajax.Task(
        *({k.split("/")[1]: v for k, v in arrays.items() if part in k} for part in sizes)
    )
    assert int(np.max(tasks.support["labels"])) < CLASSES
    # Keep nothing on the device while another row is measured.
    init = jax.jit(model.init).lower(jax.random.key(0)).compile()
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    exact = "first-order" if (ENGINES | EARLIER)[engine].first_order else "default"
    flops = count_flops(meta_gradient(shape, exact, dtype, options), shapes, tasks)
    begun = time.perf_counter()
    run = jitted(shape, engine, dtype, options).lower(shapes, tasks).compile()
    print(json.dumps({"compile_seconds": time.perf_counter() - begun, "flops": flops}), flush=True)
    sys.stdin.readline()
    params, tasks = init(jax.random.key(0)), jax.device_put(tasks)
    seconds = []
    for turn in range(options.turns + 1):
        begun = time.perf_counter()
        jax.block_until_ready(run(params, tasks))
        if turn:  # The first run loads the program.
            seconds.append(time.perf_counter() - begun)
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    measurement = {"seconds": statistics.median(seconds), "peak_bytes": memory}
    if options.profile:
        with jax.profiler.trace(str(Path(options.profile) / f"{shape}-{engine}-{dtype}")):
            jax.block_until_ready(run(params, tasks))
    print(json.dumps(measurement | {"device": device.device_kind, "jax": jax.__version__}))


def begun(options: argparse.Namespace, row: dict[str, str], log: Any) -> subprocess.Popen[str]:
    """Start the process of one row, which compiles at once; its errors go to `log`."""
    sizes = ("support", "query", "length", "steps", "tasks", "turns")
    given = [x for name in sizes for x in (f"--{name}", str(getattr(options, name)))]
    for name in ("chunk", "profile"):
        given += [f"--{name}", str(value)] if (value := getattr(options, name)) else []
    given += [x for name, value in row.items() for x in (f"--{name}", value)]
    command = [sys.executable, "-m", "benchmarks.gpu", "--work", *given]
    # Several processes share the device, so none allocates memory in advance.
    env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=env)


def measured(process: subprocess.Popen[str], log: Any, compiled: str) -> dict[str, Any]:
    """Return the measurement of a compiled row, or the reason why there is none."""
    output, _ = process.communicate("now\n")
    if process.returncode == 0:
        return json.loads(compiled) | json.loads(output)
    log.seek(0)
    why = log.read()
    if any(sign in why for sign in OUT_OF_MEMORY):
        return {"error": "out of memory"}
    raise RuntimeError(why)


def side_by_side(
    options: argparse.Namespace, chosen: list[dict[str, str]]
) -> Iterator[dict[str, Any]]:
    """Compile some rows at once, then measure them one by one."""
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in chosen]
        processes = [begun(options, row, log) for row, log in zip(chosen, logs)]
        for process in processes:
            stack.callback(process.kill)
        compiled = []
        for row, process in zip(chosen, processes):
            compiled.append(process.stdout.readline())
            print("compiled:", *row.values(), file=sys.stderr, flush=True)
        for row, process, log, answer in zip(chosen, processes, logs, compiled):
            row = row | measured(process, log, answer)
            if "flops" in row:
                row["utilisation"] = utilisation(row, options.peak_tflops)
            yield row


def peer(options: argparse.Namespace, shape: str, dtype: str) -> dict[str, Any]:
    """Measure torch.func with the same sizes."""
    case = Case(
        shape, options.support, options.query, options.length, options.steps, options.tasks
    )._replace(dtype=dtype)
    row = {"model": shape, "engine": "torch.func", "dtype": dtype}
    with tempfile.TemporaryDirectory() as folder:
        write_case(Path(folder), case, False, 1, None)
        with contextlib.ExitStack() as stack:
            try:
                contender = Contender("torch.func", Path(folder), options.peer_python)
                stack.callback(contender.stop)
                contender.step(0)
                seconds = [contender.step(0) for _ in range(options.turns)]
            except RuntimeError:
                return row | {"error": "ended early (see above; out of memory?)"}
        return row | {"seconds": statistics.median(seconds), "peak_bytes": contender.peak}


def utilisation(row: dict[str, Any], peak_tflops: float | None) -> float | None:
    """Return the share (0..1) of the device's peak, if known."""
    if peak_tflops is None:
        known = [peaks for name, peaks in PEAKS.items() if name in row["device"]]
        if not known:
            return None
        peak_tflops = known[0][row["dtype"]]
    return row["flops"] / row["seconds"] / (peak_tflops * 1e12)


def line(row: dict[str, Any], tasks: int) -> str:
    """A row of the table."""
    begin = f"{row['model']:6} {row['dtype']:9} {row['engine']:12}"
    if "error" in row:
        return f"{begin} {row['error']}"
    share = row.get("utilisation")
    memory = row["peak_bytes"]
    return (
        f"{begin} {row['seconds']:8.3f} {tasks / row['seconds']:9.2f} "
        + (f"{100 * share:6.1f}%" if share is not None else "      -")
        + (f" {memory / 1e9:8.2f}" if memory is not None else "        -")
        + (f" {row['compile_seconds']:9.1f}" if "compile_seconds" in row else "         -")
    )


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the options of the meta-gradient's shape."""
    engines = [*ENGINES, *EARLIER]
    parser.add_argument("--engine", nargs="+", choices=engines, default=list(ENGINES))
    parser.add_argument("--support", type=int, default=16)
    parser.add_argument("--query", type=int, default=48)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--chunk", type=int, help="tasks at once")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shapes = ("tiny", "minilm", "base", "large")
    parser.add_argument("--model", nargs="+", choices=shapes, default=["base", "large"])
    dtypes = ["bfloat16", "float32"]
    parser.add_argument("--dtype", nargs="+", choices=dtypes, default=dtypes)
    add_sizes(parser)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=4, help="number of rows that compile at once")
    parser.add_argument("--peak-tflops", type=float)
    parser.add_argument("--peer-python", help="the Python of an environment with PyTorch")
    parser.add_argument("--profile", help="a folder for a profile of each row of metajax")
    parser.add_argument("--output", help="write the rows as JSON")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.work:
        work(options)
        return
    print("model  dtype     engine        seconds   tasks/s   MFU      peak GB  to compile")
    parts = itertools.product(options.model, options.dtype, options.engine)
    chosen = [{"model": model, "dtype": dtype, "engine": engine} for model, dtype, engine in parts]
    rows = []
    for first in range(0, len(chosen), options.jobs):
        for row in side_by_side(options, chosen[first : first + options.jobs]):
            rows.append(row)
            print(line(row, options.tasks), flush=True)
    if options.peer_python:
        for shape, dtype in itertools.product(options.model, options.dtype):
            rows.append(peer(options, shape, dtype))
            print(line(rows[-1], options.tasks), flush=True)
    if options.output:
        report = {"settings": vars(options), "python": platform.python_version(), "rows": rows}
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
