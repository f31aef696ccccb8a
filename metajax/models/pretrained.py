"""A BERT from Hugging Face files, and under another head."""

import logging
from pathlib import Path
from typing import Any, TypedDict, cast

import jax
import jax.numpy as jnp
import numpy as np

from metajax.errors import InputError
from metajax.models import convert, files
from metajax.models.config import TransformerConfig
from metajax.models.contracts import Head, Params, Pooling, ProblemType
from metajax.models.metadata import (
    Notes,
    classifier_rows,
    only,
    other_head,
    read_notes,
    read_pooling,
    read_tensors,
)
from metajax.models.model import Transformer

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
    """Reads a BERT in Hugging Face format.

    Args:
        name_or_path: a directory, or a hub id (a directory of that name comes first).
        head: "encoder", "masked_lm" or "classification".
        num_labels: the classes of the head, or of each head; None: what the directory's own
            classifier has, else 2. With other numbers than that one's, the head is new.
        pooling: None: what `save_pretrained` noted in config.json, else what
            sentence-transformers' `1_Pooling/config.json` names, else "pooler".
        feature_norm: see `Transformer`; None: what `save_pretrained` noted, else none.
        label_names: the names of each head's classes; None: the directory's, if they fit.
        remat: checkpoint each block.
        dtype: of the computation; None: the parameters' own.
        param_dtype: of the parameters.
        rng: for the parts that the directory lacks (one log line names them); None: key 0.

    Returns:
        The model; its `source` is the directory.
        Its parameters, as `Transformer.init` gives them, in `param_dtype`.

    Raises:
        InputError: the directory or id cannot be read, is no BERT that fits, has weights that are
            not finite, or, with "classification" and no `num_labels`, a head for something else
            (token classification, question answering, multiple choice).

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
    noted = read_notes(directory, values, rows)
    model = _model(directory, values, config, noted, *asked).replace(remat=remat, dtype=dtype)
    template = jax.eval_shape(model.init, jax.random.key(0))
    loaded = convert.from_hugging_face(tensors, template, str(directory))
    if noted.num_labels not in (None, model.num_labels) or other_head(values):
        loaded.pop("classifier", None)  # padding can make other heads the same shape
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded)):
        files.refuse_not_finite(directory)
    for remark in noted.remarks if "classifier" in loaded else ():
        _log.warning("%s: %s", directory / "config.json", remark)
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
    """The network of a directory or hub id, without its weights.

    Args:
        name_or_path: as for `from_pretrained`.
        head: as for `from_pretrained`.
        num_labels: as for `from_pretrained`.
        pooling: as for `from_pretrained`.
        feature_norm: as for `from_pretrained`.
        label_names: as for `from_pretrained`.

    Raises:
        InputError: the directory or id cannot be read, or is no BERT.

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
    noted = read_notes(directory, values)
    asked = (head, num_labels, pooling, feature_norm, label_names)
    return _model(directory, values, config, noted, *asked)


def _open(name_or_path: str) -> tuple[Path, dict[str, Any], TransformerConfig]:
    """A model's directory, what its config.json holds and that as a configuration."""
    directory = files.resolve(name_or_path)
    values = files.read_json(directory / "config.json")
    return directory, values, TransformerConfig.from_dict(values, str(directory / "config.json"))


def _model(
    directory: Path,
    values: dict[str, Any],
    config: TransformerConfig,
    noted: Notes,
    head: Head,
    num_labels: int | tuple[int, ...] | None,
    pooling: Pooling | None,
    feature_norm: float | None,
    label_names: tuple[tuple[str, ...] | None, ...] | None,
) -> Transformer:
    """The network of a directory, as it is asked for and else as the directory says."""
    other = other_head(values)
    if head == "classification" and num_labels is None and other is not None:
        raise InputError(
            f"{directory}: is {other}, not a classifier of texts; pass num_labels to put a new "
            'head on its encoder, or head="encoder"'
        )
    if isinstance(num_labels, int):
        num_labels = (num_labels,)
    num_labels = num_labels or noted.num_labels or (2,)
    fits = noted.num_labels == num_labels
    own_head = fits and head == "classification" and other is None
    return Transformer(
        config=config,
        head=head,
        pooling=cast(Pooling, pooling or read_pooling(directory, values) or "pooler"),
        feature_norm=noted.feature_norm if feature_norm is None else feature_norm,
        num_labels=num_labels,
        label_names=label_names or (noted.label_names if fits else None),
        projection=noted.projection if own_head else None,
        problem_type=cast(ProblemType, noted.problem_type) if own_head else None,
        source=str(directory),
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
    """Moves parameters to another head.

    What fits is kept (encoder, pooler, the same head), what is missing is
    initialised and named in a log line, what the new model does not have is dropped.

    Args:
        model: the model that `params` belong to.
        params: its parameters.
        head: of the new model.
        num_labels: of the new model; None: the old one's.
        label_names: of the new model; None: the old one's, if it keeps its classes.
        pooling: of the new model; None: the old one's.
        feature_norm: of the new model; None: the old one's.
        rng: for what is initialised; None: key 0.

    Returns:
        The new model.
        Its parameters, as `Transformer.init` gives them, in the dtype of the embedding table.

    Raises:
        InputError: the new model's settings cannot be used.

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
        pooling=pooling or model.pooling,
        feature_norm=model.feature_norm if feature_norm is None else feature_norm,
    )
    wanted = sibling.parts
    kept = {
        key: value
        for key, value in params.items()
        if key in wanted and (same or key != "classifier")
    }
    return sibling, _complete(sibling, kept, rng, "with_head", params["embeddings"]["word"].dtype)


def _complete(
    model: Transformer, loaded: Params, rng: jax.Array | None, where: str, dtype: Any
) -> Params:
    """`loaded` in `dtype`; what it lacks is initialised and, if used, named in one log line."""
    names = model.parts
    missing = [key for key in names if key not in loaded]
    if missing:
        # A pooler that the mean takes the place of is nothing to worry about.
        used = [key for key in missing if key != "pooler" or model.pooling == "pooler"]
        if used:
            _log.warning("%s: has no %s: freshly initialised", where, ", ".join(used))
        rng = jax.random.key(0) if rng is None else rng
        fresh = jax.jit(lambda rng: {key: model.init(rng)[key] for key in missing})(rng)
        loaded = {**loaded, **fresh}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), {key: loaded[key] for key in names})
