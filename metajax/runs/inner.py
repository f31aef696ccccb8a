"""Resolve the settings of the inner loop: those given, those of meta-training, and defaults."""

import dataclasses
import logging
from typing import Any

from metajax.algorithms import ALGORITHMS
from metajax.config.fields import flag_and_value
from metajax.config.inner import InnerSettings, check_taken
from metajax.errors import InputError
from metajax.models import TransformerConfig
from metajax.models.prefix import prefix_length
from metajax.runs.source import Source

_log = logging.getLogger("metajax")

DEFAULTS: dict[str, Any] = {
    "inner_steps": 3,
    "inner_lr": 0.1,
    "head": "prototypes",
    "layers": None,
    "lora": None,
    "lora_kernels": (),
    "prefix": None,
    "trainable": None,
    "freeze": None,
    "inner_optimizer": None,
    "inner_clip_norm": None,
}
_ADAM_RATE = 1e-3
WHAT = ("layers", "lora", "prefix", "trainable")  # Only one of them chooses what adapts.


def resolve(inner: InnerSettings, source: Source, *, documents: bool = False) -> dict[str, Any]:
    """Resolve and check the settings of the inner loop.

    Command-line settings override those of the run that meta-trained the weights, and these
    override the defaults.

    Args:
        inner: settings that are given.
        source: the weights.
        documents: whether the tasks are documents.

    Returns:
        The settings of `InnerSettings` by name, and `algorithm`. Those that are not given and those
        that the algorithm does not take have their defaults.

    Raises:
        InputError: settings contradict one another, or the algorithm or the model.
    """
    trained = {**source.adapter_settings, **source.meta_settings}
    given = {
        name: value
        for name, value in dataclasses.asdict(inner).items()
        if value is not None and value != ()
    }
    algorithm = given.get("algorithm") or trained.get("algorithm") or "maml"
    if algorithm == "protonet" and given.get("inner_steps"):
        algorithm = "proto-maml"  # It takes inner steps from the same prototypes.
        _log.warning("--inner-steps: takes steps from the prototypes of protonet, as proto-maml")
    check_taken(algorithm, given, of_model=True)
    _check_tasks(algorithm, documents)
    trained = _applicable(trained, given, algorithm)
    defaults = DEFAULTS
    if (given.get("inner_optimizer") or trained.get("inner_optimizer")) == "adam":
        defaults = defaults | {"inner_lr": _ADAM_RATE}
    resolved = {
        name: _first(given.get(name), trained.get(name), default)
        if name in ALGORITHMS[algorithm].settings
        else _fixed(algorithm, name)
        for name, default in defaults.items()
    }
    if documents:
        resolved |= {"head": None, "layers": None}
    resolved["lora_kernels"] = tuple(resolved["lora_kernels"])
    for name, default in {"trainable": "all", "inner_optimizer": "sgd", "freeze": False}.items():
        resolved[name] = None if resolved[name] == default else resolved[name]
    _check_what(resolved, source.model.config, prefix_length(source.params))
    return resolved | {"algorithm": algorithm}


def _applicable(trained: dict[str, Any], given: dict[str, Any], algorithm: str) -> dict[str, Any]:
    """Leave out the settings of meta-training that do not go with the algorithm or those given."""
    dropped: set[str] = set()
    if (trained.get("inner_steps") or 0) < ALGORITHMS[algorithm].least_steps:
        dropped.add("inner_steps")
    if trained.get("head") not in ALGORITHMS[algorithm].heads:
        dropped.add("head")
    # One of them overrides all.
    if any(given[name] != trained.get(name) for name in WHAT if name in given):
        dropped |= {*WHAT, "lora_kernels", "freeze"}
    optimizer = given.get("inner_optimizer")
    if optimizer is not None and optimizer != (trained.get("inner_optimizer") or "sgd"):
        dropped |= {"inner_optimizer", "inner_lr", "inner_clip_norm"}
    return {name: value for name, value in trained.items() if name not in dropped}


def _check_tasks(algorithm: str, documents: bool) -> None:
    """Check that an algorithm takes documents, or labelled tasks."""
    entry = ALGORITHMS[algorithm]
    if documents and not entry.documents:
        takers = [name for name, other in ALGORITHMS.items() if other.documents]
        raise InputError(
            f"{algorithm}: takes labelled tasks and no documents; use --algorithm "
            f"{' or '.join(takers)}"
        )
    if not documents and entry.tests_on_stream:
        raise InputError(
            f"{algorithm}: takes documents and no labelled tasks; give --tasks documents:PATH, or "
            "another algorithm"
        )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _fixed(algorithm: str, name: str) -> Any:
    """Return the value of a setting that an algorithm does not take."""
    heads = ALGORITHMS[algorithm].heads
    return (DEFAULTS | {"inner_steps": 0, "head": heads[0] if heads else None})[name]


def _check_what(inner: dict[str, Any], config: TransformerConfig, vectors: int) -> None:
    """Check the settings that choose what adapts; the model has some vectors before the text."""
    blocks, positions = config.blocks, config.max_position_embeddings
    given = [name for name in WHAT if inner[name] is not None]
    if len(given) > 1:
        one, other = (flag_and_value(name, inner[name]) for name in given[:2])
        raise InputError(f"{one}: with {other} it is not clear what adapts; remove one of them")
    layers = inner["layers"]
    if layers and config.repeats > 1:
        raise InputError(
            f"--layers {layers}: all blocks of this model share their parameters; remove --layers "
            "to adapt them all"
        )
    if layers is not None and layers >= blocks:
        raise InputError(
            f"--layers {layers}: the model has {blocks} blocks; give a smaller number, or remove "
            "--layers to adapt all blocks"
        )
    if inner["prefix"] is not None and inner["prefix"] > positions - 3:
        raise InputError(
            f"--prefix {inner['prefix']}: leaves no place for text, because the model has "
            f"{positions} positions; give fewer vectors"
        )
    if vectors and inner["prefix"] not in (None, vectors):
        raise InputError(
            f"--prefix {inner['prefix']}: the model has {vectors} vectors before the text; give "
            f"--prefix {vectors}"
        )
    if inner["lora_kernels"] and inner["lora"] is None:
        raise InputError(
            f"{flag_and_value('lora_kernels', inner['lora_kernels'])}: there are no adapters; add "
            "--lora RANK"
        )
    if inner["freeze"] and given in ([], ["layers"]):
        raise InputError(
            "--freeze: chooses no parameters to meta-train; add --lora, --prefix or --trainable"
        )
