"""Eight simulated devices in the test process, and float64 where exactness is the point."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import jax
import pytest

# Most of the tests' time is the compiler's; with these it takes a third. XLA ends a process whose
# flags it does not know, and they are not for ever: they are tried once, and workers inherit them.
_QUICK = (
    "--xla_cpu_opt_preset=FAST_COMPILE",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_use_fusion_emitters=false",
)


def _with_flags(flags: Sequence[str]) -> dict[str, str]:
    return {"XLA_FLAGS": " ".join([os.environ.get("XLA_FLAGS", ""), *flags])}


def _known(*flags: str) -> bool:
    asked = [sys.executable, "-c", "import jax; jax.devices()"]
    environ = os.environ | _with_flags(flags) | {"JAX_PLATFORMS": "cpu"}
    return (
        subprocess.run(asked, env=environ, check=False, stderr=subprocess.DEVNULL).returncode == 0
    )


if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ |= _with_flags(_QUICK if _known(*_QUICK) else list(filter(_known, _QUICK)))

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
