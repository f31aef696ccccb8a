"""Sentence-transformers' files: what makes a sentence encoder of a network."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metajax.errors import InputError, reason_of
from metajax.models.contracts import Activation, DenseLayer
from metajax.models.files import read_json, weight_files
from metajax.models.stored import Reader
from metajax.reading import parse_json, read_bytes

if TYPE_CHECKING:
    from metajax.models.model import Transformer

# Their names of poolings, and ours.
POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last", "weightedmean": "weighted-mean"}
MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
# Of a dense layer that is written.
DENSE = "2_Dense"
DENSE_WEIGHTS = f"{DENSE}/model.safetensors"
_APPLIED = ("Transformer", "Pooling", "Dense", "Normalize")
# PyTorch's activations, and our names of them.
_ACTIVATIONS: dict[str, Activation] = {
    "Identity": "linear",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}
# Options of a Dense module; only these values are supported.
_DENSE_DEMANDED = {
    "module_input_name": ("sentence_embedding",),
    "module_output_name": ("sentence_embedding", None),
    "use_residual": (False,),
}


def pooling_of_modules(directory: Path, *, decoder: bool) -> str | None:
    """Return the pooling of a directory, by our names; None if it names none.

    Args:
        directory: the model's.
        decoder: whether it is a decoder, whose pooler is the last token.

    Raises:
        InputError: a file is not valid, or this pooling is not supported.
    """
    path = _pooling_file(directory)
    if not path.exists():
        return None
    flags = read_json(path)
    modes = flags.get("pooling_mode")  # Before sentence-transformers 5.4: a key per mode.
    if modes is None:
        switched_on = [key for key, on in flags.items() if key.startswith("pooling_mode_") and on]
        modes = [re.sub("^pooling_mode_|_tokens?$", "", key) for key in switched_on] or "mean"
    modes = modes if isinstance(modes, list) else [modes]
    supported = {**POOLINGS, "lasttoken": "pooler"} if decoder else POOLINGS
    named = " and ".join(map(str, modes))
    if named not in supported:
        raise InputError(
            f"{path}: pooling by {named} is not supported; pass pooling (--pooling of "
            f"finetune), or give a model that pools by {' or '.join(supported)}"
        )
    return supported[named]


def dense_of_modules(directory: Path) -> DenseLayer | None:
    """Return the dense layer of a directory; None if it has none.

    Raises:
        InputError: a file is not valid, or this layer is not supported.
    """
    folder = _dense_folder(directory)
    if folder is None:
        return None
    path = folder / "config.json"
    values = read_json(path)
    name = str(values.get("activation_function", "Tanh")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise InputError(
            f"{path}: the activation function {name} is not supported; give a model with "
            f"{', '.join(_ACTIVATIONS)}"
        )
    for key, only in _DENSE_DEMANDED.items():
        if values.get(key, only[0]) not in only:
            raise InputError(
                f"{path}: {key} is {values[key]!r}, but only {only[0]!r} is supported; give a "
                "model with this value"
            )
    size, bias = values.get("out_features"), values.get("bias", True)
    if type(size) is not int or size < 1 or type(bias) is not bool:
        raise InputError(
            f"{path}: out_features is {size!r} and bias is {bias!r}; they have to be a number "
            "above 0, and true or false"
        )
    return DenseLayer(size, _ACTIVATIONS[name], bias)


def dense_weights(directory: Path) -> list[tuple[Path, Reader]]:
    """Return the files with the weights of a directory's dense layer, each with its reader.

    Raises:
        InputError: a file is not valid, or the weights are missing.
    """
    folder = _dense_folder(directory)
    return [] if folder is None else weight_files(folder)


def _dense_folder(directory: Path) -> Path | None:
    kinds = [(kind, place) for kind, place in _modules(directory) if kind in ("Dense", "Normalize")]
    places = [place for kind, place in kinds if kind == "Dense"]
    if places and (len(places) > 1 or kinds[0][0] != "Dense"):
        raise InputError(
            f"{directory / MODULES}: has the modules {', '.join(kind for kind, _ in kinds)}, but "
            "only one Dense, before Normalize, is supported; give another model"
        )
    return directory / places[0] if places else None


def default_prompt(directory: Path) -> str:
    """Return what a directory puts before each text; often nothing.

    Raises:
        InputError: a file is not valid, or the pooling leaves out the prompt.
    """
    path = directory / PROMPTS
    settings = read_json(path) if path.exists() else {}
    prompts, name = settings.get("prompts"), settings.get("default_prompt_name")
    if not isinstance(name, str | None):
        raise InputError(f"{path}: default_prompt_name is {name!r}, not a text; fix it")
    prompt = (prompts.get(name) if isinstance(prompts, dict) else None) or ""
    if not isinstance(prompt, str):
        raise InputError(f"{path}: the prompt {name!r} is {prompt!r}, not a text; fix it")
    if prompt and _leaves_out_prompts(directory):
        raise InputError(
            f"{_pooling_file(directory)}: include_prompt is false, but pooling without the prompt "
            f"is not supported; remove default_prompt_name from {PROMPTS}, and put {prompt!r} "
            "before your texts"
        )
    return prompt


def remarks(directory: Path) -> list[str]:
    """Return what of a sentence encoder is not applied, a line each.

    Raises:
        InputError: a file is not valid.
    """
    return [
        f"its module {kind} ({place}) is not applied; features are those without it"
        for kind, place in _modules(directory)
        if kind not in _APPLIED
    ]


def sentence_pooling(model: "Transformer") -> str | None:
    """Return the pooling of a network as a sentence encoder; None for BERT's pooler."""
    if model.pooling != "pooler":
        return model.pooling
    return "last" if model.config.family.decoder else None


def sentence_files(model: "Transformer", *, normalize: bool) -> dict[str, Any]:
    """Return the files that describe the modules of a sentence encoder, as JSON by name.

    Args:
        model: the network; its `sentence_pooling` is not None. The weights of its dense layer
            belong into `DENSE_WEIGHTS`.
        normalize: whether to scale vectors to unit length.
    """
    pooling, width, dense = sentence_pooling(model), model.config.hidden_size, model.dense
    assert pooling is not None
    names = {ours: theirs for theirs, ours in POOLINGS.items()}
    modes = (
        *("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"),
        *("weightedmean_tokens", "lasttoken"),
    )
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    kinds |= {} if dense is None else {DENSE: "Dense"}
    kinds |= {f"{len(kinds)}_Normalize": "Normalize"} if normalize else {}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    on = re.compile(f"{names[pooling]}(_tokens?)?")
    flags = {f"pooling_mode_{mode}": bool(on.fullmatch(mode)) for mode in modes}
    described = {
        MODULES: modules,
        "1_Pooling/config.json": {"word_embedding_dimension": width, **flags},
    }
    if dense is None:
        return described
    (theirs,) = (theirs for theirs, ours in _ACTIVATIONS.items() if ours == dense.activation)
    layer = "linear" if theirs == "Identity" else "activation"
    described[f"{DENSE}/config.json"] = {
        "in_features": width,
        "out_features": dense.size,
        "bias": dense.bias,
        "activation_function": f"torch.nn.modules.{layer}.{theirs}",
    }
    return described


def prompt_files(model: "Transformer") -> dict[str, Any]:
    """Return the file of prompts, as JSON by name; none if all are empty.

    It has all named prompts of the model's directory, and the model's own as the default one; but
    no named ones if the pooling of the directory leaves out prompts, because ours does not.
    """
    path, settings = Path(model.source or "") / PROMPTS, dict[str, Any]()
    if model.source and path.exists() and not _leaves_out_prompts(path.parent):
        settings = read_json(path)
    prompts, name = settings.get("prompts"), settings.get("default_prompt_name")
    prompts = prompts if isinstance(prompts, dict) else {}
    if model.prompt != (prompts.get(name) or ""):
        name = None
        if model.prompt:
            name = "default"
            while name in prompts:
                name += "_"
            prompts = {**prompts, name: model.prompt}
    if not any(prompts.values()):
        return {}
    return {PROMPTS: {"prompts": prompts, "default_prompt_name": name}}


def _pooling_file(directory: Path) -> Path:
    places = [place for kind, place in _modules(directory) if kind == "Pooling"] or ["1_Pooling"]
    return directory / places[0] / "config.json"


def _leaves_out_prompts(directory: Path) -> bool:
    path = _pooling_file(directory)
    return path.exists() and not read_json(path).get("include_prompt", True)


def _modules(directory: Path) -> list[tuple[str, str]]:
    """Return the kind and the place of each module in modules.json; without the file, none."""
    path = directory / MODULES
    if not path.exists():
        return []
    try:
        modules = parse_json(read_bytes(path).decode("utf-8"))
        places = [(each["type"].rpartition(".")[2], each["path"]) for each in modules]
        # The file is data from elsewhere: it must not point out of its directory.
        if not all(place in ("", ".") or Path(place).name == place for _, place in places):
            raise ValueError("a path is not the name of a folder")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: is not a list of modules ({reason_of(error)}); fetch it again"
        ) from error
    return places
