"""Read data sets of the Hugging Face hub as tables."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from metajax.data.glue import GLUE, HUB_NAME, glue_name
from metajax.data.readers import Table
from metajax.errors import InputError, reason_of


def hub_address(spec: str, split: str) -> tuple[str, str | None, str]:
    """Return the repository, configuration and split that a glue: or hub: spec names.

    Raises:
        InputError: the spec has neither form.
    """
    if spec.startswith("glue:"):
        key = glue_name(spec[5:])
        return HUB_NAME, key, GLUE[key].development[1] if split == "validation" else split
    parts = spec.removeprefix("hub:").split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise InputError(
            f"{spec}: is not a hub data set; use hub:OWNER/NAME or hub:OWNER/NAME/CONFIG"
        )
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split


def read_hub(
    repository: str, config: str | None, split: str
) -> tuple[Table, dict[str, tuple[str, ...]]]:
    """Load a hub data set, and the class names that its columns declare.

    This runs no code of the data set: `datasets` does not support it since version 4.

    Raises:
        InputError: it cannot be loaded for any reason.
    """
    import datasets

    source = f"hub:{repository}" + (f"/{config}" if config else "")
    try:
        with _without_retry_warnings():
            data = datasets.load_dataset(repository, config, split=split)
    except Exception as error:  # `datasets` documents none, and all concern the request.
        raise InputError(
            f"{source}: the {split} split cannot be loaded ({reason_of(error)}); "
            "check the name and the network, or give a local file"
        ) from None
    classes = {
        name: tuple(feature.names)
        for name, feature in data.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }

    def column(name: str) -> list[Any]:
        values = data[name][:]
        if name not in classes:
            return values
        return [None if x is None or x < 0 else classes[name][x] for x in values]

    return Table(
        source, tuple(data.features), column, lambda row: f"{source} row {row + 1}"
    ), classes


def has_split(spec: str, split: str) -> bool:
    """Return whether a hub data set has a split; true if the hub does not answer.

    Args:
        spec: "hub:OWNER/NAME[/CONFIG]" or "glue:NAME".
        split: for example "train" or "validation".

    Raises:
        InputError: the spec has neither form, or GLUE has no task of this name.

    Examples:
        >>> from unittest import mock
        >>> from metajax.data import has_split
        >>> with mock.patch("datasets.get_dataset_split_names", return_value=["train", "test"]):
        ...     has_split("hub:owner/name", "train"), has_split("hub:owner/name", "validation")
        (True, False)
    """
    import datasets

    repository, config, split = hub_address(spec, split)
    try:
        return split in datasets.get_dataset_split_names(repository, config)
    except Exception:  # Reading the data set will report the error.
        return True


@contextlib.contextmanager
def _without_retry_warnings() -> Iterator[None]:
    # The hub's client warns of every retry; the error at the end is enough.
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
