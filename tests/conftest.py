"""Eight simulated devices in the test process, and float64 where exactness is the point."""

from collections.abc import Iterator

import jax
import pytest

# Before the first computation; unlike an environment variable it stays in this process.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# Most of the tests' time is the compiler's.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default a test sees one device; those about many name them."""
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: first)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 in this test only."""
    with jax.enable_x64(True):
        yield
