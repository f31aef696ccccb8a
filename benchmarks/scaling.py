"""Estimate weak scaling: the time of a step with one task per chip, on 1 to 1,024 chips.

    python -m benchmarks.scaling

Compute time is the counted arithmetic of the exact meta-gradient (`metajax.training.flops`) at
--share of a chip's peak. The default is what an earlier engine reached on an H100 (`low-memory` in
RESULTS.md); the lower the share, the higher the efficiency. Traffic is one all-reduce of the
float32 parameters on rings with the published link speeds. The compiled program sends nothing else
(`tests/training/test_parallel.py` checks this). Compute and traffic do not overlap, so the sum is
an upper bound. Efficiency is the share of compute time. Nothing is run. Prints a table; --output
writes it as JSON.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

import metajax
from benchmarks.memory import batch, bert
from metajax.models import classification_loss, prototype_init
from metajax.training.flops import count_flops


class Chip(NamedTuple):
    """Published speeds, per chip unless stated otherwise.

    Attributes:
        flops: peak in bfloat16, per second.
        link: bytes per second to its neighbours.
        group: number of chips that these links connect.
        network: bytes per second from a group to other groups.
    """

    flops: float
    link: float
    group: int
    network: float


CHIPS = {
    # cloud.google.com/tpu/docs/v5e: 197 TFLOP/s; 400 GB/s in both directions; 256 chips; 6.4 Tb/s.
    "v5e": Chip(197e12, 200e9, 256, 800e9),
    # NVIDIA's data sheets of H100 SXM and DGX H100: 989 TFLOP/s; NVLink 900 GB/s in both
    # directions; 8 GPUs; 8 x 400 Gb/s.
    "h100": Chip(989e12, 450e9, 8, 400e9),
}


def arithmetic(shape: str, steps: int, support: int, query: int, length: int) -> tuple[int, float]:
    """Return the number of parameters, and of products in one task's exact meta-gradient."""
    model = bert(shape, remat=False)
    params = jax.eval_shape(model.replace(head="encoder").init, jax.random.key(0))
    start = prototype_init(model)
    algorithm = metajax.maml(classification_loss(model), optax.sgd(0.1), steps, init_fn=start)
    task = metajax.Task(batch(support, length), batch(query, length))
    flops = count_flops(lambda p, t: algorithm.meta_grad(p, t, None)[0], params, task)
    return sum(leaf.size for leaf in jax.tree.leaves(params)), flops


def all_reduce_seconds(chip: Chip, count: int, size: float) -> float:
    """Return the time of a ring within each group, then a ring among the groups."""
    inside, groups = min(count, chip.group), -(-count // chip.group)
    within = 2 * (inside - 1) / inside * size / chip.link
    return within + 2 * (groups - 1) / groups * size / chip.network


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=["base", "large"])
    parser.add_argument("--chip", nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--count", nargs="+", type=int, default=[1, 8, 64, 256, 1024])
    parser.add_argument("--share", type=float, default=0.12, help="assumed share of the peak")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--support", type=int, default=25)
    parser.add_argument("--query", type=int, default=25)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--output", help="write the rows as JSON")
    options = parser.parse_args()
    sizes = (options.steps, options.support, options.query, options.length)
    rows: list[dict[str, Any]] = []
    print("model   chip   chips   TFLOP a chip   GB sent   ms compute   ms traffic   efficiency")
    for shape in options.model:
        parameters, flops = arithmetic(shape, *sizes)
        for name in options.chip:
            chip = CHIPS[name]
            compute = flops / (options.share * chip.flops)
            for count in options.count:
                traffic = all_reduce_seconds(chip, count, 4 * parameters)
                row = {
                    "model": shape,
                    "chip": name,
                    "chips": count,
                    "flops": flops,
                    "bytes": 2 * (count - 1) / count * 4 * parameters,
                    "compute_seconds": compute,
                    "traffic_seconds": traffic,
                    "efficiency": compute / (compute + traffic),
                }
                rows.append(row)
                print(
                    f"{shape:7} {name:5} {count:6} {flops / 1e12:14.2f} {row['bytes'] / 1e9:9.2f} "
                    f"{compute * 1e3:12.1f} {traffic * 1e3:12.1f} {row['efficiency']:12.1%}"
                )
    if options.output:
        report = {"settings": vars(options), "rows": rows}
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
