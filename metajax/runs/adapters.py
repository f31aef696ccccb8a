"""What the inner loop adapts, when it is kept apart from the network's other parameters.

The parameters are then `{"base", "adapters"}`, as those of `metajax.lora`. The adapters are factors
of a LoRA, vectors before the text, or a copy of some of the network's own parameters.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.algorithms import lora
from metajax.errors import InputError
from metajax.models import Transformer, init_prefix, separate_layers
from metajax.tree import drop, is_norm_or_bias, overlay
from metajax.types import Params, Reparametrized, Task

_QUERY_KEY_VALUE = {"query", "key", "value"}
_MLP = ("gate", "up", "down")


class Adapters(NamedTuple):
    """Adapters of one kind: three functions of parameters.

    Attributes:
        split: from the network's parameters to `{"base", "adapters"}`.
        attach: from `{"base", "adapters"}` to what the network reads in an inner step.
        merge: from `{"base", "adapters"}` to the network's parameters.
    """

    split: Callable[[Params], Params]
    attach: Callable[[Params], Params]
    merge: Callable[[Params], Params]

    def reparametrize(self, params: Params, task: Task) -> Reparametrized:
        """Split the parameters of a task, and merge them after its inner steps."""
        return self.split(params), task, self.merge


def in_head(path: str) -> bool:
    """Whether a parameter of the base belongs to the head, which adapts with the adapters."""
    return path.startswith("classifier")


def adapts(path: str) -> bool:
    """Whether the inner loop changes a parameter in `{"base", "adapters"}`."""
    return lora.is_adapter(path) or (lora.is_base(path) and in_head(path.removeprefix("base/")))


def is_frozen(path: str) -> bool:
    """Whether `--freeze` keeps a meta-parameter as it is."""
    path = path.removeprefix("params/")  # As the algorithms with learned rates have them.
    return lora.is_base(path) and not adapts(path)


def adapter_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings of a run that describe its adapters; None if the run is older."""
    names = ("lora", "lora_kernels", "prefix", "trainable", "freeze")
    return {name: settings.get(name) for name in names}


def adapter_kind(inner: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the settings that describe the adapters, to compare those of two runs."""
    kernels = frozenset(_kernel_names(inner.get("lora_kernels") or ()))
    return (*(inner.get(name) for name in ("lora", "prefix", "trainable")), kernels)


def make_adapters(model: Transformer, inner: Mapping[str, Any]) -> Adapters | None:
    """Make the adapters that the settings of an inner loop ask for.

    Their initial values are the same in all tasks and runs, because a run without `--freeze` does
    not save them.

    Args:
        model: the network.
        inner: resolved settings of the inner loop; see `FewShot.inner`.

    Returns:
        None if the network's own parameters adapt: all, or those of the upper blocks.
    """
    rng = jax.random.key(0)
    if inner["lora"] is not None:
        names = tuple(inner["lora_kernels"] or ())
        split = partial(_split_lora, inner["lora"], names, rng)
        return Adapters(split, lora.attach, lora.merge)
    if inner["prefix"] is not None:
        return Adapters(partial(_split_prefix, inner["prefix"], rng), _overlay, _overlay)
    if inner["trainable"] == "norms":
        return Adapters(_split_norms, _overlay, _overlay)
    if inner["trainable"] == "mlps":
        first = upper_mlps(model.config.blocks)
        return Adapters(partial(_split_mlps, first), _attach_mlps, _merge_mlps)
    return None


def upper_mlps(blocks: int) -> int:
    """Return the number of the first block of the last quarter of the blocks."""
    return blocks - -(-blocks // 4)


def lora_kernels(params: Params, names: tuple[str, ...]) -> set[str]:
    """Return the paths of the kernels that get an adapter.

    Args:
        params: the network's parameters.
        names: `--lora-kernels`.

    Raises:
        InputError: the blocks have no kernel of such a name.
    """
    known = {name for name, leaves in params["layers"].items() if "kernel" in leaves}
    for name in names:
        if name not in known and not (name == "qkv" and "query" in known):
            raise InputError(
                f"--lora-kernels {name}: the blocks of the model have no such kernel; choose from "
                f"{' '.join(sorted(known))}"
            )
    return {f"layers/{name}/kernel" for name in _kernel_names(names) & known}


def _kernel_names(names: Iterable[str]) -> set[str]:
    """Return the kernels that `--lora-kernels` names: qkv stands for query, key and value."""
    wanted = set(names) or {"qkv"}
    if "qkv" in wanted or wanted >= _QUERY_KEY_VALUE:
        wanted |= {"qkv", *_QUERY_KEY_VALUE}
    return wanted


def _split_lora(rank: int, names: tuple[str, ...], rng: jax.Array, params: Params) -> Params:
    target = lora_kernels(params, names).__contains__
    return lora.init(params, rank=rank, target=target, rng=rng)


def _split_prefix(count: int, rng: jax.Array, params: Params) -> Params:
    if "prefix" not in params:
        params = init_prefix(params, count, rng)
    base = {key: leaf for key, leaf in params.items() if key != "prefix"}
    return {"base": base, "adapters": {"prefix": params["prefix"]}}


def _split_norms(params: Params) -> Params:
    own = lambda path: is_norm_or_bias(path) and not in_head(path)  # noqa: E731
    return {"base": drop(params, own), "adapters": drop(params, lambda path: not own(path))}


def _overlay(params: Params) -> Params:
    return overlay(params["base"], params["adapters"])


def _split_mlps(first: int, params: Params) -> Params:
    own, rest = _select_mlps(params["layers"])
    lower = jax.tree.map(lambda leaf: leaf[:first], own)
    upper = jax.tree.map(lambda leaf: leaf[first:], own)
    return {"base": {**params, "layers": rest | lower}, "adapters": {"layers": upper}}


def _attach_mlps(params: Params) -> Params:
    """Separate the blocks, so that the kernels of the lower ones are not repeated for each task."""
    base = params["base"]
    own, rest = _select_mlps(base["layers"])
    mlps = _separate(own) + _separate(params["adapters"]["layers"])
    blocks = [block | mlp for block, mlp in zip(_separate(rest), mlps, strict=True)]
    return {**base, "layers": blocks}


def _merge_mlps(params: Params) -> Params:
    base, upper = params["base"], params["adapters"]["layers"]
    own, rest = _select_mlps(base["layers"])
    whole = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), own, upper)
    return {**base, "layers": rest | whole}


def _select_mlps(layers: Params) -> tuple[Params, Params]:
    own = {name: leaves for name, leaves in layers.items() if name in _MLP}
    return own, {name: leaves for name, leaves in layers.items() if name not in _MLP}


def _separate(layers: Params) -> list[Params]:
    return separate_layers()({"layers": layers}, Task(None, None))[0]["layers"]
