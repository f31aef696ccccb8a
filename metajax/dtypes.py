"""Functions of the dtypes of leaves: which have gradients, and the precision of sums."""

from typing import Any

import jax
import jax.numpy as jnp

from metajax.types import PyTree


def is_float(leaf: Any) -> bool:
    """Return whether a leaf can have a gradient."""
    return jnp.issubdtype(leaf.dtype if hasattr(leaf, "dtype") else type(leaf), jnp.inexact)


def at_least_float32(dtype: Any) -> Any:
    """Return the dtype for sums: float32 instead of float16 and bfloat16."""
    low = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if low else dtype


def widen(tree: PyTree) -> PyTree:
    """Convert the float16 and bfloat16 arrays of a pytree to float32."""
    return jax.tree.map(lambda leaf: leaf.astype(at_least_float32(leaf.dtype)), tree)


def narrow(tree: PyTree, like: PyTree) -> PyTree:
    """Convert the arrays of a pytree to the dtypes of another pytree."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)
