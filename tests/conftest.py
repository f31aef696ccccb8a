"""Eight simulated devices in the test process, and float64 where exactness is the point."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator

import jax
import pytest

# Most of the tests' time is the compiler's; with these it takes a third. XLA ends a process whose
# flags it does not know, and they are not for ever: they are tried once, and workers inherit them.
_QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if "PYTEST_XDIST_WORKER" not in os.environ:
    quick = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}"}
    asked = [sys.executable, "-c", "import jax; jax.devices()"]
    known = subprocess.run(asked, env=os.environ | quick | {"JAX_PLATFORMS": "cpu"}, check=False)
    if known.returncode == 0:
        os.environ |= quick
    else:
        print(f"XLA does not know {_QUICK} any more: the tests take three times as long")

# Tracing makes objects by the million, and each collection looks at all that JAX keeps: a tenth of
# the tests' time at Python's own thresholds.
gc.set_threshold(100_000, 50, 100)

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
def x64() -> Iterator[None]:
    """Float64 in this test only."""
    with jax.enable_x64(True):
        yield
