"""Fixtures: eight simulated devices, and programs that compile quickly or in float64."""

import gc
import os
from collections.abc import Iterator

import jax
import pytest

from tests.stage_fixtures import chain, compiled, evaluation, material, refused  # noqa: F401
from tests.xla_flags import quick_flags

if "PYTEST_XDIST_WORKER" not in os.environ:  # Workers inherit them.
    os.environ["XLA_FLAGS"] = quick_flags()

# Tracing creates millions of objects. With Python's default thresholds, garbage collection takes a
# tenth of the tests' time.
gc.set_threshold(100_000, 50, 100)

# The fixtures `x64` and `optimized` turn optimizations on again where a test needs exact numbers.
# JAX has been imported already. Processes that tests start read the environment.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)
# Only for this process. Other devices than the CPU work for tests of one device (docs/gpu.md).
_PLATFORM = os.environ.get("METAJAX_TEST_PLATFORM", "cpu")
jax.config.update("jax_platforms", _PLATFORM)
if _PLATFORM == "cpu":
    jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees one device by default; tests of several devices name them."""
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: first)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)


@pytest.fixture
def optimized() -> Iterator[None]:
    """Use the optimizations that users have, only in this test."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def x64(optimized) -> Iterator[None]:
    """Use float64 and the optimizations that users have, only in this test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def abandoned() -> Iterator[None]:
    """Collect what Orbax leaves running when it fails, within the test."""
    yield
    gc.collect()


@pytest.hookimpl(tryfirst=True)  # Before xdist looks for groups, also if only one file is run.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run all tests of the chain in one worker, so that the chain runs once."""
    for item in items:
        if "chain" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("chain"))
