"""The layers of all architectures: dense layers, norms, activations, dropout.

All can be differentiated any number of times, in either mode: dropout masks depend only on the key.
Results have the dtype of the input; parameters are cast to it where they are used. Statistics are
computed in at least float32.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from metajax.dtypes import at_least_float32


def gelu(x: jax.Array) -> jax.Array:
    """The exact form x Phi(x), by erf; `jax.nn.gelu` uses the slower erfc."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


ACTIVATION: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Set a fraction `rate` of the elements to zero, and scale the others up; None returns x."""
    if key is None or rate == 0:
        return x
    return jnp.where(keep_mask(key, x.shape, rate), x / (1 - rate), jnp.zeros((), x.dtype))


def keep_mask(key: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """Return booleans of `shape`, each true with probability 1 - rate.

    The result is a pure function of the key. On a CPU, Threefry would take as long as the matrix
    products of a block. So the key only seeds a counter-based hash (two rounds of Wellons'
    `lowbias32`), which XLA fuses with its user. Unlike `rng_bit_generator`, it gives the same
    result under `vmap` over keys as in a loop.
    """
    seed = jax.random.bits(key, (2,), jnp.uint32)
    index = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    hashed = _lowbias32(_lowbias32(index ^ seed[0]) + seed[1])
    return hashed >= jnp.uint32(round(rate * 2**32))


def _lowbias32(x: jax.Array) -> jax.Array:
    """https://nullprogram.com/blog/2018/07/31/ ."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def normal(key: jax.Array, shape: tuple[int, ...], scale: float) -> jax.Array:
    """BERT's initial weights, always in float32."""
    return scale * jax.random.normal(key, shape, jnp.float32)


class Dense(nnx.Module):
    """x @ kernel + bias, in the dtype of x.

    With a low-rank adapter (`metajax.lora.attach`), x @ down @ up is added: the kernel is shared by
    tasks under `vmap`, and its product is one for all of them.
    """

    down: nnx.Param[jax.Array]
    up: nnx.Param[jax.Array]

    def __init__(
        self, size_in: int, size_out: int, scale: float, *, rngs: nnx.Rngs, bias: bool = True
    ):
        self.kernel = nnx.Param(normal(rngs.params(), (size_in, size_out), scale))
        if bias:
            self.bias = nnx.Param(jnp.zeros(size_out, jnp.float32))

    def __call__(self, x: jax.Array, dtype: Any = None) -> jax.Array:
        """`[..., size_in]` to `[..., size_out]`, in the dtype of x or a wider one."""
        # As one matrix: the kernel's gradient is then a plain product, half as long on a CPU.
        flat = x.reshape(-1, x.shape[-1])
        rows = jnp.matmul(flat, self.kernel.astype(x.dtype), preferred_element_type=dtype)
        if hasattr(self, "down"):
            rows = rows + flat @ self.down.astype(x.dtype) @ self.up.astype(x.dtype)
        if hasattr(self, "bias"):
            rows = rows + self.bias.astype(rows.dtype)
        return rows.reshape(*x.shape[:-1], -1)


class LayerNorm(nnx.Module):
    """Normalize the last axis; the result has the dtype of x."""

    def __init__(self, size: int, epsilon: float, *, bias: bool = True):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(size, jnp.float32))
        if bias:
            self.bias = nnx.Param(jnp.zeros(size, jnp.float32))

    @jax.named_scope("layer_norm")
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., size]` to the same."""
        wide = x.astype(at_least_float32(x.dtype))
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.epsilon)
        scaled = normed * self.scale.astype(wide.dtype)
        if hasattr(self, "bias"):
            scaled = scaled + self.bias.astype(wide.dtype)
        return scaled.astype(x.dtype)


class RMSNorm(nnx.Module):
    """Divide the last axis by its root mean square (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, size: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(size, jnp.float32))

    @jax.named_scope("layer_norm")
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., size]` to the same."""
        wide = x.astype(at_least_float32(x.dtype))
        square = jnp.square(wide).mean(-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(square + self.epsilon)
        return (normed * self.scale.astype(wide.dtype)).astype(x.dtype)
