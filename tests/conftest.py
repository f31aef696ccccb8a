"""Eight simulated devices, and programs that compile quickly or, for exactness, in float64."""

import gc
import os
from collections.abc import Iterator

import jax
import pytest

from tests.stage_fixtures import chain, compiled, evaluation, material, refused  # noqa: F401
from tests.xla_flags import quick_flags

if "PYTEST_XDIST_WORKER" not in os.environ:  # Workers inherit them.
    os.environ["XLA_FLAGS"] = quick_flags()

# Tracing makes objects by the million, and each collection looks at all that JAX keeps: a tenth of
# the tests' time at Python's own thresholds.
gc.set_threshold(100_000, 50, 100)

# Where numbers are the point, the fixtures `x64` and `optimised` turn optimisations on again.
# JAX is imported by now; the processes that tests start read the environment.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)
# These stay in this process. Other devices than the CPU are for the tests of one (docs/gpu.md).
_PLATFORM = os.environ.get("METAJAX_TEST_PLATFORM", "cpu")
jax.config.update("jax_platforms", _PLATFORM)
if _PLATFORM == "cpu":
    jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default a test sees one device; those about many name them."""
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: first)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)


@pytest.fixture
def optimised() -> Iterator[None]:
    """Programs optimised as users' are, in this test only."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def x64(optimised) -> Iterator[None]:
    """Float64, and programs optimised as users' are, in this test only."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def abandoned() -> Iterator[None]:
    """What Orbax leaves running when it fails is thrown away within the test."""
    yield
    gc.collect()


@pytest.hookimpl(tryfirst=True)  # Before xdist looks for groups, also where one file is named.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks at the chain goes to one worker, so that it is run once."""
    for item in items:
        if "chain" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("chain"))
