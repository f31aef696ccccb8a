"""Parameters by path."""

from collections.abc import Callable
from typing import Any

import jax

from metajax.types import PyTree


def path_name(path: tuple[Any, ...]) -> str:
    """A path into a pytree, as text: `layers/qkv/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def paths(tree: PyTree) -> list[str]:
    """The paths of all leaves."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def mask(tree: PyTree, chosen: Callable[[str], bool]) -> PyTree:
    """A pytree like `tree` with True at the leaves whose path is chosen, else False."""
    return jax.tree_util.tree_map_with_path(lambda path, _: chosen(path_name(path)), tree)


def select(tree: PyTree, chosen: Callable[[str], bool]) -> tuple[PyTree, PyTree]:
    """Splits a pytree by path.

    Returns:
        The chosen leaves and the others: pytrees like `tree` with None at the leaves they lack.
        `combine` puts them together again.
    """
    where = mask(tree, chosen)
    return (
        jax.tree.map(lambda leaf, ours: leaf if ours else None, tree, where),
        jax.tree.map(lambda leaf, ours: None if ours else leaf, tree, where),
    )


def partition(tree: PyTree, chosen: Callable[[Any], bool]) -> tuple[PyTree, PyTree]:
    """Splits a pytree by what its leaves are; else as `select`."""
    return (
        jax.tree.map(lambda leaf: leaf if chosen(leaf) else None, tree),
        jax.tree.map(lambda leaf: None if chosen(leaf) else leaf, tree),
    )


def combine(left: PyTree, right: PyTree) -> PyTree:
    """The pytree that `select` or `partition` split."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, left, right, is_leaf=lambda leaf: leaf is None
    )


def is_norm_or_bias(path: str) -> bool:
    """Whether a path is that of a normalisation's parameter or of a bias."""
    return path.rsplit("/", 1)[-1] in ("bias", "scale")


def extend(tree: PyTree, like: PyTree, value: Any) -> PyTree:
    """`tree` with the keys that `like` has, in nested dicts: `value` where it lacks them."""
    if not isinstance(like, dict):
        return tree
    return {
        key: extend(tree[key], below, value)
        if key in tree
        else jax.tree.map(lambda _: value, below)
        for key, below in like.items()
    }
