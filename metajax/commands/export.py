"""Export the checkpoint of any stage to the Hugging Face format."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from metajax.commands.lineage import lineage, summary
from metajax.config.results import ExportSettings, LineageSettings
from metajax.errors import InputError
from metajax.models import Transformer, save_adapters, save_pretrained
from metajax.models.files import base_of
from metajax.models.metadata import encodes_texts
from metajax.models.prefix import prefix_length
from metajax.models.save import to_json
from metajax.models.sentence import sentence_files, sentence_pooling
from metajax.runs.card import model_card
from metajax.runs.classifier import is_regression, open_classifier
from metajax.runs.paths import on_disk, to_path
from metajax.runs.record import read_record
from metajax.runs.source import Source, open_source, text_length
from metajax.runs.workdir import check_writable, read_results
from metajax.types import Params

_log = logging.getLogger("metajax")


def export(settings: ExportSettings) -> dict[str, Any]:
    """Write the config, tokenizer and safetensors to `settings.output`.

    Returns:
        `output`: the directory. `head`: the model's head. `loads_in`: the class of transformers,
        sentence-transformers or PEFT that reads the directory. For a head on mean pooling this is
        the encoder's class; the head is in classifier.safetensors, which only metajax reads.

    Raises:
        InputError: the workdir has no checkpoint, its model has no place in the format, or the
            directory is not empty.
    """
    output = Path(os.path.abspath(on_disk(settings.output)))  # A name with a parent, even for "."
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"{output}: exists and is not an empty directory; give a new one")
    check_writable(output)
    record = read_record(to_path(settings.model))
    if record is None:
        raise InputError(f"{settings.model}: is not the working directory of a run; give one")
    if settings.format == "peft":
        return _export_adapters(output, settings.model)
    if record["stage"] in ("adapt", "finetune") and record["model"].get("head") != "causal_lm":
        (model, params), apart = _with_one_head(settings), True  # Its head says how it reads pairs.
    else:
        source = open_source(settings.model)
        model, params, apart = _as_saved(source), source.params, source.encodes_texts
    if prefix_length(params):
        raise InputError(
            f"{settings.model}: has vectors before the text (--prefix), which have no place in "
            "Hugging Face's format; use the run itself"
        )
    if settings.format == "sentence-transformers":
        return _export_sentence_encoder(output, settings.model, record, model, params, apart=apart)
    _write(output, partial(save_pretrained, model=model, params=params), apart=apart)
    (loads_in,) = json.loads((output / "config.json").read_text())["architectures"]
    return {"output": str(output), "head": model.head, "loads_in": loads_in}


def _export_sentence_encoder(
    output: Path,
    spec: str,
    record: dict[str, Any],
    model: Transformer,
    params: Params,
    *,
    apart: bool,
) -> dict[str, Any]:
    """Write a directory that sentence-transformers loads, with a model card.

    Raises:
        InputError: the model pools by BERT's pooler.
    """
    pooling = sentence_pooling(model)
    if pooling is None:
        raise InputError(
            f"--format sentence-transformers: {spec} pools by BERT's pooler, which that library "
            "does not have; finetune it with --pooling mean, or export it without --format"
        )
    if model.head != "classification":
        model = model.replace(head="encoder")
        params = {name: params[name] for name in model.parts}
    max_length = text_length(model, record["settings"]["max_length"])
    normalized = model.feature_norm is not None
    described = {
        **sentence_files(model, normalize=normalized),
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
    }
    card = model_card(
        output.name,
        model_type=model.config.model_type,
        stage=record["stage"],
        pooling=pooling,
        width=model.replace(siamese=False).feature_size,
        dense=None if model.dense is None else model.dense.activation,
        prompt=model.prompt,
        max_length=max_length,
        normalized=normalized,
        classifier=model.head == "classification",
        regression=is_regression(model),
        siamese=model.siamese,
        lineage=summary(lineage(LineageSettings(model=spec))),
        results=read_results(to_path(spec)),
    )

    def save(directory: Path) -> None:
        save_pretrained(directory, model, params)
        for name, value in described.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(to_json(value))
        (directory / "README.md").write_text(card, encoding="utf-8")

    _write(output, save, apart=apart)
    loads_in = "sentence_transformers.SentenceTransformer"
    return {"output": str(output), "head": model.head, "loads_in": loads_in}


def _as_saved(source: Source) -> Transformer:
    """Return the model with the head that its parameters have."""
    if source.model.head == "classification" and "classifier" not in source.params:
        return source.model.replace(head="encoder")  # Each task has a separate head.
    return source.model


def _with_one_head(settings: ExportSettings) -> tuple[Transformer, Params]:
    """Open a classifier with the head of one task, without the padding of the labels."""
    model, params, head, *_ = open_classifier(settings.model, settings.task)
    names = model.label_names and (model.label_names[head],)
    classes = model.num_labels[head]
    classifier = {
        "kernel": params["classifier"]["kernel"][head : head + 1, :, :classes],
        "bias": params["classifier"]["bias"][head : head + 1, :classes],
    }
    model = model.replace(num_labels=(classes,), label_names=names)
    return model, params | {"classifier": classifier}


def _export_adapters(output: Path, spec: str) -> dict[str, Any]:
    """Write the adapters of a run in PEFT's format.

    Raises:
        InputError: the run has no LoRA adapters on a frozen base, or this base has adapters.
    """
    source = open_source(spec)
    if source.split is None or source.base is None or not source.adapter_settings["lora"]:
        raise InputError(
            f"--format peft: {spec} has no LoRA adapters on frozen weights; train it with "
            "--lora RANK --freeze, or export it without --format"
        )
    if base_of(to_path(source.base)) is not None:
        raise InputError(
            f"--format peft: {source.base}, the base of {spec}, has adapters of its own; export it "
            "without --format"
        )
    if read_record(to_path(source.base)) is not None:
        _log.warning(
            "%s: is the base of the adapters; export it too (metajax export --model %s), and write "
            "its new directory into %s as base_model_name_or_path",
            *(source.base, source.base, output / "adapter_config.json"),
        )
    model = _as_saved(source).replace(source=source.base)
    if "classifier" in source.params:
        _log.warning("%s: PEFT's format has no place for its head; predict reads the run", spec)
    _write(output, partial(save_adapters, model=model, params=source.split))
    return {"output": str(output), "head": model.head, "loads_in": "peft.PeftModel"}


def _write(output: Path, save: Callable[[Path], None], *, apart: bool = True) -> None:
    """Write a directory under a temporary name, and rename it when it is complete.

    Args:
        output: the directory.
        save: `(directory) -> None` writes the files.
        apart: whether pairs may be read text by text. If not, config.json says so of a sentence
            encoder, whose pairs would otherwise be read like this.
    """
    unfinished = output.with_name(f".{output.name}.part")
    try:
        save(unfinished)
        if not apart and encodes_texts(str(unfinished)):
            config = unfinished / "config.json"
            values = json.loads(config.read_text())
            values["metajax"] = values.get("metajax", {}) | {"siamese": False}
            config.write_bytes(to_json(values))
        os.replace(unfinished, output)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        raise InputError(f"{output}: is a mount point; give a directory in it") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
