"""Clipping of gradients that can be differentiated."""

from typing import Any

import jax.numpy as jnp
import optax

from metajax.dtypes import narrow, widen
from metajax.types import Params


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale a gradient down to a maximum norm (Pascanu et al. 2013, arXiv:1211.5063, algorithm 1).

    Optax's clipping with two changes, for the inner loop and for half precision. It has a finite
    derivative at a gradient of zero. The norm is in at least float32: float16 overflows at 65,504.

    Args:
        max_norm: the maximum, > 0.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> from metajax.algorithms.clipping import clip_by_global_norm
        >>> inner_optimizer = optax.chain(clip_by_global_norm(2.5), optax.sgd(1.0))
        >>> state = inner_optimizer.init(jnp.zeros(2))
        >>> inner_optimizer.update(jnp.array([3.0, 4.0]), state)[0].tolist()
        [-1.5, -2.0]
    """

    def update(grads: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        wide = widen(grads)
        squared = optax.tree.norm(wide, squared=True)
        norm = jnp.sqrt(jnp.where(squared > 0, squared, 1))
        # Multiply by one scalar. If a gradient is divided by the norm, XLA stores a second copy.
        factor = jnp.where(norm < max_norm, 1, max_norm / norm)
        return narrow(optax.tree.scale(factor, wide), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
