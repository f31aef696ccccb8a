"""Write a model in the format of Hugging Face's classes."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metajax.errors import InputError
from metajax.models import convert, files
from metajax.models.contracts import Params
from metajax.models.model import Transformer
from metajax.models.renaming import from_bert
from metajax.models.sentence import DENSE, DENSE_WEIGHTS, PROMPTS, prompt_files, sentence_files
from metajax.reading import expand_home

_CLASS = {
    "encoder": "Model",
    "masked_lm": "ForMaskedLM",
    "classification": "ForSequenceClassification",
}


def save_pretrained(directory: str | os.PathLike[str], model: Transformer, params: Params) -> None:
    """Write config.json, tokenizer and safetensors that transformers loads without a warning.

    BertForSequenceClassification does not support every classifier (other pooling, `feature_norm`,
    several heads, and a bias in GPT-2). Such a classifier goes to a separate file,
    `classifier.safetensors`, next to a BertModel. The pooler, which BertForMaskedLM lacks, goes to
    `pooler.safetensors`. `from_pretrained` reads both files. The pooling, a dense layer and the
    prompts, with all named ones of `model.source`, are also written for sentence-transformers.

    config.json is removed first and written last, so a directory with config.json is complete.

    Args:
        directory: created if it does not exist. Files with the same names are replaced. Other files
            of an earlier model are removed: shards, `pytorch_model.bin`, `modules.json` and, if
            `model` has a tokenizer, tokenizer files.
        model: the model.
        params: its parameters. They are written exactly.

    Raises:
        InputError: the parameters have a prefix.
        OSError: a file cannot be written.

    Examples:
        >>> import os
        >>> import tempfile
        >>> import jax, metajax
        >>> from metajax.models import TransformerConfig
        >>> config = TransformerConfig(
        ...     vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
        ...     intermediate_size=4, max_position_embeddings=8)
        >>> model = metajax.Transformer(config)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     metajax.save_pretrained(folder, model, model.init(jax.random.key(0)))
        ...     sorted(os.listdir(folder))
        ['config.json', 'model.safetensors']
    """
    if "prefix" in params:
        raise InputError(
            f"{directory}: the format of Hugging Face has no place for params['prefix']; leave it "
            "out, and save it separately"
        )
    target = Path(expand_home(os.fspath(directory)))
    target.mkdir(parents=True, exist_ok=True)
    plain = is_plain(model, params)
    architecture, weights = _weights(model, params, plain=plain)
    contents = {name: to_safetensors(tensors) for name, tensors in weights.items()}
    contents.update(_tokenizer_files(model))
    described = prompt_files(model)
    if model.pooling != "pooler" or model.dense is not None:
        described |= sentence_files(model, normalize=False)
    contents.update({name: to_json(value) for name, value in described.items()})
    dtype = str(np.dtype(params["embeddings"]["word"].dtype))
    contents["config.json"] = to_json(_config(model, architecture, dtype, plain=plain))
    _write(target, contents, with_tokenizer=model.source is not None)


def save_config(directory: str | os.PathLike[str], model: Transformer) -> None:
    """Write the tokenizer, the prompts and then config.json, without weights.

    config.json only has the model's `config`, not its head, pooling, `feature_norm` or classes.

    Args:
        directory: created if it does not exist. Files with the same names are replaced.
        model: the model.

    Raises:
        OSError: a file cannot be written.

    Examples:
        >>> import os, tempfile
        >>> from metajax.models import Transformer, TransformerConfig, save_config
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_config(folder, Transformer(TransformerConfig(vocab_size=9, hidden_size=12)))
        ...     os.listdir(folder)
        ['config.json']
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    described = prompt_files(model) | {"config.json": model.config.to_dict()}
    contents = _tokenizer_files(model) | {name: to_json(each) for name, each in described.items()}
    replace_files(target, contents)


def replace_files(target: Path, contents: Mapping[str, bytes]) -> None:
    """Write files one after the other, each first under another name."""
    for name, content in contents.items():
        (target / f"{name}.tmp").write_bytes(content)
        os.replace(target / f"{name}.tmp", target / name)


def _weights(
    model: Transformer, params: Params, *, plain: bool
) -> tuple[str, dict[str, dict[str, np.ndarray]]]:
    """Return the class to load with, and the tensors of each file."""
    family, head = model.config.family, model.head
    main, aside = convert.to_hugging_face(params), dict[str, dict[str, np.ndarray]]()
    if "dense" in params:
        aside[DENSE_WEIGHTS] = _take(main, "linear.")
    if head == "classification" and not plain:
        aside["classifier.safetensors"] = _take(main, "classifier.") | _take(main, "projection.")
        head = "encoder"
    if "pooler" in params and (head == "masked_lm" or (head == "encoder" and not family.pooler)):
        aside["pooler.safetensors"] = _take(main, "pooler.")
    # An untied decoder also has a separate bias.
    if {"decoder", "bias"} <= params.get("masked_lm", {}).keys():
        main["cls.predictions.decoder.bias"] = main["cls.predictions.bias"].copy()
    if head == "classification":
        for name in ("weight", "bias"):
            main[f"classifier.{name}"] = main.pop(f"classifier.0.{name}")
    main = from_bert(main, model.config.model_type, model.config.first_position, head)
    kind = family.causal_lm if head == "causal_lm" else _CLASS[head]
    return f"{family.classes}{kind}", {**aside, "model.safetensors": main}


def _take(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name: tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}


def is_plain(model: Transformer, params: Params) -> bool:
    """Return whether transformers' ForSequenceClassification supports a classifier."""
    if model.head != "classification" or model.pooling != "pooler" or model.dense is not None:
        return False
    if model.siamese:
        return False
    if not model.config.family.classifier_bias and np.any(params["classifier"]["bias"]):
        return False
    return model.feature_norm is model.projection is None and len(model.num_labels) == 1


def _config(model: Transformer, architecture: str, dtype: str, *, plain: bool) -> dict[str, Any]:
    values = {"architectures": [architecture], "dtype": dtype, **model.config.to_dict()}
    metadata: dict[str, Any] = {}
    if model.pooling != "pooler":
        metadata["pooling"] = model.pooling
    if model.feature_norm is not None:
        metadata["feature_norm"] = model.feature_norm
    if plain:
        count = model.num_labels[0]
        names = model.label_names and model.label_names[0]
        names = names or tuple(f"LABEL_{i}" for i in range(count))
        values["id2label"] = {str(i): name for i, name in enumerate(names)}
        values["label2id"] = {name: i for i, name in enumerate(names)}
    elif model.head == "classification":
        metadata["num_labels"] = model.num_labels
        metadata["label_names"] = model.label_names
        if model.projection is not None:
            metadata["projection"] = model.projection
        if model.siamese:
            metadata["siamese"] = True
    problem_type = model.problem_type
    if model.head == "classification" and model.num_labels == (1,):
        problem_type = problem_type or "regression"
    if problem_type is not None:
        values["problem_type"] = problem_type
    return {**values, "metajax": metadata} if metadata else values


def _tokenizer_files(model: Transformer) -> dict[str, bytes]:
    if model.source is None:
        return {}
    paths = [Path(model.source) / name for name in files.TOKENIZER_FILES]
    return {path.name: path.read_bytes() for path in paths if path.exists()}


def to_safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    """Return the content of a file of tensors."""
    import safetensors.numpy

    return safetensors.numpy.save(tensors, metadata={"format": "pt"})


def to_json(value: Any) -> bytes:
    """Return the content of a JSON file."""
    return (json.dumps(value, indent=2) + "\n").encode()


def _write(target: Path, contents: Mapping[str, bytes], *, with_tokenizer: bool) -> None:
    """Write all files under other names, then rename them, config.json last."""
    folders = [target / name for name in ("1_Pooling", DENSE)]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        with open(target / f"{name}.tmp", "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    (target / "config.json").unlink(missing_ok=True)
    # Files of an earlier model would be read as files of this one.
    modules = ("modules.json", PROMPTS, *(f"{folder.name}/config.json" for folder in folders))
    left = {*modules, DENSE_WEIGHTS, *files.COMPANIONS, *_other_weights(target)}
    if with_tokenizer:
        left |= set(files.TOKENIZER_FILES)
    for name in left - contents.keys():
        (target / name).unlink(missing_ok=True)
    for name in (*(n for n in contents if n != "config.json"), "config.json"):
        os.replace(target / f"{name}.tmp", target / name)
    for folder in folders:
        if not any(folder.iterdir()):
            folder.rmdir()


def _other_weights(target: Path) -> list[str]:
    """Return the shards and indices of an earlier model."""
    patterns = (
        "model-*-of-*.safetensors",
        "model.safetensors.index.json",
        "pytorch_model-*-of-*.bin",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    )
    return [path.name for pattern in patterns for path in target.glob(pattern)]
