"""Float64 for whole networks."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 alone: optimizing these programs would take the compiler three times as long.

    `test_parity.py` compares optimized ones with transformers.
    """
    with jax.enable_x64(True):
        yield
