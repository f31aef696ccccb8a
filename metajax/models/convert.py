"""Conversion of parameters from Hugging Face's names and shapes to metajax's and back.

The tables list the Hugging Face tensors of each parameter. Several tensors are joined along the
last axis. Dense weights are `[out, in]` in Hugging Face and `[in, out]` here. Layers and
classification heads are stacked on a leading axis here.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.errors import InputError, some
from metajax.models.stored import Stored

Path = tuple[str, ...]


def _dense(ours: Path, *theirs: str) -> dict[Path, tuple[str, ...]]:
    return {
        (*ours, "kernel"): tuple(f"{name}.weight" for name in theirs),
        (*ours, "bias"): tuple(f"{name}.bias" for name in theirs),
    }


def _norm(ours: Path, theirs: str) -> dict[Path, tuple[str, ...]]:
    return {(*ours, "scale"): (f"{theirs}.weight",), (*ours, "bias"): (f"{theirs}.bias",)}


_LAYER = {
    **_dense(
        ("layers", "qkv"), "attention.self.query", "attention.self.key", "attention.self.value"
    ),
    # Llama's heads of queries and keys differ in number.
    **_dense(("layers", "query"), "attention.self.query"),
    **_dense(("layers", "key"), "attention.self.key"),
    **_dense(("layers", "value"), "attention.self.value"),
    **_norm(("layers", "query_norm"), "attention.self.query_norm"),
    **_norm(("layers", "key_norm"), "attention.self.key_norm"),
    **_dense(("layers", "gate"), "intermediate.gate"),
    **_dense(("layers", "out"), "attention.output.dense"),
    **_norm(("layers", "attention_norm"), "attention.output.LayerNorm"),
    **_dense(("layers", "up"), "intermediate.dense"),
    **_dense(("layers", "down"), "output.dense"),
    **_norm(("layers", "output_norm"), "output.LayerNorm"),
}
_TABLE: dict[Path, tuple[str, ...]] = {
    ("embeddings", "word"): ("embeddings.word_embeddings.weight",),
    ("embeddings", "position"): ("embeddings.position_embeddings.weight",),
    ("embeddings", "token_type"): ("embeddings.token_type_embeddings.weight",),
    **_norm(("embeddings", "norm"), "embeddings.LayerNorm"),
    **_dense(("embeddings", "project"), "embeddings_project"),
    ("relative", "table"): ("encoder.relative_attention_bias.weight",),
    **_norm(("relative", "norm"), "encoder.relative_norm"),
    **{path: tuple(f"encoder.layer.*.{name}" for name in names) for path, names in _LAYER.items()},
    **_norm(("final_norm",), "final_norm"),
    **_dense(("pooler",), "pooler.dense"),
    **_dense(("pooler", "dense"), "pooler.dense"),
    **_norm(("pooler", "norm"), "pooler.norm"),
    **_dense(("dense",), "linear"),  # As in sentence-transformers' own file.
    **_dense(("masked_lm", "dense"), "cls.predictions.transform.dense"),
    **_norm(("masked_lm", "norm"), "cls.predictions.transform.LayerNorm"),
    ("masked_lm", "bias"): ("cls.predictions.bias",),
    ("masked_lm", "decoder"): ("cls.predictions.decoder.weight",),
    ("lm_head", "kernel"): ("cls.predictions.decoder.weight",),
    **_dense(("projection", "first"), "projection.first"),
    **_dense(("projection", "second"), "projection.second"),
    **_dense(("classifier",), "classifier.*"),
}
_TRANSPOSED = ("kernel", "decoder")
_STACKED = ("layers", "classifier")
_REQUIRED = ("embeddings", "relative", "layers", "final_norm", "dense")

# Ignored without a message: buffers of old versions, the next-sentence head, and heads that were
# not asked for. (A tied decoder repeats the embeddings.)
_IGNORED = re.compile(
    r"(embeddings\.position_(ids|embeddings)|mask_predictions\.|h\.\d+\.attn\.(masked_)?bias$|.*rotary_emb\.inv_freq$"
    r"|cls\.|(sop_)?classifier\.|projection\.|pooler\.|discriminator_predictions\.|generator_(predictions|lm_head)\."
    r"|qa_outputs\.|sequence_summary\.|multiple_choice_head\.)"
)


def to_hugging_face(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters by BERT's names without `bert.`; the heads are `classifier.0.` and so on."""
    tensors = {}
    for path, leaf in _leaves(params):
        names, value = _TABLE[path], np.asarray(leaf)
        for index, layer in enumerate(value if path[0] in _STACKED else [value]):
            for name, part in zip(names, np.split(layer, len(names), axis=-1)):
                part = part.T if path[-1] in _TRANSPOSED else part
                tensors[name.replace("*", str(index))] = np.ascontiguousarray(part)
    return tensors


def tensor_names(path: Path) -> tuple[str, ...]:
    """BERT's names of a parameter's tensors; `*` stands for the number of a layer or head."""
    return _TABLE[path]


class NotFiniteError(ValueError):
    """A tensor has numbers that are not finite."""


def from_hugging_face(
    tensors: Mapping[str, Stored | np.ndarray],
    template: Mapping[str, Any],
    where: str,
    dtype: Any = jnp.float32,
) -> dict[str, Any]:
    """Parameters from Hugging Face tensors; parts without tensors are left out.

    Besides the parameters, memory holds one of them and one tensor at any time.

    Args:
        tensors: by BERT's names, old or new, with or without `bert.`.
        template: the shapes of the parameters wanted (arrays or `ShapeDtypeStruct`s).
        dtype: of the parameters.
        where: the directory, for error messages.

    Returns:
        The parameters, without the parts (pooler, a head) that `tensors` lacks and without a
        classifier of another shape.

    Raises:
        InputError: unexpected or missing tensors, or shapes that do not fit.
        NotFiniteError: of a tensor that is used.
    """
    tensors = _modern_names(tensors)
    expected = tensor_shapes(template)
    groups = {name: path[0] for path, names in expected.items() for name in names}
    unexpected = [name for name in tensors if name not in groups and not _IGNORED.match(name)]
    if unexpected:
        raise InputError(
            f"{where}: unexpected tensors: {some(unexpected)}; give the weights of a plain BERT"
        )
    missing = [name for name in groups if name not in tensors]
    required = [name for name in missing if groups[name] in _REQUIRED]
    if required:
        raise InputError(
            f"{where}: missing tensors: {some(required)}; give complete weights that go with "
            "config.json"
        )
    shapes = {name: shape for names in expected.values() for name, shape in names.items()}
    unfit = [name for name in groups if name in tensors and tensors[name].shape != shapes[name]]
    wrong = [
        f"{name} is {list(tensors[name].shape)}, expected {list(shapes[name])}"
        for name in unfit
        if groups[name] != "classifier"
    ]
    if wrong:
        raise InputError(
            f"{where}: shapes do not fit config.json: {some(wrong)}; give the weights' own config"
        )
    absent = {groups[name] for name in (*missing, *unfit)}
    loaded: dict[str, Any] = {}
    for path, like in _leaves(template):
        if path[0] not in absent:
            parts = [tensors[name] for name in expected[path]]
            _put(loaded, path, jax.device_put(_join(path, parts, like, dtype)))
    return loaded


def _modern_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """New names without prefix, a single head numbered, one name for the decoder's bias."""
    renamed = {}
    for name, value in tensors.items():
        name = name.removeprefix("bert.")
        name = re.sub(r"^classifier\.(weight|bias)$", r"classifier.0.\1", name)
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        renamed[re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)] = value
    # transformers computes with the decoder's own bias; with tying, both are the same tensor.
    decoder_bias = renamed.pop("cls.predictions.decoder.bias", None)
    if decoder_bias is not None:
        renamed["cls.predictions.bias"] = decoder_bias
    return renamed


def tensor_shapes(template: Mapping[str, Any]) -> dict[Path, dict[str, tuple[int, ...]]]:
    """The names and shapes of the Hugging Face tensors of each parameter, layer by layer."""
    expected = {}
    for path, leaf in _leaves(template):
        names, shape = _TABLE[path], leaf.shape
        count, shape = (shape[0], shape[1:]) if path[0] in _STACKED else (1, shape)
        shape = (*shape[:-1], shape[-1] // len(names))
        shape = shape[::-1] if path[-1] in _TRANSPOSED else shape
        expected[path] = {
            name.replace("*", str(index)): shape for index in range(count) for name in names
        }
    return expected


def _join(path: Path, parts: list[Stored | np.ndarray], like: Any, dtype: Any) -> np.ndarray:
    """Read the tensors of a parameter into one array, in the shape of `like`."""
    joined = np.empty(like.shape, dtype)
    count = len(_TABLE[path])
    layers = joined if path[0] in _STACKED else joined[None]
    places = [place for layer in layers for place in np.split(layer, count, axis=-1)]
    for place, part in zip(places, parts):
        value = part.read() if isinstance(part, Stored) else part
        if not np.isfinite(value).all():
            raise NotFiniteError(path)
        np.copyto(place, value.T if path[-1] in _TRANSPOSED else value, casting="unsafe")
    return joined


def _leaves(tree: Mapping[str, Any], path: Path = ()) -> Iterable[tuple[Path, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _put(tree: dict[str, Any], path: Path, value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
