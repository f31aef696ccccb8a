"""Read a transformer from Hugging Face files, and change its head."""

import logging
from pathlib import Path
from typing import Any, TypedDict, cast

import jax
import jax.numpy as jnp

from metajax.errors import InputError
from metajax.models import convert, files
from metajax.models.config import TransformerConfig
from metajax.models.contracts import Head, Params, Pooling, ProblemType
from metajax.models.metadata import (
    HeadMetadata,
    classifier_rows,
    only,
    other_head,
    read_head_metadata,
    read_pooling,
    read_tensors,
)
from metajax.models.model import Transformer
from metajax.models.sentence import default_prompt, dense_of_modules, dense_weights, remarks

_log = logging.getLogger("metajax")


class HeadOptions(TypedDict, total=False):
    """The head of a model, as `from_pretrained` and `with_head` take it."""

    head: Head
    num_labels: int | tuple[int, ...] | None
    pooling: Pooling | None
    feature_norm: float | None
    label_names: tuple[tuple[str, ...] | None, ...] | None


def from_pretrained(
    name_or_path: str,
    head: Head = "encoder",
    *,
    num_labels: int | tuple[int, ...] | None = None,
    pooling: Pooling | None = None,
    feature_norm: float | None = None,
    label_names: tuple[tuple[str, ...] | None, ...] | None = None,
    remat: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    rng: jax.Array | None = None,
) -> tuple[Transformer, Params]:
    """Read a transformer in Hugging Face format.

    Args:
        name_or_path: a directory, or a hub id. (A directory of this name has priority.)
        head: "encoder", "masked_lm" or "classification".
        num_labels: number of classes of the head, or of each head. None: as in the directory's
            classifier, or else 2. With other numbers, the head is new.
        pooling: see `Transformer`. None: the value that `save_pretrained` wrote to config.json, or
            else the one in sentence-transformers' `1_Pooling/config.json`, or else "pooler".
        feature_norm: see `Transformer`. None: the value that `save_pretrained` wrote, if any.
        label_names: the names of each head's classes. None: the directory's, if they fit.
        remat: checkpoint each block.
        dtype: dtype of the computation. None: the dtype of the parameters.
        param_dtype: dtype of the parameters.
        rng: key to initialize parts that the directory lacks. (A log line names them.) None: key 0.

    Returns:
        The model, whose `source` is the directory, and its parameters in `param_dtype`, with the
        structure of `Transformer.init`. The model has the `dense` layer and the default `prompt` of
        sentence-transformers' files, if there are any.

    Raises:
        InputError: the model cannot be read or is not supported, or its weights are not finite; or
            the head is "classification" without `num_labels`, but the model has a head for another
            purpose (token classification, question answering, multiple choice).

    Examples:
        >>> import tempfile
        >>> import jax, metajax
        >>> from metajax.models import TransformerConfig
        >>> config = TransformerConfig(
        ...     vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
        ...     intermediate_size=4, max_position_embeddings=8)
        >>> model = metajax.Transformer(config)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     metajax.save_pretrained(folder, model, model.init(jax.random.key(0)))
        ...     again, params = metajax.from_pretrained(folder, head="encoder")
        >>> params["embeddings"]["word"].shape
        (9, 4)
    """
    asked = (head, num_labels, pooling, feature_norm, label_names)
    directory, values, config = _open(name_or_path)
    tensors = read_tensors(directory, values, config.first_position)
    rows = only(classifier_rows(tensors))
    metadata = read_head_metadata(directory, values, rows)
    model = _model(directory, values, config, metadata, *asked).replace(remat=remat, dtype=dtype)
    template = jax.eval_shape(model.init, jax.random.key(0))
    if metadata.num_labels not in (None, model.num_labels) or other_head(values):
        template.pop("classifier", None)  # Other heads can have the same shape because of padding.
    try:
        loaded = convert.from_hugging_face(tensors, template, str(directory), param_dtype)
    except convert.NotFiniteError:
        files.refuse_not_finite([*files.weight_files(directory), *dense_weights(directory)])
    for remark in metadata.remarks if "classifier" in loaded else ():
        _log.warning("%s: %s", directory / "config.json", remark)
    for remark in remarks(directory):
        _log.warning("%s: %s", directory, remark)
    return model, _complete(model, loaded, rng, str(directory), param_dtype)


def read_model(
    name_or_path: str,
    head: Head = "encoder",
    *,
    num_labels: int | tuple[int, ...] | None = None,
    pooling: Pooling | None = None,
    feature_norm: float | None = None,
    label_names: tuple[tuple[str, ...] | None, ...] | None = None,
) -> Transformer:
    """Read the network of a directory or hub id without its weights.

    Args:
        name_or_path: as for `from_pretrained`.
        head: as for `from_pretrained`.
        num_labels: as for `from_pretrained`.
        pooling: as for `from_pretrained`.
        feature_norm: as for `from_pretrained`.
        label_names: as for `from_pretrained`.

    Raises:
        InputError: the model cannot be read or is not supported.

    Examples:
        >>> import tempfile
        >>> from metajax.models import Transformer, TransformerConfig, read_model, save_config
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_config(folder, Transformer(TransformerConfig(hidden_size=24)))
        ...     model = read_model(folder, head="classification", num_labels=3)
        >>> model.config.hidden_size, model.num_labels
        (24, (3,))
    """
    directory, values, config = _open(name_or_path)
    metadata = read_head_metadata(directory, values)
    asked = (head, num_labels, pooling, feature_norm, label_names)
    return _model(directory, values, config, metadata, *asked)


def _open(name_or_path: str) -> tuple[Path, dict[str, Any], TransformerConfig]:
    """Return a model's directory, the content of its config.json, and its configuration."""
    directory = files.resolve(name_or_path)
    values = files.read_json(directory / "config.json")
    return directory, values, TransformerConfig.from_dict(values, str(directory / "config.json"))


def _model(
    directory: Path,
    values: dict[str, Any],
    config: TransformerConfig,
    metadata: HeadMetadata,
    head: Head,
    num_labels: int | tuple[int, ...] | None,
    pooling: Pooling | None,
    feature_norm: float | None,
    label_names: tuple[tuple[str, ...] | None, ...] | None,
) -> Transformer:
    """Return the network of a directory, with the given settings or else the directory's."""
    other = other_head(values)
    if head == "classification" and num_labels is None and other is not None:
        raise InputError(
            f"{directory}: is {other}, not a classifier of texts; pass num_labels to put a new "
            'head on its encoder, or head="encoder"'
        )
    if isinstance(num_labels, int):
        num_labels = (num_labels,)
    num_labels = num_labels or metadata.num_labels or (2,)
    fits = metadata.num_labels == num_labels
    own_head = fits and head == "classification" and other is None
    return Transformer(
        config=config,
        head=head,
        pooling=cast(Pooling, pooling or read_pooling(directory, values) or "pooler"),
        dense=dense_of_modules(directory),
        feature_norm=metadata.feature_norm if feature_norm is None else feature_norm,
        num_labels=num_labels,
        label_names=label_names or (metadata.label_names if fits else None),
        projection=metadata.projection if own_head else None,
        problem_type=cast(ProblemType, metadata.problem_type) if own_head else None,
        siamese=own_head and metadata.siamese,
        source=str(directory),
        prompt=default_prompt(directory),
    )


def with_head(
    model: Transformer,
    params: Params,
    *,
    head: Head,
    num_labels: int | tuple[int, ...] | None = None,
    label_names: tuple[tuple[str, ...] | None, ...] | None = None,
    pooling: Pooling | None = None,
    feature_norm: float | None = None,
    rng: jax.Array | None = None,
) -> tuple[Transformer, Params]:
    """Move parameters to a model with another head.

    Parts that fit (encoder, prefix, pooler, the same head) are kept. Missing parts are initialized,
    and a log line names them. Parts that the new model does not have are dropped.

    Args:
        model: the model that `params` belong to.
        params: its parameters.
        head: the head of the new model.
        num_labels: as in `Transformer`. None: the value of `model`.
        label_names: as in `Transformer`. None: the value of `model`, if the classes stay the same.
        pooling: as in `Transformer`. None: the value of `model`.
        feature_norm: as in `Transformer`. None: the value of `model`.
        rng: key for the initialization. None: key 0.

    Returns:
        The new model, and its parameters in the dtype of the embedding table.

    Raises:
        InputError: the settings of the new model are not valid.

    Examples:
        >>> import jax
        >>> from metajax.models import Transformer, TransformerConfig, with_head
        >>> config = TransformerConfig(vocab_size=9, hidden_size=12, num_hidden_layers=1)
        >>> model = Transformer(config)
        >>> params = model.init(jax.random.key(0))
        >>> model, params = with_head(model, params, head="classification", num_labels=3)
        >>> model.head, params["classifier"]["kernel"].shape
        ('classification', (1, 12, 3))
    """
    if isinstance(num_labels, int):
        num_labels = (num_labels,)
    same = num_labels is None or num_labels == model.num_labels
    sibling = model.replace(
        head=head,
        num_labels=num_labels or model.num_labels,
        label_names=label_names or (model.label_names if same else None),
        projection=model.projection if same and head == "classification" else None,
        problem_type=model.problem_type if same and head == "classification" else None,
        siamese=model.siamese and same and head == "classification",
        pooling=pooling or model.pooling,
        feature_norm=model.feature_norm if feature_norm is None else feature_norm,
    )
    wanted = sibling.parts
    kept = {
        key: value
        for key, value in params.items()
        if key in wanted and (same or key != "classifier")
    }
    moved = _complete(sibling, kept, rng, "with_head", params["embeddings"]["word"].dtype)
    prefix = {"prefix": params["prefix"]} if "prefix" in params else {}
    return sibling, {**moved, **prefix}


def _complete(
    model: Transformer, loaded: Params, rng: jax.Array | None, where: str, dtype: Any
) -> Params:
    """Cast `loaded` to `dtype`; initialize missing parts, and log those that are used."""
    names = model.parts
    missing = [key for key in names if key not in loaded]
    if missing:
        # A missing pooler does not affect models with mean pooling.
        used = [key for key in missing if key != "pooler" or model.pooling == "pooler"]
        if used:
            _log.warning("%s: has no %s: freshly initialized", where, ", ".join(used))
        rng = jax.random.key(0) if rng is None else rng
        fresh = jax.jit(lambda rng: {key: model.init(rng)[key] for key in missing})(rng)
        loaded = {**loaded, **fresh}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), {key: loaded[key] for key in names})
