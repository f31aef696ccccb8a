"""Sentence-transformers' files: what makes a sentence encoder of a network."""

import re
from pathlib import Path
from typing import Any

from metajax.errors import InputError, reason_of
from metajax.models.files import read_json
from metajax.reading import parse_json, read_bytes

# Their names of poolings, and ours.
POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last", "weightedmean": "weighted-mean"}
MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
_APPLIED = ("Transformer", "Pooling", "Normalize")


def pooling_of_modules(directory: Path, *, decoder: bool) -> str | None:
    """Return the pooling of a directory, by our names; None if it names none.

    Args:
        directory: the model's.
        decoder: whether it is a decoder, whose pooler is the last token.

    Raises:
        InputError: a file is not valid, or this pooling is not supported.
    """
    places = [place for kind, place in _modules(directory) if kind == "Pooling"] or ["1_Pooling"]
    path = directory / places[0] / "config.json"
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


def remarks(directory: Path) -> list[str]:
    """Return what of a sentence encoder is not applied, a line each.

    Raises:
        InputError: a file is not valid.
    """
    found = [
        f"its module {kind} ({place}) is not applied; features are the pooled hidden states"
        for kind, place in _modules(directory)
        if kind not in _APPLIED
    ]
    path = directory / PROMPTS
    settings = read_json(path) if path.exists() else {}
    prompts, name = settings.get("prompts"), settings.get("default_prompt_name")
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    if prompt:
        found.append(f"its default prompt {prompt!r} is not put before texts; put it before yours")
    return found


def pooling_files(pooling: str, width: int, *, normalize: bool) -> dict[str, Any]:
    """Return the files that describe a sentence encoder, as JSON by name.

    Args:
        pooling: "mean", "cls", "last" or "weighted-mean".
        width: features of a vector.
        normalize: whether to scale vectors to unit length.
    """
    names = {ours: theirs for theirs, ours in POOLINGS.items()}
    modes = (
        *("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"),
        *("weightedmean_tokens", "lasttoken"),
    )
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    kinds |= {"2_Normalize": "Normalize"} if normalize else {}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    on = re.compile(f"{names[pooling]}(_tokens?)?")
    flags = {f"pooling_mode_{mode}": bool(on.fullmatch(mode)) for mode in modes}
    return {
        MODULES: modules,
        "1_Pooling/config.json": {"word_embedding_dimension": width, **flags},
    }


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
