"""Predict the memory and arithmetic of a stage by compiling a step, without a run."""

import json
import math
from typing import Any

from metajax.algorithms import ALGORITHMS
from metajax.config.plan import PlanSettings
from metajax.runs.planning import make_report
from metajax.runs.workdir import writable, write_atomically


def plan(settings: PlanSettings) -> dict[str, Any]:
    """Predict the cost of a step; see `metajax.plan`.

    It assumes that all texts have `--max-length` tokens. A run packs shorter texts and needs less
    memory.

    Raises:
        InputError: the input cannot be used.
    """
    output = writable(settings.output) if settings.output else None
    report = make_report(settings)
    if output:
        write_atomically(output, json.dumps(report, indent=2) + "\n")
    return report


def summary(report: dict[str, Any]) -> str:
    """Format the report of `plan` as text."""
    cost, devices = report["cost"], report.get("devices", 1)
    parts = {
        "parameters and optimizer": cost["state"],
        "tasks": cost["tasks"],
        "during a step": cost["working"],
        "total": cost["total"],
    }
    lines = [
        f"parameters                {report['parameters'] / 1e6:9.1f} million",
        f"on each of {devices} devices:" if devices > 1 else "on each device:",
    ]
    lines += [f"  {name:23} {size / 1e9:9.2f} GB" for name, size in parts.items()]
    lines += [f"  arithmetic              {cost['flops'] / 1e12:9.2f} TFLOP per step"]
    lines += _estimate_lines(cost)
    lines += _largest_lines(report)
    lines += ["", f"{'instead':30}        GB    TFLOP"]
    lines += [
        f"  {row['change']:28} {row['total'] / 1e9:9.2f} {row['flops'] / 1e12:8.2f}"
        for row in report["alternatives"]
    ]
    return "\n".join([*lines, "", advice(report)])


def _largest_lines(report: dict[str, Any]) -> list[str]:
    """Format what fits."""
    if not report.get("largest"):
        return []
    episodes, steps, rows = (
        report["largest"].get(name) for name in ("chunk_size", "inner_steps", "batch_size")
    )
    lines = [f"fits in {report['memory'] / 1e9:g} GB:"]
    if rows is not None:
        return [*lines, f"  --batch-size            {rows:6}"]
    lines += [
        f"  episodes at once        {episodes:6} (more per step with --chunk-size {episodes})"
        if episodes
        else "  no episode",
    ]
    return lines + ([] if steps is None else [f"  or inner steps          {steps:6}"])


def _estimate_lines(cost: dict[str, Any]) -> list[str]:
    """Format what a target's program does."""
    if "seconds" not in cost:
        return []
    return [
        f"  memory traffic          {cost['moved'] / 1e9:9.2f} GB per step, "
        f"{cost['kernels']} kernels",
        *(
            f"  {kind:23} {found['bytes'] / 1e9:9.2f} GB per step, {found['count']} in all"
            for kind, found in cost["collectives"].items()
        ),
        f"  time, estimated         {cost['seconds']:9.3f} s per step",
    ]


def advice(report: dict[str, Any]) -> str:
    """Explain the choice of the engine, or name settings that fit if these do not."""
    cost, rows, memory = report["cost"], report["alternatives"], report.get("memory", math.inf)
    if cost["total"] > memory:
        fitting = [row for row in rows if row["total"] <= memory]
        if not fitting:
            return "does not fit, nor do the alternatives; shorten the texts" + _smaller(
                report["settings"]
            )
        best = min(fitting, key=lambda row: row["flops"])
        times = best["flops"] / cost["flops"]
        return f"does not fit; {best['change']} fits, at {times:.2f} times the arithmetic"
    settings = report["settings"]
    if settings["stage"] != "metatrain":
        less = "" if settings["remat"] else "; --remat needs less memory and more time"
        return f"{settings['stage']} has one engine{less}"
    if "low_memory" not in ALGORITHMS[settings["algorithm"]].settings:
        return f"{settings['algorithm']} has one engine, which needs little memory"
    if settings["low_memory"]:
        return "forward over reverse: exact; recomputes activations instead of storing them"
    if settings["remat"]:
        return "exact; computes blocks again; without --remat it is faster"
    return (
        "reverse over reverse: the fastest exact engine (on a GPU or TPU, faster still in a run of "
        "many --steps, which takes longer to compile); --low-memory is exact and the smallest"
    )


def _smaller(settings: dict[str, Any]) -> str:
    """Return what else makes a step smaller."""
    if settings["stage"] in ("pretrain", "finetune"):
        return ", or use a smaller --batch-size"
    if "layers" in ALGORITHMS[settings["algorithm"]].settings and not settings["documents"]:
        return ", or adapt fewer --layers"
    return ", or adapt less, with --lora 8 --freeze" if settings["documents"] else ""
