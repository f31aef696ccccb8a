"""Parameters by path."""

from collections.abc import Callable
from typing import Any

import jax

from metajax.types import PyTree


def path_name(path: tuple[Any, ...]) -> str:
    """A path into a pytree, as text: `layers/qkv/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def mask(tree: PyTree, chosen: Callable[[str], bool]) -> PyTree:
    """A pytree like `tree` with True at the leaves whose path is chosen, else False."""
    return jax.tree_util.tree_map_with_path(lambda path, _: chosen(path_name(path)), tree)
