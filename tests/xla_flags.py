"""XLA's flags for the tests, whose time is mostly the compiler's."""

import os
import subprocess
import sys
from collections.abc import Sequence

_ASKED = "METAJAX_TEST_XLA_FLAGS_ARE_SET"
# One thread compiles a program, by the older emitters: half the time.
_QUICK = ("--xla_cpu_parallel_codegen_split_count=1", "--xla_cpu_use_fusion_emitters=false")


def quick_flags() -> str:
    """`XLA_FLAGS` with those for quick compilation that this version of XLA knows."""
    given = os.environ.get("XLA_FLAGS", "").split()
    if _ASKED not in os.environ:  # By this process or one that it was started from.
        os.environ[_ASKED] = "1"
        given += _QUICK if _known(_QUICK) else [flag for flag in _QUICK if _known([flag])]
    return " ".join(given)


def _known(flags: Sequence[str]) -> bool:
    # XLA ends a process whose flags it does not know.
    asked = [sys.executable, "-c", "import jax; jax.devices()"]
    environ = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(asked, env=environ, check=False, stderr=subprocess.DEVNULL)
    return done.returncode == 0
