"""Predict memory and time of the meta-gradients that were measured on an H100, without one.

    python -m benchmarks.predicted
    python -m benchmarks.predicted --model minilm --engine earlier-low-memory

The measured rows are those of `benchmarks.gpu` by 33d57cb (logs/gpu.md). The H100's compiler
compiles the same engines (extra plan-cuda), as for `metajax plan --target h100`. The predicted
memory is that of arguments, results and temporary arrays; `benchmarks.traffic` says how the time is
estimated. A ratio is predicted to measured. Prints a table and, with --output, writes it as JSON.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax

from benchmarks.gpu import add_sizes
from benchmarks.memory import SHAPES
from benchmarks.traffic import chosen_target, compiled_for

# GB and seconds of four tasks. BERT-base ran out of memory with the engine earlier-plain.
MEASURED = {
    ("minilm", "earlier-plain"): (20.79, 0.162),
    ("minilm", "earlier-remat"): (14.35, 0.163),
    ("minilm", "earlier-low-memory"): (1.83, 0.165),
    ("minilm", "earlier-first-order"): (1.08, 0.049),
    ("base", "earlier-remat"): (58.43, 0.613),
    ("base", "earlier-low-memory"): (8.93, 0.651),
    ("base", "earlier-first-order"): (4.70, 0.185),
}
ENGINES = ("earlier-plain", "earlier-remat", "earlier-low-memory", "earlier-first-order")


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    parts = [f"{row['model']:6}  {row['engine']:19}"]
    for name, decimals in (("gb", 2), ("seconds", 3)):
        predicted, measured = row[name], row[f"measured_{name}"]
        parts.append(f"{predicted:9.{decimals}f}")
        parts.append(
            "        -      -"
            if measured is None
            else (f"{measured:9.{decimals}f}  {predicted / measured:5.2f}")
        )
    return "  ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=SHAPES, default=["minilm", "base"])
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--output", help="write the rows as JSON")
    add_sizes(parser)
    parser.set_defaults(engine=ENGINES)
    options = parser.parse_args()
    target = chosen_target(parser, "h100")
    print("model   engine                     GB   measured  ratio    seconds   measured  ratio")
    rows = []
    for shape in options.model:
        for engine in options.engine:
            found = compiled_for(target, shape, engine, options)
            size = sum(found[part] for part in ("arguments", "results", "memory"))
            row = {"model": shape, "engine": engine, "gb": size / 1e9, "seconds": found["seconds"]}
            known = MEASURED.get((shape, engine), (None, None))
            rows.append(row | dict(zip(("measured_gb", "measured_seconds"), known)))
            print(line(rows[-1]), flush=True)
    if options.output:
        report = {"settings": vars(options), "jax": jax.__version__, "rows": rows}
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
