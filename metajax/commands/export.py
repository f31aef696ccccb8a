"""Export the checkpoint of any stage to the Hugging Face format."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

from metajax.config.settings import ExportSettings
from metajax.errors import InputError
from metajax.models import Transformer, save_pretrained
from metajax.runs.classifier import open_classifier
from metajax.runs.paths import on_disk, to_path
from metajax.runs.record import read_record
from metajax.runs.source import open_source
from metajax.runs.workdir import check_writable
from metajax.types import Params


def export(settings: ExportSettings) -> dict[str, Any]:
    """Write the config, tokenizer and safetensors to `settings.output`.

    Returns:
        `output`: the directory. `head`: the model's head. `loads_in`: the class of transformers
        that reads the directory. For a head on mean pooling this is the encoder's class; the head
        is in classifier.safetensors, which only metajax reads.

    Raises:
        InputError: the workdir has no checkpoint, or the directory is not empty.
    """
    output = Path(os.path.abspath(on_disk(settings.output)))  # A name with a parent, even for "."
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"{output}: exists and is not an empty directory; give a new one")
    check_writable(output)
    record = read_record(to_path(settings.model))
    if record is None:
        raise InputError(f"{settings.model}: is not the working directory of a run; give one")
    if record["stage"] in ("adapt", "finetune"):
        model, params = _with_one_head(settings)
    else:
        source = open_source(settings.model)
        model, params = source.model, source.params
        if model.head == "classification" and "classifier" not in params:
            model = model.replace(head="encoder")  # Each task has a separate head.
    _save(output, model, params)
    (loads_in,) = json.loads((output / "config.json").read_text())["architectures"]
    return {"output": str(output), "head": model.head, "loads_in": loads_in}


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


def _save(output: Path, model: Transformer, params: Params) -> None:
    """Write the directory under a temporary name, and rename it when it is complete."""
    partial = output.with_name(f".{output.name}.part")
    try:
        save_pretrained(partial, model, params)
        os.replace(partial, output)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        raise InputError(f"{output}: is a mount point; give a directory in it") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
