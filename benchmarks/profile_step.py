"""Profile the time of a meta-gradient: one step of a case of `benchmarks.peers`.

    python -m benchmarks.profile_step --case minilm-10

Prints the share of each kind of operation in the busy time of all threads. It also prints the
step's speed, in products (`metajax.training.flops`) per second, next to the speed of 1024 x 1024
matrix products measured just before. It runs on a CPU. --output writes the result as JSON.
"""

import argparse
import collections
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.metajax_contender import load_batches, load_params, mean_meta_grad
from benchmarks.peers import CASES, write_case
from metajax.models import Transformer, TransformerConfig
from metajax.training.flops import count_flops

# Kinds by XLA's names of CPU thunks. The first match counts.
KINDS = {
    "matrix products": r"ynn_fusion|dot|custom.?call",
    "elementwise and sums": r"add|multiply|subtract|divide|reduce|exponential|tanh|erf|select",
    "copies and slices": r"copy|slice|transpose|concatenate|gather|scatter|pad|broadcast",
}
# Events of the runtime that contain other events or wait for them.
RUNTIME = re.compile(r"Execut|ThreadPool|Threadpool|^\$|^end: |PjitFunction|Handle|Parse")


def busy_seconds(folder: str) -> dict[str, float]:
    """Return the total seconds of all worker threads, by kind."""
    seconds: dict[str, float] = collections.Counter()
    for file in Path(folder).rglob("*.xplane.pb"):
        data = jax.profiler.ProfileData.from_file(str(file))
        lines = (line for plane in data.planes for line in plane.lines if "XLAEigen" in line.name)
        for event in (event for line in lines for event in line.events):
            if not RUNTIME.search(event.name):
                matching = (kind for kind, names in KINDS.items() if re.search(names, event.name))
                seconds[next(matching, "other")] += event.duration_ns / 1e9
    return dict(seconds)


def peak_flops(size: int = 1024, turns: int = 10) -> float:
    """Return the products per second of a large matrix product, the best of some turns."""
    matrix = jnp.ones((size, size))
    product = jax.jit(lambda a, b: a @ b)
    best = float("inf")
    for _ in range(turns + 1):  # The first run compiles.
        begun = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def profile(name: str, first_order: bool) -> dict[str, Any]:
    """Profile one step of a case: shares of the busy time, seconds, products per second."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_case(folder, CASES[name], first_order, 1, None)
        case = json.loads((folder / "case.json").read_text())
        classes = (case["classes"],)
        model = Transformer(
            TransformerConfig(**case["config"]),
            head="classification",
            pooling="mean",
            num_labels=classes,
        )
        params, (batch,) = load_params(folder, model), load_batches(folder)
    meta_grad = mean_meta_grad(model, case, "metajax")
    peak = peak_flops()
    jax.block_until_ready(meta_grad(params, batch))
    begun = time.perf_counter()
    jax.block_until_ready(meta_grad(params, batch))
    seconds = time.perf_counter() - begun
    with tempfile.TemporaryDirectory() as place:
        with jax.profiler.trace(place):
            jax.block_until_ready(meta_grad(params, batch))
        busy = busy_seconds(place)
    flops = count_flops(meta_grad, params, batch)
    return {
        "case": name,
        "seconds": seconds,
        "gflops": flops / seconds / 1e9,
        "peak_gflops": peak / 1e9,
        "shares": {kind: value / sum(busy.values()) for kind, value in busy.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cases = [name for name in CASES if name != "episodes"]
    parser.add_argument("--case", choices=cases, default="minilm-10")
    parser.add_argument("--order", choices=("second", "first"), default="second")
    parser.add_argument("--output", help="write the result as JSON")
    options = parser.parse_args()
    result = profile(options.case, options.order == "first")
    print(
        f"{result['case']}, {options.order} order: {result['seconds']:.3f} s a step, "
        f"{result['gflops']:.0f} GFLOP/s of the {result['peak_gflops']:.0f} of a large product"
    )
    for kind, share in sorted(result["shares"].items(), key=lambda item: -item[1]):
        print(f"{kind:22} {share:6.1%}")
    if options.output:
        about = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
        Path(options.output).write_text(json.dumps(result | about, indent=2) + "\n")


if __name__ == "__main__":
    main()
