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
    if family.block == "modernbert":
        return values | _alternation(values, where)
    if family.block == "deberta":
        return values | _disentangled(values, where)
    if family.block != "llama":
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


def _disentangled(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The terms of DeBERTa's attention as a list in one order."""
    for key in ("embedding_size", "pooler_hidden_size"):
        if values.get(key, values.get("hidden_size")) != values.get("hidden_size"):
            raise InputError(
                f"{where}: {key} is {values[key]!r}, but only hidden_size is supported; give a "
                "model with this value"
            )
    terms = values["pos_att_type"]
    terms = terms.lower().split("|") if isinstance(terms, str) else terms
    if isinstance(terms, list) and all(isinstance(term, str) for term in terms):
        terms = sorted(term.strip() for term in terms)
    return {"pos_att_type": terms}


def _alternation(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of ModernBERT's global and local layers in the format before transformers 5."""
    kinds, every = values.get("layer_types"), values.get("global_attn_every_n_layers", 3)
    if kinds:
        every, expected = _period(kinds) if isinstance(kinds, list) else (0, None)
        if kinds != expected:
            raise InputError(
                f"{where}: layer_types is {kinds!r}, but only full_attention in every n-th layer, "
                "from the first one on, and sliding_attention elsewhere are supported; give a "
                "model with such layers"
            )
    given = values.get("rope_parameters") or {}
    found: dict[str, Any] = {"global_attn_every_n_layers": every}
    for kind, key, usual in (
        ("full_attention", "global_rope_theta", 160000.0),
        ("sliding_attention", "local_rope_theta", 10000.0),
    ):
        own = given.get(kind) if isinstance(given, Mapping) else given
        rope = {"rope_parameters": own, "rope_theta": values.get(key, usual)}
        read = read_rope({"rope_scaling": values.get("rope_scaling"), **rope}, where)
        if read["rope_scaling"] is not None:
            raise InputError(
                f"{where}: the rotary positions of a modernbert are scaled, which is not "
                "supported; give a model of type default"
            )
        found[key] = read["rope_theta"]
    return found


def _period(kinds: list[Any]) -> tuple[int, list[str]]:
    """Return every how many layers attention is global, and the kinds of layers by that number."""
    whole = [number for number, kind in enumerate(kinds) if kind == "full_attention"]
    every = whole[1] if whole[1:] else len(kinds)
    local = [bool(every and number % every) for number in range(len(kinds))]
    return every, ["sliding_attention" if each else "full_attention" for each in local]


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
    elif isinstance(field.default, bool):
        problem = None if isinstance(value, bool) else "true or false"
    elif value is None and (name in _NULLABLE or name.endswith("_token_id")):
        return field.default  # these may be null in the file
    elif name == "rope_scaling":
        return value  # `read_rope` has checked it.
    elif name == "classifier_pooling":
        problem = None if value in ("cls", "mean") else "cls or mean"
    elif name in ("rope_theta", "local_rope_theta"):
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
