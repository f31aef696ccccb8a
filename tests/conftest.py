"""Eight simulated devices in the test process, and float64 where exactness is the point."""

import os
import subprocess
import sys
from collections.abc import Iterator

import jax
import pytest

# Most of the tests' time is the compiler's; with these it takes a third. XLA ends a process whose
# flags it does not know, and they are not for ever: they are tried once, and workers inherit them.
_QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if _QUICK not in (flags := os.environ.get("XLA_FLAGS", "")):
    quick = os.environ | {"XLA_FLAGS": f"{flags} {_QUICK}", "JAX_PLATFORMS": "cpu"}
    asked = [sys.executable, "-c", "import jax; jax.devices()"]
    if not subprocess.run(asked, env=quick, capture_output=True, check=False).returncode:
        os.environ["XLA_FLAGS"] = quick["XLA_FLAGS"]

# JAX is imported by now; the processes that tests start read the environment.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)
# These stay in this process.
jax.config.update("jax_platforms", "cpu")
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
