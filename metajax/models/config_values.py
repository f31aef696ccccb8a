"""Read and check the values of a config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from metajax.errors import InputError
from metajax.models.family import Family
from metajax.models.rotary import read_rope

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")
# These may be null in the file.
_NULLABLE = (
    "classifier_dropout",
    "num_key_value_heads",
    "head_dim",
    "sliding_window",
    "rope_scaling",
)
# A size cannot be guessed: these have to be in the file.
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)


def completed(values: dict[str, Any], family: Family, where: str) -> dict[str, Any]:
    """Return the values of a file, with null values that follow from others filled in.

    Args:
        values: the content of config.json, with the defaults of the family.
        family: the family.
        where: the file, for error messages.

    Raises:
        InputError: the layers or rotary positions are not supported.
    """
    for key, (times, other) in family.derived.items():
        if values.get(key) is None:
            value = values.get(other)
            value = value[0] if isinstance(value, list) and value else value
            values[key] = times * value if isinstance(value, int) else value
    if not family.rotary:
        return values
    kinds = values.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise InputError(
            f"{where}: layer_types is {kinds!r}, but only full_attention is supported; give a "
            "model whose layers all have it"
        )
    ends = values["eos_token_id"]
    ends = tuple(ends) if isinstance(ends, list) and ends else ends
    return values | read_rope(values, where) | {"eos_token_id": ends}


def read_value(
    values: Mapping[str, Any], field: dataclasses.Field[Any], key: str, where: str
) -> Any:
    """Return a checked value or its default.

    Args:
        values: the content of config.json.
        field: the field of `TransformerConfig`.
        key: its name in the file.
        where: the file, for error messages.

    Raises:
        InputError: the value is missing or not valid.
    """
    name = field.name
    if name in _REQUIRED and key not in values:
        raise InputError(f"{where}: {key} is missing; add it, or give a complete config.json")
    value = values.get(key, field.default)
    if name == "hidden_act":
        problem = None if value in ACTIVATIONS else "one of " + ", ".join(ACTIVATIONS)
    elif name in ("tie_word_embeddings", "attention_bias"):
        problem = None if isinstance(value, bool) else "true or false"
    elif value is None and (name in _NULLABLE or name.endswith("_token_id")):
        return field.default  # these may be null in the file
    elif name == "rope_scaling":
        return value  # `read_rope` has checked it.
    elif name == "rope_theta":
        problem = None if _is_number(value) and value > 0 else "a number above 0"
    elif isinstance(value, tuple):
        problem = next(filter(None, (_no_count(each, 0) for each in value)), None)
    elif name.endswith(("dropout_prob", "dropout")):
        problem = None if _is_number(value) and 0 <= value < 1 else "a number from 0 up to 1"
    elif name in ("layer_norm_eps", "initializer_range"):
        problem = None if _is_number(value) and 0 < value < 1 else "a number between 0 and 1"
    else:
        problem = _no_count(value, 0 if name.endswith("_token_id") else 1)
    if problem:
        raise InputError(f"{where}: {key} is {value!r}; it has to be {problem}")
    return value


def _no_count(value: Any, least: int) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return None if whole and value >= least else f"a whole number of at least {least}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
