"""Hugging Face model directories: their location, JSON files, weights and tokenizer.

Nothing in a directory is ever executed: no remote code, no unpickling beyond plain tensors.
"""

import functools
import importlib.util
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from metajax.errors import InputError, reason_of
from metajax.models.stored import BUFFER, Reader, Stored, read_safetensors, read_torch
from metajax.reading import parse_json, read_bytes

# Weights that transformers' classes have no place for are in files of their own.
COMPANIONS = ("pooler.safetensors", "classifier.safetensors")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spm.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
_IMPORTING = threading.Lock()
# Adapters in PEFT's format.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_SENTENCEPIECE = "spm.model"
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", _SENTENCEPIECE)
SMALL = ("config.json", "1_Pooling/config.json", *TOKENIZER_FILES)
# Of sentence-transformers. A module's weight files are named like the model's.
_SENTENCE = (
    "modules.json",
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
    "*_Dense*/config.json",
    "*_Dense*/model.safetensors",
    "*_Dense*/pytorch_model.bin",
)
_SAFE = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors", *COMPANIONS)
_TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")
_HINT = "pass --model the path of a local directory with config.json and model.safetensors instead"


def resolve(name_or_path: str) -> Path:
    """The directory at a path or, if there is none, of the hub's model in the local cache.

    Raises:
        InputError: neither exists, or the model cannot be downloaded.
    """
    path = Path(os.path.expanduser(name_or_path))
    if path.is_dir():
        return _cached(path) if (path / "snapshots").is_dir() else path
    if path.exists():
        raise InputError(f"{path}: is a file; give the directory with config.json")
    # A hub id is NAME or OWNER/NAME.
    if name_or_path.startswith(("/", ".", "~")) or name_or_path.count("/") > 1:
        raise InputError(f"{name_or_path}: no such directory; check the path")
    directory = _snapshot(name_or_path, (*SMALL, *_SENTENCE, *_SAFE))
    if not any(directory.glob("model*.safetensors")):
        directory = _snapshot(name_or_path, (*SMALL, *_SENTENCE, *_TORCH))
    return directory


def _cached(path: Path) -> Path:
    """The directory of a model in a folder of the hub's cache."""
    snapshots = sorted(each for each in (path / "snapshots").iterdir() if each.is_dir())
    main = path / "refs" / "main"
    named = (
        path / "snapshots" / main.read_text(errors="replace").strip() if main.is_file() else None
    )
    if named in snapshots:
        return named
    if len(snapshots) == 1:
        return snapshots[0]
    raise InputError(
        f"{path}: a folder of the hub's cache with {len(snapshots)} snapshots and none that "
        "refs/main names; give one of the directories in snapshots/"
    )


def _snapshot(name: str, patterns: tuple[str, ...]) -> Path:
    import huggingface_hub
    from huggingface_hub import constants

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns)))
    except huggingface_hub.errors.GatedRepoError as error:
        raise InputError(f"{name}: the hub requires a login; log in, or {_HINT}") from error
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{name}: the hub has no model of this name; check the name, or {_HINT}"
        ) from error
    except huggingface_hub.errors.HFValidationError as error:
        raise InputError(f"{name!r}: neither a directory nor a hub id; {_HINT}") from error
    except Exception as error:  # each HTTP client that the hub library uses raises its own
        if constants.HF_HUB_OFFLINE:
            raise InputError(
                f"{name}: not in the hub's cache, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE keeps "
                f"it from being fetched; unset the variable, or {_HINT}"
            ) from error
        raise InputError(
            f"{name}: no such directory, and the hub is out of reach; {_HINT}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: the file is missing or does not hold a JSON object.
    """
    if not path.exists():
        raise InputError(f"{path}: missing; give a complete model directory")
    try:
        values = parse_json(read_bytes(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8; replace the file") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: not JSON ({error.msg}); replace the file"
        ) from error
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); replace the file") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a JSON object; replace the file")
    return values


def base_of(directory: Path) -> str | None:
    """Return the base that a directory of adapters names; None if it is not such a directory.

    Raises:
        InputError: the directory does not name its base, or names one of adapters only.
    """
    path = directory / ADAPTER_CONFIG
    if not path.is_file() or (directory / "config.json").is_file():
        return None
    base = read_json(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError(
            f"{path}: base_model_name_or_path is {base!r}; write the directory or hub id of the "
            "base there"
        )
    own = Path(base)
    if (own / ADAPTER_CONFIG).is_file() and not (own / "config.json").is_file():
        raise InputError(
            f"{path}: base_model_name_or_path is {base}, which has adapters only; write a whole "
            "model there"
        )
    return base


def read_weights(directory: Path) -> dict[str, Stored]:
    """All tensors of a directory by name, from safetensors or else PyTorch files.

    Those of safetensors are read one by one, when they are used.

    Raises:
        InputError: there are none, or they cannot be read.
    """
    parts = [read(path) for path, read in weight_files(directory)]
    return {key: value for part in parts for key, value in part.items()}


def weight_files(directory: Path) -> list[tuple[Path, Reader]]:
    """The files that hold a directory's weights, each with its reader."""
    readers: dict[str, Reader] = {
        "model.safetensors": read_safetensors,
        "pytorch_model.bin": read_torch,
    }
    for name, read in readers.items():
        if (directory / name).is_file():
            shards = [directory / name]
        elif (directory / f"{name}.index.json").exists():
            shards = _shards(directory, f"{name}.index.json")
        else:
            continue
        extra = [directory / file for file in COMPANIONS if (directory / file).is_file()]
        return [(path, read) for path in shards] + [(path, read_safetensors) for path in extra]
    raise InputError(
        f"{directory}: no weights (model.safetensors or pytorch_model.bin); give a complete model "
        "directory"
    )


def _shards(directory: Path, index: str) -> list[Path]:
    names = read_json(directory / index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{directory / index}: no weight_map; replace the file")
    for name in names.values():
        # An index is data from elsewhere: it must not point out of its directory.
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or name == "..":
            raise InputError(
                f"{directory / index}: {name!r} is not a plain file name; replace the index"
            )
        if not (directory / name).is_file():
            raise InputError(
                f"{directory / name}: missing, though {index} lists it; fetch it again"
            )
    return [directory / name for name in sorted(set(names.values()))]


def refuse_not_finite(weights: Sequence[tuple[Path, Reader]]) -> NoReturn:
    """Name the tensor in a list of files that is not finite.

    Raises:
        InputError: always.
    """
    path, name, finite = next(
        (path, name, finite)
        for path, read in weights
        for name, value in read(path).items()
        if not (finite := np.isfinite(value.read())).all() and not BUFFER.search(name)
    )
    raise InputError(
        f"{path}: {np.sum(~finite)} of {finite.size} numbers of the tensor {name} are not finite; "
        "fetch it again, or give weights from before training diverged"
    )


def tokenizer_for(source: str | None, vocab_size: int) -> Any:
    """The fast tokenizer in the directory `source`, for a model with this many tokens.

    Raises:
        InputError: there is none that can be used.
    """
    loaded = tokenizer(source)
    largest = max(loaded.get_vocab().values(), default=0)
    if largest >= vocab_size:
        raise InputError(
            f"{source}: the tokenizer has a token {largest}, but the model's last token is "
            f"{vocab_size - 1}; give the model's tokenizer"
        )
    return loaded


def _import_transformers() -> Any:
    """Import transformers without a warning that PyTorch is missing; tokenizers do not need it."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    with _IMPORTING:  # Another thread must not see the variable and keep it.
        known = os.environ.get(name)
        os.environ[name] = "1"
        try:
            import transformers
        finally:
            if known is None:
                del os.environ[name]
            else:
                os.environ[name] = known
    return transformers


@functools.lru_cache(maxsize=8)
def tokenizer(source: str | None) -> Any:
    """The fast tokenizer in the directory `source`.

    Raises:
        InputError: there is none that can be used.
    """
    if source is None:
        raise InputError("the model has no directory with a tokenizer; give it one as `source`")
    # transformers makes an empty one where there is none.
    if not any((Path(source) / name).exists() for name in _VOCABULARIES):
        raise InputError(f"{source}: no usable tokenizer; add the model's tokenizer.json")
    converts = not any((Path(source) / name).exists() for name in _VOCABULARIES[:-1])
    if converts and importlib.util.find_spec("sentencepiece") is None:
        raise InputError(
            f"{source}: reading {_SENTENCEPIECE} needs sentencepiece; run pip install "
            "sentencepiece, or add the model's tokenizer.json"
        )
    transformers = _import_transformers()
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(
            source, use_fast=True, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers raises whatever its parsers raise
        raise InputError(
            f"{source}: no usable tokenizer ({reason_of(error)}); add the model's tokenizer.json"
        ) from error
    if not loaded.is_fast:
        raise InputError(f"{source}: not a fast tokenizer; add the model's tokenizer.json")
    if loaded.pad_token_id is None:
        loaded.pad_token = loaded.eos_token  # As users of GPT-2 do; nothing looks at padding.
    if loaded.pad_token_id is None:
        raise InputError(
            f"{source}: the tokenizer has no token for padding; set pad_token in "
            "tokenizer_config.json"
        )
    return loaded
