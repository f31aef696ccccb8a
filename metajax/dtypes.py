"""Which leaves have gradients, and in what their sums are taken."""

from typing import Any

import jax
import jax.numpy as jnp

from metajax.types import PyTree


def is_float(leaf: Any) -> bool:
    """Whether a leaf can have a gradient."""
    return jnp.issubdtype(leaf.dtype if hasattr(leaf, "dtype") else type(leaf), jnp.inexact)


def at_least_float32(dtype: Any) -> Any:
    """The dtype for sums that low precision would spoil: float32 for float16 and bfloat16."""
    low = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if low else dtype


def widen(tree: PyTree) -> PyTree:
    """A pytree of arrays, those of float16 and bfloat16 as float32."""
    return jax.tree.map(lambda leaf: leaf.astype(at_least_float32(leaf.dtype)), tree)


def narrow(tree: PyTree, like: PyTree) -> PyTree:
    """A pytree of arrays in the dtypes of another one."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)
