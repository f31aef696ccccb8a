"""The lineage of a model: the runs that led to it, back to the Hugging Face weights."""

import dataclasses
import json
from typing import Any

from metajax.config.fields import flag
from metajax.config.results import LineageSettings
from metajax.errors import InputError, printable
from metajax.runs.paths import address, to_path
from metajax.runs.record import SETTINGS, read_record
from metajax.runs.workdir import writable, write_atomically


def lineage(settings: LineageSettings) -> list[dict[str, Any]]:
    """Return the runs that led to a workdir, the last run first, and the original weights.

    Returns:
        One row per run: `stage`, `path`, `step` (of the checkpoint that the next run started from;
        None for the last run), `settings` with the seed, `data` (sha256 of the files) and
        `versions`. The last row has the `path`, `sha256` and `config_sha256` of the Hugging Face
        weights.

    Raises:
        InputError: the workdir has no run.
    """
    output = writable(settings.output) if settings.output else None
    path = to_path(settings.model)
    record = read_record(path)
    if record is None:
        raise InputError(f"{settings.model}: is not the working directory of a run; give one")
    rows: list[dict[str, Any]] = []
    parent: dict[str, Any] = {"path": address(path), "record": record}
    while "record" in parent:
        record = parent["record"]
        kept = {name: record[name] for name in ("stage", "settings", "data", "versions")}
        rows.append(kept | {"path": parent["path"], "step": parent.get("step")})
        parent = record["parent"]
    rows.append({"stage": None, **parent})
    if output:
        write_atomically(output, json.dumps(rows, indent=2) + "\n")
    return rows


def entries(rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Return a title per row, with the seed, the settings that are not the defaults, and hashes."""
    listed = []
    for row in rows[:-1]:
        at = "" if row["step"] is None else f", step {row['step']}"
        changed = _changed(row["stage"], row["settings"])
        values = {"seed": row["settings"]["seed"], **changed, **_short(row["data"])}
        listed.append((f"{row['stage']}  {row['path']}{at}", values))
    weights = _short({k: v for k, v in rows[-1].items() if isinstance(v, str) and k != "path"})
    return [*listed, (f"Hugging Face weights  {rows[-1].get('path', '')}", weights)]


def summary(rows: list[dict[str, Any]]) -> str:
    """Format the entries as text."""
    return "\nfrom\n".join(
        "\n".join(map(printable, [title, *(f"  {name} {value}" for name, value in values.items())]))
        for title, values in entries(rows)
    )


def _changed(stage: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that are not the defaults, without names of files."""
    return {
        flag(setting.name): values[setting.name]
        for setting in dataclasses.fields(SETTINGS[stage])
        if setting.metadata["affects_results"]
        and setting.name != "seed"
        and setting.name in values
        and values[setting.name] not in (None, setting.default)
    }


def _short(hashes: dict[str, Any]) -> dict[str, str]:
    return {name: str(value)[:16] for name, value in hashes.items()}
