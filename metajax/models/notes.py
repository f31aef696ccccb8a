"""What a Hugging Face directory says about a model's use: pooling, heads, names of classes."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metajax.errors import InputError
from metajax.models.families import family_of, to_bert
from metajax.models.files import read_json, read_weights, resolve


class Notes(NamedTuple):
    """What a directory says about its use, beyond the network's sizes; None is unsaid."""

    pooling: str
    feature_norm: float | None
    num_labels: tuple[int, ...] | None
    label_names: tuple[tuple[str, ...] | None, ...] | None


def read_notes(directory: Path, values: Mapping[str, Any]) -> Notes:
    """What config.json (as `values`) and sentence-transformers' files say of pooling and classes.

    Raises:
        InputError: something that cannot be understood.
    """
    where = directory / "config.json"
    own = values.get("metajax", {})
    names = values.get("id2label")
    try:
        pooling = own.get("pooling")
        if pooling is None:
            path = directory / "1_Pooling" / "config.json"
            mean = path.exists() and read_json(path).get("pooling_mode_mean_tokens") is True
            pooling = "mean" if mean else "pooler"
        feature_norm = own.get("feature_norm")
        num_labels: Any = own.get("num_labels")
        label_names: Any = own.get("label_names")
        if num_labels is not None:
            num_labels = tuple(_list(num_labels, int))
            if label_names is not None:
                label_names = tuple(_texts(names) for names in _list(label_names, list | None))
        elif names is not None:
            num_labels = (len(names),)
            known = _texts([names[str(i)] for i in range(len(names))])
            unnamed = all(name == f"LABEL_{i}" for i, name in enumerate(known))
            label_names = None if unnamed else (known,)
        elif "num_labels" in values:
            num_labels = (int(values["num_labels"]),)
        feature_norm = None if feature_norm is None else float(feature_norm)
        if feature_norm is not None and not 0 < feature_norm < math.inf:
            raise ValueError("features have no such length")
        if label_names is not None and not names_fit(label_names, num_labels):
            raise ValueError("classes without a name, or the other way round")
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f'{where}: "metajax" or "id2label" makes no sense; correct it') from error
    return Notes(pooling, feature_norm, num_labels, label_names)


def names_fit(names: Sequence[Sequence[str] | None], num_labels: Sequence[int]) -> bool:
    """Whether each head has a name for each of its classes, or none at all as a regression has."""
    return len(names) == len(num_labels) and all(
        not own or len(own) == count for own, count in zip(names, num_labels)
    )


def _texts(names: Any) -> Any:
    """The names of a head's classes; None of one whose classes have none."""
    return None if names is None else tuple(_list(names, str))


def _list(values: Any, kind: Any) -> list[Any]:
    """A list of JSON whose items are of a kind."""
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ValueError("it is no list, or one of other things")
    return values


def has_classifier(name_or_path: str) -> bool:
    """Whether a directory or hub model has the classification head that its config tells of.

    Args:
        name_or_path: a directory in Hugging Face format or a hub id.

    Raises:
        InputError: it cannot be had or read.

    Examples:
        >>> import jax, metajax, tempfile
        >>> model = metajax.Bert(metajax.models.BertConfig(9, 12, 1), head="classification")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     metajax.save_pretrained(folder, model, model.init(jax.random.key(0)))
        ...     metajax.models.has_classifier(folder)
        True
    """
    directory = resolve(name_or_path)
    values = read_json(directory / "config.json")
    noted = read_notes(directory, values)
    family_of(values.get("model_type"), str(directory / "config.json"))
    found = [
        len(tensor)
        for name, tensor in to_bert(read_weights(directory), values["model_type"], 0).items()
        if re.fullmatch(r"classifier(\.\d+)?\.weight", name)
    ]
    sizes = noted.num_labels or (2,)  # Of several, each is stored at the size of the largest.
    return found == [max(sizes)] * len(sizes)
