"""Select, split and merge parameters by path."""

from collections.abc import Callable
from typing import Any

import jax

from metajax.types import PyTree


def path_name(path: tuple[Any, ...]) -> str:
    """Return the path of a leaf as text.

    Args:
        path: a path from `jax.tree_util.tree_leaves_with_path`.

    Examples:
        >>> import jax
        >>> from metajax.tree import path_name
        >>> [(path, leaf)] = jax.tree_util.tree_leaves_with_path({"layers": [{"kernel": 1}]})
        >>> path_name(path)
        'layers/0/kernel'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def paths(tree: PyTree) -> list[str]:
    """Return the paths of all leaves.

    Args:
        tree: any pytree.

    Examples:
        >>> from metajax.tree import paths
        >>> paths({"head": {"kernel": 1, "bias": 2}, "norm": {"scale": 3}})
        ['head/bias', 'head/kernel', 'norm/scale']
    """
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def mask(tree: PyTree, predicate: Callable[[str], bool]) -> PyTree:
    """Return a pytree like `tree` with the value of a predicate at each leaf.

    Args:
        tree: any pytree.
        predicate: predicate on the path of a leaf.

    Examples:
        >>> from metajax.tree import mask
        >>> mask({"head": {"kernel": 1}, "norm": 3}, lambda path: path.startswith("head/"))
        {'head': {'kernel': True}, 'norm': False}
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: predicate(path_name(path)), tree)


def select(tree: PyTree, predicate: Callable[[str], bool]) -> tuple[PyTree, PyTree]:
    """Split a pytree by path.

    Args:
        tree: any pytree.
        predicate: predicate on the path of a leaf.

    Returns:
        The leaves for which the predicate is true, and the other leaves. Both are pytrees like
        `tree` with None for the leaves of the other one. `combine` merges them.

    Examples:
        >>> from metajax.tree import select
        >>> select({"head": 1, "body": 2}, lambda path: path == "head")
        ({'body': None, 'head': 1}, {'body': 2, 'head': None})
    """
    where = mask(tree, predicate)
    return (
        jax.tree.map(lambda leaf, ours: leaf if ours else None, tree, where),
        jax.tree.map(lambda leaf, ours: None if ours else leaf, tree, where),
    )


def partition(tree: PyTree, predicate: Callable[[Any], bool]) -> tuple[PyTree, PyTree]:
    """Split a pytree by a predicate on its leaves; otherwise like `select`.

    Args:
        tree: any pytree.
        predicate: predicate on a leaf.

    Examples:
        >>> from metajax.tree import partition
        >>> partition({"rate": 0.5, "steps": 3}, lambda leaf: isinstance(leaf, float))
        ({'rate': 0.5, 'steps': None}, {'rate': None, 'steps': 3})
    """
    return (
        jax.tree.map(lambda leaf: leaf if predicate(leaf) else None, tree),
        jax.tree.map(lambda leaf: None if predicate(leaf) else leaf, tree),
    )


def combine(left: PyTree, right: PyTree) -> PyTree:
    """Merge the two pytrees that `select` or `partition` returned.

    Args:
        left: a pytree with None for the leaves of `right`.
        right: a pytree with None for the leaves of `left`.

    Examples:
        >>> from metajax.tree import combine
        >>> combine({"body": None, "head": 1}, {"body": 2, "head": None})
        {'body': 2, 'head': 1}
    """
    return jax.tree.map(
        lambda a, b: b if a is None else a, left, right, is_leaf=lambda leaf: leaf is None
    )


def is_norm_or_bias(path: str) -> bool:
    """Return whether a path leads to a parameter of a norm or to a bias.

    Args:
        path: a path from `path_name`.

    Examples:
        >>> from metajax.tree import is_norm_or_bias
        >>> [is_norm_or_bias(f"layers/up/{name}") for name in ("kernel", "bias", "scale")]
        [False, True, True]
    """
    return path.rsplit("/", 1)[-1] in ("bias", "scale")


def extend(tree: PyTree, like: PyTree, value: Any) -> PyTree:
    """Add the keys of `like` that `tree` lacks, with `value` at their leaves.

    Args:
        tree: nested dicts.
        like: nested dicts with all keys of `tree`.
        value: value of the added leaves.

    Examples:
        >>> from metajax.tree import extend
        >>> extend({"body": {"kernel": 1}}, {"body": {"kernel": 0, "bias": 0}, "head": 0}, None)
        {'body': {'kernel': 1, 'bias': None}, 'head': None}
    """
    if not isinstance(like, dict):
        return tree
    return {
        key: extend(tree[key], below, value)
        if key in tree
        else jax.tree.map(lambda _: value, below)
        for key, below in like.items()
    }


def drop(tree: PyTree, predicate: Callable[[str], bool]) -> PyTree:
    """Remove leaves, and the dicts that this empties.

    Args:
        tree: nested dicts.
        predicate: predicate on the path of a leaf; true if it is removed.

    Examples:
        >>> from metajax.tree import drop
        >>> drop({"base": {"kernel": 1}, "head": 2}, lambda path: path.startswith("base/"))
        {'head': 2}
    """

    def keep(tree: PyTree, path: str) -> PyTree:
        if not isinstance(tree, dict):
            return None if predicate(path.removeprefix("/")) else tree
        kept = {
            name: keep(below, f"{path}/{name}" if path else name) for name, below in tree.items()
        }
        return {name: below for name, below in kept.items() if below is not None} or None

    return keep(tree, "") or {}


def overlay(tree: PyTree, other: PyTree) -> PyTree:
    """Replace leaves by those of another pytree, and add those that are missing.

    Args:
        tree: nested dicts.
        other: nested dicts.

    Examples:
        >>> from metajax.tree import overlay
        >>> overlay({"norm": {"scale": 1, "bias": 2}}, {"norm": {"bias": 3}, "head": 4})
        {'norm': {'scale': 1, 'bias': 3}, 'head': 4}
    """
    if not (isinstance(tree, dict) and isinstance(other, dict)):
        return other
    changed = {name: overlay(tree[name], other[name]) for name in tree if name in other}
    return tree | changed | {name: leaf for name, leaf in other.items() if name not in tree}
