"""XLA flags for the tests, which mostly wait for the compiler."""

import os
import subprocess
import sys
from collections.abc import Sequence

_ASKED = "METAJAX_TEST_XLA_FLAGS_ARE_SET"
# One thread compiles with the older emitters, in half the time.
_QUICK = ("--xla_cpu_parallel_codegen_split_count=1", "--xla_cpu_use_fusion_emitters=false")


def quick_flags() -> str:
    """Return `XLA_FLAGS` with the flags for quick compilation that this version of XLA knows."""
    given = os.environ.get("XLA_FLAGS", "").split()
    if _ASKED not in os.environ:  # Set by this process or by its parent.
        os.environ[_ASKED] = "1"
        given += _QUICK if _known(_QUICK) else [flag for flag in _QUICK if _known([flag])]
    return " ".join(given)


def _known(flags: Sequence[str]) -> bool:
    # XLA ends a process with unknown flags.
    asked = [sys.executable, "-c", "import jax; jax.devices()"]
    environ = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(asked, env=environ, check=False, stderr=subprocess.DEVNULL)
    return done.returncode == 0
