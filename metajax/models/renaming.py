"""Translate names of tensors from a family's to BERT's and back."""

import re
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from metajax.errors import InputError
from metajax.models.families import FAMILIES
from metajax.models.family import Family
from metajax.models.stored import Stored

Tensor = TypeVar("Tensor", np.ndarray, Stored)
_TABLE = "embeddings.word_embeddings"  # Every model has one.
_FIRST_NORM = "encoder.layer.0.attention.output.LayerNorm"


def unwrapped(tensors: Mapping[str, Stored], model_type: str, where: str) -> Mapping[str, Stored]:
    """The tensors without the prefix of a wrapper such as DistributedDataParallel in their names.

    Args:
        tensors: by name.
        model_type: the family.
        where: the directory, for error messages.

    Raises:
        InputError: some names have the prefix, and others not.
    """
    family = FAMILIES[model_type]
    table = family.tensors.get(_TABLE, _TABLE) + ".weight"
    before = [name.removesuffix(table) for name in tensors if f".{name}".endswith(f".{table}")]
    if not before or {"", family.prefix} & {*before}:
        return tensors
    prefix = before[0].removesuffix(family.prefix)
    others = [name for name in tensors if not name.startswith(prefix)]
    if others:
        raise InputError(
            f"{where}: the names of the model's tensors begin with {prefix!r}, but {others[0]} is "
            "another model's; save those of the model alone, each as "
            f"name.removeprefix({prefix!r})"
        )
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def to_bert(tensors: Mapping[str, Stored], model_type: str, offset: int) -> dict[str, Stored]:
    """A family's tensors by BERT's names, with or without the family's prefix.

    Args:
        tensors: by name.
        model_type: the family.
        offset: rows of the position table before that of the first token; they are left out.
    """
    family = FAMILIES[model_type]
    names: dict[str, list[str]] = {}
    for ours, theirs in {**family.tensors, **family.classifier}.items():
        names.setdefault(theirs, []).append(ours)
    names |= {theirs: [ours] for theirs, ours in family.aliases.items()}
    renamed: dict[str, Stored] = {}
    # A classifier's replacement of the pooler comes after the pooler and overwrites it. If it is
    # the masked-LM head's own layer, a pooler is in a file of its own, and comes last.
    first = not {*family.tensors.values()}.isdisjoint(family.classifier.values())
    last = lambda name: (_stem(name) in family.classifier.values()) != first  # noqa: E731
    for name in sorted(tensors, key=last):
        several = _translate(name.removeprefix(family.prefix), names)
        renamed |= dict(zip(several, _split(tensors[name], several, family)))
    if "embeddings.position_embeddings.weight" in renamed:
        table = renamed["embeddings.position_embeddings.weight"]
        renamed["embeddings.position_embeddings.weight"] = table.map(lambda rows: rows[offset:])
    if "classifier.weight" in renamed and not family.classifier_bias:
        shape = renamed["classifier.weight"].shape[:1]
        renamed["classifier.bias"] = Stored.of(np.zeros(shape, np.float32))
    if not family.first_norm:
        for kind in {"weight", "bias"} & {_kind(name) for name in renamed if "final_norm." in name}:
            filled = np.full(renamed[f"final_norm.{kind}"].shape, kind == "weight", np.float32)
            renamed[f"{_FIRST_NORM}.{kind}"] = Stored.of(filled)
    return renamed


def from_bert(
    tensors: Mapping[str, np.ndarray], model_type: str, offset: int, head: str
) -> dict[str, np.ndarray]:
    """The inverse of `to_bert`, for a class with a head; the left-out rows are zero.

    Args:
        tensors: by BERT's names, without a prefix.
        model_type: the family.
        offset: see `to_bert`.
        head: "encoder", "masked_lm", "causal_lm" or "classification".
    """
    family = FAMILIES[model_type]
    parts_of: dict[str, list[np.ndarray]] = {}
    ours = {}
    for name, value in tensors.items():
        if name == "classifier.bias" and not family.classifier_bias:
            continue
        if _stem(name) == _FIRST_NORM and not family.first_norm:
            continue
        if offset and name == "embeddings.position_embeddings.weight":
            value = np.concatenate([np.zeros_like(value, shape=(offset, value.shape[1])), value])
        theirs = family_name(name, model_type, head)
        # Outside the layers two names hold one tensor twice: the bias of an untied decoder.
        before = parts_of.get(theirs, []) if name.startswith("encoder.layer.") else []
        parts_of[theirs], ours[theirs] = [*before, value], name
    whole = {
        name: np.concatenate(parts) if parts[1:] else parts[0] for name, parts in parts_of.items()
    }
    # safetensors writes the memory of an array and ignores its strides.
    return {
        name: np.ascontiguousarray(_turned(value, ours[name], family))
        for name, value in whole.items()
    }


def family_name(name: str, model_type: str, head: str) -> str:
    """Return the name of a tensor in the family's class with a head.

    Args:
        name: BERT's name, without a prefix; `*` may stand for the number of the layer.
        model_type: the family.
        head: see `from_bert`.
    """
    family = FAMILIES[model_type]
    of_head = family.classifier if head == "classification" else {}
    names = {ours: [theirs] for ours, theirs in {**family.tensors, **of_head}.items()}
    outside = name.startswith(("cls.", "classifier.")) or _stem(name) in of_head
    prefix = "" if outside or head == "encoder" else family.prefix
    return prefix + _translate(name, names)[0]


def _split(tensor: Stored, ours: list[str], family: Family) -> list[Stored]:
    """The tensors of BERT's names `ours` from one that joins them, or that is each of them."""
    if not ours[0].startswith("encoder.layer."):
        return [tensor] * len(ours)
    return _turned(tensor, ours[0], family).split(len(ours))


def _turned(value: Tensor, name: str, family: Family) -> Tensor:
    """A tensor, by BERT's name, with its axes turned from BERT's order to the family's or back."""
    kernel = name.startswith("encoder.layer.") and value.ndim == 2
    return value.T if family.transposed and kernel else value


def _translate(name: str, names: Mapping[str, list[str]]) -> list[str]:
    """The names of a tensor in the other naming scheme; unknown names stay as they are."""
    number = re.search(r"\.(\d+)\.", name)
    general = name if number is None else f"{name[: number.start()]}.*.{name[number.end() :]}"
    stem, _, kind = general.rpartition(".")
    translated = names.get(general) or [f"{each}.{kind}" for each in names.get(stem, ())]
    if not translated:
        return [name]
    return [each if number is None else each.replace("*", number[1]) for each in translated]


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _kind(name: str) -> str:
    return name.rpartition(".")[2]
