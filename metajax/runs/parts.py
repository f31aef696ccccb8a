"""Split the work of a step over devices."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import TypeVar

import jax
from jax.sharding import Mesh

from metajax.config.settings import FinetuneSettings, PretrainSettings
from metajax.errors import InputError
from metajax.runs.paths import to_path
from metajax.runs.record import read_record
from metajax.training.parallel import all_devices, task_mesh

_log = logging.getLogger("metajax")
_Settings = TypeVar("_Settings", PretrainSettings, FinetuneSettings)


def with_parts(settings: _Settings) -> tuple[_Settings, int]:
    """Set the number of parts of a batch: as given, or as in the run so far, or one per device.

    Raises:
        InputError: the devices cannot share the parts evenly, or the parts do not divide the batch.
    """
    devices, parts = len(all_devices()), settings.parts
    known = (read_record(to_path(settings.workdir)) or {}).get("settings", {}).get("parts")
    if parts is None and known is not None:
        parts = known if known % devices == 0 else None
        if parts is None:
            _log.warning(
                "the batches had %d parts, which %d devices cannot share evenly; from now on they "
                "have %d parts, with other dropout masks",
                *(known, devices, devices),
            )
    parts = parts or devices
    check_split("--parts" if settings.parts else "--batch-size", settings.parts or parts)
    if settings.batch_size % parts:
        raise InputError(
            f"--batch-size {settings.batch_size}: is not a multiple of {parts}, the number of "
            f"{'--parts' if settings.parts else 'devices'}; {_nearest(settings.batch_size, parts)}"
        )
    return dataclasses.replace(settings, parts=parts), parts


def make_mesh(shards: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh of a run, by default of all devices.

    Raises:
        InputError: the devices cannot be split into groups of `shards`.
    """
    try:
        return task_mesh(shards, devices)
    except ValueError as error:
        raise InputError(f"--shards {shards}: {error}") from error


def _nearest(size: int, parts: int) -> str:
    below = size - size % parts
    return f"use {below} or {below + parts}" if below else f"use {parts}"


def check_split(
    name: str, size: int, chunk_size: int | None = None, devices: int | None = None
) -> None:
    """Check that all devices, by default those of this run, get the same amount of work.

    Raises:
        InputError: they do not.
    """
    devices = devices or len(all_devices())
    if size % devices:
        raise InputError(
            f"{name} {size}: is not a multiple of {devices}, the number of devices; "
            f"{_nearest(size, devices)}"
        )
    if chunk_size is not None and size // devices % chunk_size:
        raise InputError(
            f"--chunk-size {chunk_size}: does not divide the {size // devices} episodes per "
            "device; give a divisor"
        )
