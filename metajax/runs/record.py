"""The record of a run, `run.json`: settings, data, versions, and the record of its weights."""

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import metajax
from metajax.config import settings as all_settings
from metajax.config.fields import Settings, check
from metajax.config.inner import InnerSettings
from metajax.errors import InputError
from metajax.reading import parse_json

SETTINGS: dict[str, type[Settings]] = {  # The stages that write a run.
    "pretrain": all_settings.PretrainSettings,
    "finetune": all_settings.FinetuneSettings,
    "metatrain": all_settings.MetatrainSettings,
    "adapt": all_settings.AdaptSettings,
}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")
# Settings that readers of a record use. The others may come from an earlier version.
_NEEDED = {"seed", "max_length", "tasks"}
# Values for a record that is older than the setting.
_BEFORE = {
    "keep_duplicates": True,
    "lora_kernels": [],
    "held_out": 0.0,
    "valid_every": 100,
    "logit_scale": 10.0,
    "weights": "checkpoint",
    "source_weights": [],
    "similar_classes": 0,
    "regression": False,
    "calibrate": False,
    "time_limit": 300.0,
}
_READ = {
    "parts",
    "algorithm",
    "valid",
    *(field.name for field in dataclasses.fields(InnerSettings)),
}


def make_record(
    stage: str,
    settings: Settings,
    *,
    data: dict[str, str],
    parent: dict[str, Any],
    model: Any,
    pairs: Sequence[bool] = (),
) -> dict[str, Any]:
    """Return the record of a run, as JSON.

    Args:
        stage: the name of the command.
        settings: all settings.
        data: sha256 of each input file, by option and path.
        parent: the record of the weights that the run starts from.
        model: the network's head, as JSON.
        pairs: whether texts are pairs, for the task of each head.
    """
    record = {
        "stage": stage,
        "settings": dataclasses.asdict(settings),
        "data": data,
        "parent": parent,
        "model": model,
        "pairs": pairs,
        "versions": {
            "metajax": metajax.__version__,
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            "python": platform.python_version(),
        },
    }
    return json.loads(json.dumps(record))


def read_record(workdir: Path) -> dict[str, Any] | None:
    """Read the record in a working directory; None if there is no run.

    Raises:
        InputError: the record cannot be read.
    """
    path = workdir / "run.json"
    if not path.is_file():
        return None
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    return check_record(record, path)


def check_record(record: Any, where: Path) -> dict[str, Any]:
    """Check a record and the records of its weights; return it.

    Raises:
        InputError: one of them is not a record. The message names `where`.
    """
    try:
        _check_record(record)
    except (InputError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"{where}: is not the record of a run; give another run, or restore it from a backup"
        ) from None
    return record


def _check_record(record: Any) -> None:
    """Raise InputError, KeyError or TypeError if a record is not valid."""
    parts = [record[name] for name in ("settings", "data", "parent", "model", "versions")]
    plan = record.get("plan", {})
    if record["stage"] not in SETTINGS or not all(
        isinstance(part, dict) for part in (*parts, plan)
    ):
        raise TypeError
    settings = record["settings"]
    fields = {setting.name: setting for setting in dataclasses.fields(SETTINGS[record["stage"]])}
    for name, setting in fields.items():
        if name in _NEEDED or (name in _READ and name in settings):
            value = settings[name]
            check(setting, tuple(value) if isinstance(value, list) else value)
    for name, value in plan.items():
        check(fields[name], value)
    if not all(isinstance(each, bool) for each in record.get("pairs", ())):
        raise TypeError
    if "record" in record["parent"]:
        if not isinstance(record["parent"]["path"], str):
            raise TypeError
        _check_record(record["parent"]["record"])


def recorded(record: dict[str, Any], name: str) -> Any:
    """Return the value of a setting, also for a run that is older than the setting."""
    return record["settings"].get(name, _BEFORE.get(name))


def identity(parent: dict[str, Any]) -> dict[str, Any]:
    """Return what identifies a parent, without its path."""
    return {key: value for key, value in parent.items() if key != "path"}
