"""Rotary positions (Su et al. 2021, arXiv:2104.09864), and their scalings for longer texts.

Sizes in array names: B examples, L tokens, D head size.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.errors import InputError
from metajax.reading import is_number

_NUMBERS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Slower rotations for texts that are longer than in pretraining; names are Hugging Face's.

    Attributes:
        rope_type: "linear" (all frequencies are divided by `factor`) or "llama3" (only low ones).
        factor: how much slower.
        low_freq_factor: of llama3: lower frequencies are divided by `factor`. This frequency and
            the next turn so often within `original_max_position_embeddings`.
        high_freq_factor: of llama3: higher frequencies do not change.
        original_max_position_embeddings: of llama3: the positions in pretraining.
    """

    rope_type: str
    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None


def read_rope(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `rope_theta` and `rope_scaling` of a config.json.

    Args:
        values: the content of config.json. Since version 5, transformers writes both into
            `rope_parameters`.
        where: the file, for error messages.

    Raises:
        InputError: the scaling is not supported, or not valid.
    """
    given = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: rope_scaling is {given!r}; it has to be an object or null")
    theta = given.get("rope_theta", values.get("rope_theta", 10000.0))
    kind = given.get("rope_type", given.get("type", "default"))
    if not isinstance(kind, str) or kind not in _NUMBERS:
        raise InputError(
            f"{where}: rotary positions of type {kind!r} are not supported; give a model of type "
            + ", ".join(_NUMBERS)
        )
    part = given.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if part not in (None, 1):
        raise InputError(
            f"{where}: partial_rotary_factor is {part!r}, but only 1.0 is supported; give a model "
            "with this value"
        )
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    most = {"original_max_position_embeddings": values.get("max_position_embeddings")}
    found: dict[str, Any] = {name: {**most, **given}.get(name) for name in _NUMBERS[kind]}
    for name, value in found.items():
        if not is_number(value) or value <= 0:
            raise InputError(f"{where}: {name} is {value!r}; it has to be a number above 0")
    if kind == "llama3" and found["low_freq_factor"] >= found["high_freq_factor"]:
        raise InputError(
            f"{where}: low_freq_factor is {found['low_freq_factor']}; it has to be below "
            f"high_freq_factor {found['high_freq_factor']}"
        )
    return {"rope_theta": theta, "rope_scaling": RopeScaling(kind, **found)}


def frequencies(size: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Return the angles per position of the D / 2 pairs of features, in float64.

    Args:
        size: D.
        theta: the base: the slowest pair turns about `theta` times slower than the fastest one.
        scaling: a change of the frequencies.
    """
    plain = theta ** (-np.arange(0, size, 2) / size)
    if scaling is None:
        return plain
    slow = plain / scaling.factor
    if scaling.rope_type == "linear":
        return slow
    low, high = scaling.low_freq_factor or 0, scaling.high_freq_factor or 0
    turns = plain * (scaling.original_max_position_embeddings or 0) / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - share) * slow + share * plain


def rotation(
    positions_BxL: jax.Array, frequencies: np.ndarray, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Return the cosines and sines of all angles [B, 1, L, D / 2], for any number of heads."""
    angles = positions_BxL[:, None, :, None].astype(dtype) * jnp.asarray(frequencies, dtype)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BxNxLxD: jax.Array, cosines: jax.Array, sines: jax.Array) -> jax.Array:
    """Rotate feature i and feature i + D / 2 of each head, as Hugging Face orders them."""
    first, second = jnp.split(x_BxNxLxD.astype(cosines.dtype), 2, axis=-1)
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return jnp.concatenate(turned, axis=-1).astype(x_BxNxLxD.dtype)
