"""Fixtures: eight simulated devices, and programs that compile quickly, once, or in float64."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator

import jax
import pytest
import tiny

from tests.stage_fixtures import chain, compiled, evaluation, material, refused  # noqa: F401
from tests.xla_flags import quick_flags

if "PYTEST_XDIST_WORKER" not in os.environ:  # Workers inherit them.
    os.environ["XLA_FLAGS"] = quick_flags()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="metajax-tests-")
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
    # Keep all programs. Most compile in a moment: operations on one array.
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
# JAX has been imported already. Processes that tests start read the environment.
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

# Tracing creates millions of objects. With Python's default thresholds, garbage collection takes a
# tenth of the tests' time.
gc.set_threshold(100_000, 50, 100)

# The fixture `optimized` turns optimizations on again where a test needs them.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)
# Only for this process. Other devices than the CPU work for tests of one device (docs/gpu.md).
_PLATFORM = os.environ.get("METAJAX_TEST_PLATFORM", "cpu")
jax.config.update("jax_platforms", _PLATFORM)
if _PLATFORM == "cpu":
    jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True)
def one_device() -> Iterator[None]:
    """A test sees one device by default; tests of several devices name them."""
    with tiny.one_device():
        yield


@pytest.fixture
def optimized() -> Iterator[None]:
    """Use the optimizations that users have, only in this test."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def x64() -> Iterator[None]:
    """Use float64, only in this test.

    With `optimized`, programs are also those that users have: in an exact test of each engine.
    """
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
