"""Tensors in files, which are read when they are used."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metajax.errors import InputError, reason_of

# The names of safetensors and PyTorch.
_FLOATS = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}
# Not weights: positions from 0 on, and attention masks.
BUFFER = re.compile(r"(position_ids|token_type_ids|attn\.(masked_)?bias)$")


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file, or a part of one.

    Attributes:
        shape: its shape.
        read: reads it.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: np.ndarray) -> "Stored":
        """Return an array that has been read already."""
        return cls(array.shape, lambda: array)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def T(self) -> "Stored":  # noqa: N802 (numpy's name)
        """The transpose."""
        return self.map(np.transpose)

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> "Stored":
        """Return what a function makes of the tensor, such as a slice, once it is read."""
        # A view of this shape that takes no memory.
        view = np.broadcast_to(np.float32(0), self.shape)
        return Stored(change(view).shape, lambda: change(self.read()))

    def split(self, count: int) -> list["Stored"]:
        """Split the first axis as `np.array_split` does."""
        if not self.ndim:
            return [self]
        part = lambda i: lambda value: np.array_split(value, count)[i]  # noqa: E731
        return [self.map(part(i)) for i in range(count)]


Reader = Callable[[Path], dict[str, Stored]]


def read_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name, each of which is read when it is used."""
    with _open_safetensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        _check_types(path, {name: each.get_dtype() for name, each in slices.items()})
        return {
            name: Stored(tuple(each.get_shape()), functools.partial(_read_tensor, path, name))
            for name, each in slices.items()
        }


def _read_tensor(path: Path, name: str) -> np.ndarray:
    # Pages of an open file would stay in memory.
    with _open_safetensors(path) as file:
        return file.get_tensor(name)


@contextlib.contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    import safetensors

    try:
        with safetensors.safe_open(path, "numpy") as file:
            yield file
    except InputError:
        raise
    except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: truncated or not safetensors ({reason_of(error)}); fetch it again"
        ) from error


def read_torch(path: Path) -> dict[str, Stored]:
    """The tensors of PyTorch's file by name, in float32."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: needs PyTorch; install torch, or give the same model with model.safetensors"
        ) from error
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
        _check_types(path, types)
        arrays = {name: tensor.float().numpy() for name, tensor in tensors.items()}
        return {name: Stored.of(array) for name, array in arrays.items()}
    except InputError:
        raise
    except Exception as error:  # torch.load raises whatever its parsers raise
        raise InputError(
            f"{path}: truncated, or holds more than plain tensors; fetch it again, or give "
            "model.safetensors"
        ) from error


def _check_types(path: Path, types: Mapping[str, str]) -> None:
    """Refuse dtypes other than plain floating-point, such as those of a quantized model."""
    for name, kind in types.items():
        if kind not in _FLOATS and not BUFFER.search(name):
            raise InputError(
                f"{path}: the tensor {name} is of type {kind}, and only float64, float32, float16 "
                "and bfloat16 are supported; give the weights of the model before quantization"
            )
