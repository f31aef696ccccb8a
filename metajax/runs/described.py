"""What `--model` is, without its weights."""

import logging
from typing import Any, Unpack

import jax

from metajax.config.groups import ModelSettings
from metajax.models import load_adapters, read_model
from metajax.models.files import base_of
from metajax.models.metadata import named_pooling
from metajax.models.pretrained import HeadOptions
from metajax.runs.adapters import adapter_settings
from metajax.runs.source import DTYPES, Source, find, lora_settings, rebuild

_log = logging.getLogger("metajax")


def is_decoder(spec: str) -> bool:
    """Return whether `--model` is a decoder, which predicts next tokens.

    Raises:
        InputError: the model cannot be used.
    """
    path, record = find(spec)
    if record is None and (base := base_of(path)) is not None:
        return is_decoder(base)
    model = read_model(spec) if record is None else rebuild(path / "model", record["model"])
    return model.config.family.decoder


def pooling_of(spec: str, default: str) -> str:
    """Return the pooling of `--model`.

    Args:
        spec: `--model`.
        default: pooling of weights that do not define it. It also replaces BERT's pooler in runs
            other than metatrain, because such a run may not have chosen the pooler.

    Raises:
        InputError: the model cannot be used, or its pooling is not supported.
    """
    path, record = find(spec)
    if record is None and (base := base_of(path)) is not None:
        return pooling_of(base, default)
    if record is None:
        pooling = named_pooling(spec)
        if pooling is None:
            _log.warning("%s: names no pooling (1_Pooling); %s is used", spec, default)
        return pooling or default
    pooling = record["model"].get("pooling", "pooler")
    return default if pooling == "pooler" and record["stage"] != "metatrain" else pooling


def describe_source(spec: str, settings: ModelSettings, **head: Unpack[HeadOptions]) -> Source:
    """Like `open_source`, but without weights: the parameters are `jax.ShapeDtypeStruct`s.

    Raises:
        InputError: the model cannot be used.
    """
    path, record = find(spec)
    if record is None and (base := base_of(path)) is not None:
        described = describe_source(base, settings, **head)
        split = load_adapters(path, described.model, described.params)
        return described._replace(adapter_settings=lora_settings(split))
    adapters: dict[str, Any] = {}
    if record is None:
        model = read_model(spec, **head).replace(problem_type=None, siamese=False)
    else:
        if record["settings"].get("freeze"):
            adapters = adapter_settings(record["settings"])
        # What the run says about its labels and pairs does not apply to another head.
        changes: dict[str, Any] = {"label_names": None, "problem_type": None, **head}
        model = rebuild(path / "model", record["model"]).replace(siamese=False, **changes)
    model = model.replace(remat=settings.remat, dtype=DTYPES[settings.dtype])
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return Source(model, shapes, {"record": record or {}}, adapter_settings=adapters)
