"""Low-rank adapters in the format of PEFT (https://github.com/huggingface/peft).

PEFT adds (lora_alpha / r) B A x to the output of a module, with A `[r, in]` and B `[out, r]`.
`metajax.lora` adds (x down) up, with down `[in, r]` and up `[r, out]`.
"""

import math
import os
import re
from pathlib import Path
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from metajax.dtypes import at_least_float32
from metajax.errors import InputError
from metajax.models import convert, files
from metajax.models.contracts import Params
from metajax.models.model import Transformer
from metajax.models.renaming import family_name
from metajax.models.save import is_plain, replace_files, to_json, to_safetensors
from metajax.models.stored import Stored, read_safetensors
from metajax.reading import expand_home, is_number
from metajax.tree import path_name, select

_CONFIG, _WEIGHTS = files.ADAPTER_CONFIG, files.ADAPTER_WEIGHTS
_PREFIX = "base_model.model."
# PEFT's class for SEQ_CLS expects a classifier among the adapters, which is in the base here.
_TASK_TYPE = {"encoder": "FEATURE_EXTRACTION", "causal_lm": "CAUSAL_LM"}
# Settings of a LoRA that computes something else, or that adapts more than dense layers.
_UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
)
# Initializations that leave the base as it is; others, such as PiSSA, also change the base.
_PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal")

# Factors of a dense layer in all blocks: down `[N, in, r]` and up `[N, r, out]`.
_Factors = tuple[np.ndarray, np.ndarray]


def save_adapters(directory: str | os.PathLike[str], model: Transformer, params: Params) -> None:
    """Write low-rank adapters in PEFT's format, for the model that `save_pretrained` writes.

    The base is not written. Adapters of different ranks get the largest rank, with zeros.

    Args:
        directory: created if it does not exist. Files with the same names are replaced.
        model: the model of the base. Its `source` becomes `base_model_name_or_path`.
        params: `{"base", "adapters"}`, from `metajax.lora.init`. The factors are written exactly.

    Raises:
        InputError: something other than the kernels of the blocks has an adapter.
        OSError: a file cannot be written.

    Examples:
        >>> import os, tempfile
        >>> import jax
        >>> from metajax import lora
        >>> from metajax.models import Transformer, TransformerConfig, save_adapters
        >>> model = Transformer(TransformerConfig(9, hidden_size=12, num_hidden_layers=1))
        >>> params = lora.init(
        ...     model.init(jax.random.key(0)), rank=2, rng=jax.random.key(1),
        ...     target=lambda path: path == "layers/qkv/kernel")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_adapters(folder, model, params)
        ...     sorted(os.listdir(folder))
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    base, adapters = params["base"], params["adapters"]
    head = "encoder" if _head_is_aside(model, base) else model.head
    modules = _modules(model, base, head)
    adapted = {
        name: factors
        for name in modules
        if (factors := adapters["layers"].get(name, {}).get("kernel")) is not None
    }
    if len(jax.tree.leaves(adapters)) != 2 * len(adapted) or not adapted:
        raise InputError(
            f"{directory}: PEFT's format is written for adapters of the blocks' kernels only; give "
            "lora.init a target such as lambda path: path == 'layers/qkv/kernel'"
        )
    rank = max(factors["down"].shape[-1] for factors in adapted.values())
    tensors: dict[str, np.ndarray] = {}
    for name, factors in adapted.items():
        down, up = (np.asarray(factors[key]) for key in ("down", "up"))
        added = rank - down.shape[-1]
        down = np.pad(down, ((0, 0), (0, 0), (0, added)))
        up = np.pad(up, ((0, 0), (0, added), (0, 0)))
        for module, part in zip(modules[name], np.split(up, len(modules[name]), axis=-1)):
            for number, stem in enumerate(_numbered(model, _PREFIX + module)):
                tensors[f"{stem}.lora_A.weight"] = np.ascontiguousarray(down[number].T)
                tensors[f"{stem}.lora_B.weight"] = np.ascontiguousarray(part[number].T)
    config = {
        "peft_type": "LORA",
        "task_type": _TASK_TYPE.get(head),
        "base_model_name_or_path": model.source,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": _targets(model, head, [stem for n in adapted for stem in modules[n]]),
        "fan_in_fan_out": model.config.family.transposed,
        "bias": "none",
        "modules_to_save": None,
    }
    target = Path(expand_home(os.fspath(directory)))
    target.mkdir(parents=True, exist_ok=True)
    replace_files(target, {_WEIGHTS: to_safetensors(tensors), _CONFIG: to_json(config)})


def load_adapters(directory: str | os.PathLike[str], model: Transformer, params: Params) -> Params:
    """Read low-rank adapters in PEFT's format.

    The scaling of PEFT (lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`) becomes part of
    the factors `up`. Adapters of a BERT's query, key and value become one adapter of the joint
    kernel: of rank r if they have the same A, as those of `save_adapters`, or else of the sum of
    their ranks.

    Args:
        directory: has adapter_config.json and adapter_model.safetensors.
        model: the model of the base, with any head.
        params: its parameters; the adapters get the dtype of its kernels.

    Returns:
        `{"base", "adapters"}`, as `metajax.lora.init` returns them. The base is `params`.

    Raises:
        InputError: the files cannot be read, the adapters are not plain LoRA, or they do not fit
            the model.

    Examples:
        >>> import tempfile
        >>> import jax
        >>> from metajax import lora
        >>> from metajax.models import Transformer, TransformerConfig, load_adapters, save_adapters
        >>> model = Transformer(TransformerConfig(9, hidden_size=12, num_hidden_layers=1))
        >>> base = model.init(jax.random.key(0))
        >>> target = lambda path: path == "layers/qkv/kernel"
        >>> params = lora.init(base, rank=2, target=target, rng=jax.random.key(1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_adapters(folder, model, params)
        ...     again = load_adapters(folder, model, base)
        >>> again["adapters"]["layers"]["qkv"]["kernel"]["down"].shape
        (1, 12, 2)
    """
    source = Path(expand_home(os.fspath(directory)))
    rank, scaling = _read_config(source / _CONFIG)
    weights = source / _WEIGHTS
    if not weights.is_file():
        raise InputError(f"{weights}: missing; give a directory that PEFT's save_pretrained wrote")
    prefix = re.escape(_PREFIX) + f"(?:{re.escape(model.config.family.prefix)})?"
    left = {
        re.sub(f"^{prefix}", "", name): value for name, value in read_safetensors(weights).items()
    }
    found: dict[str, Params] = {}
    for name, modules in _modules(model, params, "encoder").items():
        kernel = params["layers"][name]["kernel"]
        shape = kernel.shape[1], kernel.shape[2] // len(modules)
        numbered = [_numbered(model, module) for module in modules]
        parts = [_take(left, each, shape, rank, weights) for each in numbered]
        if any(part is not None for part in parts):
            down, up = _join(parts)
            up = np.asarray(up, at_least_float32(kernel.dtype)) * scaling
            found[f"layers/{name}/kernel"] = {
                "down": jnp.asarray(down, kernel.dtype),
                "up": jnp.asarray(up, kernel.dtype),
            }
    if left or not found:
        name = next(iter(left), "no tensor")
        raise InputError(
            f"{weights}: {name} is not an adapter of a dense layer in the "
            f"{model.config.blocks} blocks of this model; give adapters of the same base"
        )
    kernels = select(params, lambda path: path in found)[0]
    adapters = jax.tree_util.tree_map_with_path(lambda path, _: found[path_name(path)], kernels)
    return {"base": params, "adapters": adapters}


def _head_is_aside(model: Transformer, params: Params) -> bool:
    """Whether `save_pretrained` writes the encoder's class, and a classifier next to it."""
    return model.head == "classification" and not is_plain(model, params)


def _modules(model: Transformer, params: Params, head: str) -> dict[str, list[str]]:
    """Return the modules in transformers of each of the blocks' kernels; `*` is the layer's number.

    Args:
        model: the model.
        params: its parameters.
        head: of the class in transformers.
    """
    modules = {}
    for name, leaves in params["layers"].items():
        if "kernel" in leaves:
            ours = convert.tensor_names(("layers", name, "kernel"))
            theirs = [family_name(each, model.config.model_type, head) for each in ours]
            # GPT-2 has one module for query, key and value too.
            modules[name] = [each.removesuffix(".weight") for each in dict.fromkeys(theirs)]
    return modules


def _targets(model: Transformer, head: str, modules: list[str]) -> list[str]:
    """Return `target_modules`: the shortest endings of names that no other module has."""
    template = jax.eval_shape(model.init, jax.random.key(0))
    adapted = {name for module in modules for name in _numbered(model, module)}
    stems = {
        family_name(name, model.config.model_type, head).rpartition(".")[0]
        for names in convert.tensor_shapes(template).values()
        for name in names
    }
    others = stems - adapted

    def ending(name: str) -> str:
        words = name.split(".")
        endings = (".".join(words[-count:]) for count in range(1, len(words) + 1))
        return next(
            each for each in endings if not any(f".{o}".endswith(f".{each}") for o in others)
        )

    return list(dict.fromkeys(map(ending, sorted(adapted))))


def _numbered(model: Transformer, module: str) -> list[str]:
    return [module.replace("*", str(number)) for number in range(model.config.blocks)]


def _read_config(path: Path) -> tuple[int, float]:
    """Return r and the factor on B A x of a plain LoRA."""
    values = files.read_json(path)

    def refuse(name: str, how: str) -> NoReturn:
        raise InputError(f"{path}: {name} is {values.get(name)!r}; {how}")

    if values.get("peft_type") != "LORA":
        refuse("peft_type", "give adapters of type LORA")
    for name in _UNSUPPORTED:
        if values.get(name):
            refuse(name, "give a LoRA of dense layers without it")
    if values.get("bias", "none") != "none":
        refuse("bias", "give a LoRA with bias none")
    if values.get("init_lora_weights", True) not in _PLAIN_INITS:
        refuse("init_lora_weights", "convert it in PEFT to a LoRA of the original base")
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        refuse("r", "it has to be an integer of at least 1")
    if not isinstance(alpha, int | float) or not is_number(alpha):
        refuse("lora_alpha", "it has to be a number")
    return rank, alpha / (math.sqrt(rank) if values.get("use_rslora") else rank)


def _take(
    left: dict[str, Stored], modules: list[str], shape: tuple[int, int], rank: int, where: Path
) -> _Factors | None:
    """Take the factors of a module in all blocks out of the tensors; None: it has no adapter.

    Args:
        left: the tensors by name, without prefixes.
        modules: the names of the module, one for each block.
        shape: (in, out) of the module.
        rank: r.
        where: the file, for error messages.
    """
    shapes = {"lora_A.weight": (rank, shape[0]), "lora_B.weight": (shape[1], rank)}
    names = {kind: [f"{module}.{kind}" for module in modules] for kind in shapes}
    missing = [name for each in names.values() for name in each if name not in left]
    if len(missing) == 2 * len(modules):
        return None
    if missing:
        raise InputError(
            f"{where}: {missing[0]} is missing; give adapters of a module in all blocks"
        )
    factors = []
    for kind, expected in shapes.items():
        for name in names[kind]:
            if left[name].shape != expected:
                raise InputError(
                    f"{where}: {name} is {list(left[name].shape)}, expected {list(expected)}; give "
                    "adapters of the same base, with their own adapter_config.json"
                )
        arrays = {name: left.pop(name).read() for name in names[kind]}
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise InputError(
                    f"{where}: {name} has numbers that are not finite; give weights from before "
                    "training diverged"
                )
        factors.append(np.stack([array.T for array in arrays.values()]))
    return factors[0], factors[1]


def _join(parts: list[_Factors | None]) -> _Factors:
    """Return one adapter of a kernel whose columns belong to several modules, each with its own.

    Modules with the same A share it. Otherwise, each has its own rows of `up`; other columns are 0.
    """
    given = [part for part in parts if part is not None]
    down, blank = given[0][0], np.zeros_like(given[0][1])
    if all(np.array_equal(down, part[0]) for part in given):
        ups = [blank if part is None else part[1] for part in parts]
        return down, np.concatenate(ups, axis=-1)
    rows = [
        np.concatenate([part[1] if part is own else blank for part in parts], axis=-1)
        for own in given
    ]
    return np.concatenate([part[0] for part in given], -1), np.concatenate(rows, -2)
