"""The use of a model, from its Hugging Face directory: pooling, heads, names of classes."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metajax.errors import InputError, reason_of
from metajax.models.families import family_of
from metajax.models.files import read_json, read_weights, resolve
from metajax.models.renaming import to_bert, unwrapped
from metajax.models.sentence import dense_weights, pooling_of_modules
from metajax.models.stored import Stored

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
# Endings of transformers' class names, and what these heads do.
_OTHER_HEADS = {
    "ForTokenClassification": "a token classifier, which labels words",
    "ForQuestionAnswering": "a question-answering model, which marks answers",
    "ForMultipleChoice": "a multiple-choice model, which compares texts",
    "ForNextSentencePrediction": "a next-sentence predictor",
}
_NO_HEAD = ("Model", "ForMaskedLM", "ForPreTraining", "ForCausalLM")


class HeadMetadata(NamedTuple):
    """Metadata of a directory about its heads; None if the directory does not say.

    Attributes:
        feature_norm: see `Transformer`.
        num_labels: see `Transformer`.
        label_names: see `Transformer`.
        projection: see `Transformer`.
        siamese: see `Transformer`.
        problem_type: see `Transformer`.
        remarks: messages for users of the head.
    """

    feature_norm: float | None
    num_labels: tuple[int, ...] | None
    label_names: tuple[tuple[str, ...] | None, ...] | None
    problem_type: str | None
    remarks: tuple[str, ...] = ()
    projection: int | None = None
    siamese: bool = False


def read_head_metadata(
    directory: Path, values: Mapping[str, Any], rows: int | None = None
) -> HeadMetadata:
    """Read the metadata about classes in config.json.

    Args:
        directory: the directory of the file, for error messages.
        values: the content of config.json.
        rows: the number of classes of the only classifier in the weights, if known.

    Raises:
        InputError: a value is not valid.
    """
    where = directory / "config.json"
    own = values.get("metajax", {})
    try:
        feature_norm = own.get("feature_norm")
        feature_norm = None if feature_norm is None else float(feature_norm)
        if feature_norm is not None and not 0 < feature_norm < math.inf:
            raise ValueError("a length of features must be above 0")
        problem_type = values.get("problem_type")
        if problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError("unknown problem type")
        if own.get("num_labels") is None:
            return HeadMetadata(feature_norm, *_transformers_head(values, rows, problem_type))
        num_labels = tuple(_list(own["num_labels"], int))
        projection = own.get("projection")
        if projection is not None and not (type(projection) is int and projection > 0):
            raise ValueError("a width must be above 0")
        label_names = own.get("label_names")
        if label_names is not None:
            label_names = tuple(_texts(names) for names in _list(label_names, list | None))
            if not names_fit(label_names, num_labels):
                raise ValueError("the numbers of classes and names differ")
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise InputError(
            f'{where}: "metajax", "num_labels" or "problem_type" is not valid '
            f"({reason_of(error)}); fix it"
        ) from error
    type_, siamese = _own_type(problem_type, num_labels), own.get("siamese") is True
    head = feature_norm, num_labels, label_names, type_
    return HeadMetadata(*head, projection=projection, siamese=siamese)


def _transformers_head(
    values: Mapping[str, Any], rows: int | None, problem_type: str | None
) -> tuple[Any, ...]:
    """Return all metadata except feature_norm of a head in transformers' format."""
    names, remarks = values.get("id2label"), []
    count: int | None
    if isinstance(names, dict) and names:
        count = max(len(names), rows or 0)  # A class may have no name.
    else:
        count = int(values["num_labels"]) if "num_labels" in values else rows
    if count is None:
        return None, None, None
    known = None
    if names:
        known, missing = _class_names(names, count)
        if missing:
            others = ", ".join(missing[:4]) + (" and so on" if missing[4:] else "")
            remarks.append(
                f'"id2label" names {count - len(missing)} of {count} classes; the others are '
                f"called {others}"
            )
        unnamed = all(name == f"LABEL_{i}" for i, name in enumerate(known))
        known = None if unnamed else known
    if count == 1 and problem_type is None:
        remarks.append('"problem_type" is not set; the head of one class is read as a regression')
    label_names = None if known is None else (known,)
    return (count,), label_names, _own_type(problem_type, (count,)), tuple(remarks)


def _class_names(names: Any, count: int) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of classes, and the default names among them."""
    given = {
        int(key): str(name)
        for key, name in (names.items() if isinstance(names, dict) else ())
        if re.fullmatch("[0-9]{1,9}", key) and isinstance(name, str | int | float) and str(name)
    }
    missing = [f"LABEL_{i}" for i in range(count) if i not in given]
    return tuple(given.get(i, f"LABEL_{i}") for i in range(count)), missing


def _own_type(problem_type: str | None, num_labels: tuple[int, ...]) -> str | None:
    """Return a head's problem type, or None if its number of classes determines it."""
    if num_labels == (1,):
        regression = problem_type in (None, "regression")
        return None if regression else "multi_label_classification"
    return None if problem_type == "single_label_classification" else problem_type


def read_pooling(directory: Path, values: Mapping[str, Any]) -> str | None:
    """Return the pooling from config.json (as `values`) or from sentence-transformers' files.

    Raises:
        InputError: this pooling is not supported.
    """
    own = values.get("metajax", {})
    pooling = own.get("pooling") if isinstance(own, dict) else None
    if pooling is not None:
        return pooling
    family = family_of(values.get("model_type"), str(directory / "config.json"))
    return pooling_of_modules(directory, decoder=family.decoder)


def named_pooling(name_or_path: str) -> str | None:
    """Return the pooling that a directory or hub model names, or None.

    Raises:
        InputError: the model cannot be read, or the pooling is not supported.
    """
    directory = resolve(name_or_path)
    return read_pooling(directory, read_json(directory / "config.json"))


def encodes_texts(name_or_path: str) -> bool:
    """Return whether a directory or hub model encodes single texts, also those of pairs.

    That is a sentence encoder without a head, or with one that compares the texts of pairs; but not
    if `siamese` in config.json is false, because its training has read the texts of pairs together.

    Raises:
        InputError: the model cannot be read, or its pooling is not supported.
    """
    directory = resolve(name_or_path)
    values = read_json(directory / "config.json")
    head = read_head_metadata(directory, values | {"id2label": None})
    if "siamese" in values.get("metajax", {}):
        return head.siamese
    return head.num_labels is None and bool(read_pooling(directory, values))


def check_labels(
    num_labels: tuple[int, ...],
    label_names: Sequence[Sequence[str] | None] | None,
    problem_type: str | None,
) -> None:
    """Check the labels of a `Transformer`.

    Raises:
        InputError: they do not fit one another.
    """
    if not num_labels or min(num_labels) < 1:
        raise InputError(f"num_labels is {num_labels}; every head needs at least one")
    if problem_type not in (None, *PROBLEM_TYPES[1:]) or (problem_type and len(num_labels) > 1):
        raise InputError(
            f"problem_type is {problem_type!r} of {len(num_labels)} heads; it has to be "
            f"{' or '.join(PROBLEM_TYPES[1:])} of one, or None"
        )
    if label_names is None:
        return
    if not all(map(_are_names, label_names)):
        raise InputError(f"label_names is {label_names}; names have to be text")
    if not names_fit(label_names, num_labels):
        raise InputError(
            f"label_names is {label_names}; of the heads with {num_labels} classes each needs as "
            "many names, or None"
        )


def _are_names(own: Any) -> bool:
    """Return whether a value can be the names of a head's classes, or None."""
    return own is None or (
        isinstance(own, tuple | list) and all(isinstance(name, str) for name in own)
    )


def names_fit(names: Sequence[Sequence[str] | None], num_labels: Sequence[int]) -> bool:
    """Return whether each head has a name for each class, or no names."""
    return len(names) == len(num_labels) and all(
        not own or len(own) == count for own, count in zip(names, num_labels)
    )


def _texts(names: Any) -> Any:
    """Return the names of a head's classes, or None."""
    return None if names is None else tuple(_list(names, str))


def _list(values: Any, kind: Any) -> list[Any]:
    """Check that a JSON value is a list of one type, and return it."""
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ValueError("not a list of this type")
    return values


def other_head(values: Mapping[str, Any]) -> str | None:
    """Return what a checkpoint does if it does not label texts, from its `architectures`."""
    names = values.get("architectures")
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or name.endswith(("ForSequenceClassification", *_NO_HEAD)):
            continue
        known = [what for end, what in _OTHER_HEADS.items() if name.endswith(end)]
        return f"{known[0]} ({name})" if known else f"a {name}, whose head is not known"
    return None


def read_tensors(directory: Path, values: Mapping[str, Any], offset: int) -> dict[str, Stored]:
    """Read the weights of a directory, by BERT's names (see `to_bert`), with its dense layer.

    Raises:
        InputError: the weights cannot be read.
    """
    kind = values["model_type"]
    tensors = to_bert(unwrapped(read_weights(directory), kind, str(directory)), kind, offset)
    for path, read in dense_weights(directory):
        tensors |= read(path)
    return tensors


def classifier_rows(tensors: Mapping[str, Stored]) -> list[int]:
    """Return the number of classes of each classifier."""
    return [
        tensor.shape[0]
        for name, tensor in tensors.items()
        if re.fullmatch(r"classifier(\.\d+)?\.weight", name) and tensor.ndim
    ]


def only(rows: Sequence[int]) -> int | None:
    """Return the number of classes if there is exactly one classifier."""
    return rows[0] if len(rows) == 1 else None


def has_classifier(name_or_path: str) -> bool:
    """Return whether a directory or hub model has the classification head of its config.

    Args:
        name_or_path: a directory in Hugging Face format or a hub id.

    Raises:
        InputError: the model cannot be read.

    Examples:
        >>> import jax, metajax, tempfile
        >>> config = metajax.models.TransformerConfig(9, 12, 1)
        >>> model = metajax.Transformer(config, head="classification")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     metajax.save_pretrained(folder, model, model.init(jax.random.key(0)))
        ...     metajax.models.has_classifier(folder)
        True
    """
    return no_classifier(name_or_path) is None


def no_classifier(name_or_path: str) -> str | None:
    """Return why a directory or hub model is not a text classifier, or None.

    Raises:
        InputError: the model cannot be read.
    """
    directory = resolve(name_or_path)
    values = read_json(directory / "config.json")
    family = family_of(values.get("model_type"), str(directory / "config.json"))
    other = other_head(values)
    if other is not None:
        return f"is {other}, not a classifier of texts"
    tensors = read_tensors(directory, values, 0)
    rows = classifier_rows(tensors)
    metadata = read_head_metadata(directory, values, only(rows))
    sizes = metadata.num_labels or (
        2,
    )  # Several heads are stored with the size of the largest one.
    if rows != [max(sizes)] * len(sizes):
        return "lacks the classification head that its config.json describes"
    pooled = family.decoder or read_pooling(directory, values) not in (None, "pooler")
    if not pooled and not any(name.endswith("pooler.dense.weight") for name in tensors):
        return "has a head but lacks the pooler that the head reads, so it cannot label texts"
    return None
