"""The record of a run, `run.json`: what it is, and what it came from."""

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
from metajax.config.groups import InnerSettings
from metajax.errors import InputError
from metajax.reading import parse_json

SETTINGS: dict[str, type[Settings]] = {  # Of the stages that leave a run.
    "pretrain": all_settings.PretrainSettings,
    "finetune": all_settings.FinetuneSettings,
    "metatrain": all_settings.MetatrainSettings,
    "adapt": all_settings.AdaptSettings,
}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")
# Settings that those who read a record use; the rest may be as an earlier version had them.
_NEEDED = {"seed", "max_length", "tasks"}
# What a record stands for that lacks a setting: it was written before there was one.
_BEFORE = {"keep_duplicates": True}
_READ = {"parts", "algorithm", *(field.name for field in dataclasses.fields(InnerSettings))}


def make_record(
    stage: str,
    settings: Settings,
    *,
    data: dict[str, str],
    parent: dict[str, Any],
    model: Any,
    pairs: Sequence[bool] = (),
) -> dict[str, Any]:
    """The JSON object that says what a run is.

    Args:
        stage: the subcommand's name.
        settings: all of them.
        data: for each input file, what it is to the run and its sha256.
        parent: the record of the weights it starts from.
        model: the network's head, as JSON.
        pairs: of each task that the heads are of, whether its texts come in pairs.
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
    """A workdir's record; None where there is no run.

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
    """A record that was read, if it is one.

    Raises:
        InputError: it, or one it came from, is none; the message names `where`.
    """
    try:
        _check_record(record)
    except (InputError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"{where}: is not a run's record: name another run, or restore it from a backup"
        ) from None
    return record


def _check_record(record: Any) -> None:
    """Raises InputError, KeyError or TypeError where it, or one it came from, is none."""
    parts = [record[name] for name in ("settings", "data", "parent", "model", "versions")]
    if record["stage"] not in SETTINGS or not all(isinstance(part, dict) for part in parts):
        raise TypeError
    settings = record["settings"]
    for setting in dataclasses.fields(SETTINGS[record["stage"]]):
        if setting.name in _NEEDED or (setting.name in _READ and setting.name in settings):
            value = settings[setting.name]
            check(setting, tuple(value) if isinstance(value, list) else value)
    if not all(isinstance(each, bool) for each in record.get("pairs", ())):
        raise TypeError
    if "record" in record["parent"]:
        if not isinstance(record["parent"]["path"], str):
            raise TypeError
        _check_record(record["parent"]["record"])


def recorded(record: dict[str, Any], name: str) -> Any:
    """The value of a setting that a run had, whether or not there was such a setting then."""
    return record["settings"].get(name, _BEFORE.get(name))


def identity(parent: dict[str, Any]) -> dict[str, Any]:
    """What a parent is, wherever it lies."""
    return {key: value for key, value in parent.items() if key != "path"}
