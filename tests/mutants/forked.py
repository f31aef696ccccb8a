"""Run pytest on a copy of the tree, in a process forked after importing the libraries.

Importing the libraries would take most of each run.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.mutants import ROOT
from tests.xla_flags import quick_flags

_LIBRARIES = (
    "datasets", "flax.nnx", "jax", "matplotlib.pyplot", "optax", "orbax.checkpoint.experimental.v1",
    "pytest", "scipy.stats", "sklearn.linear_model", "torch", "transformers",
)  # fmt: skip


def prepare() -> None:
    """Configure the server that processes are forked from. Call this once."""
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "XLA_FLAGS": quick_flags()}
    multiprocessing.set_start_method("forkserver")
    multiprocessing.set_forkserver_preload(list(_LIBRARIES))


def cache_of(tree: Path) -> Path:
    """The cache of compiled programs, so that unchanged programs are not compiled again."""
    return tree.with_name(f"{tree.name}-xla")


def output_of(tree: Path) -> Path:
    """The file with the output of pytest."""
    return tree.with_name(f"{tree.name}-output.txt")


def _pytest(tree: Path, tests: Sequence[str]) -> None:
    """Run tests of a tree in this forked process, and end it."""
    os.setsid()  # Tests start processes, and all of them may have to be ended.
    with output_of(tree).open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(tree)
    # Only import `tests` from the tree.
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "metajax")]:
        del sys.modules[name]
    sys.path = [str(tree), *(path for path in sys.path if Path(path).resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(tree)
    cache = {
        "jax_compilation_cache_dir": str(cache_of(tree)),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    import jax
    import pytest

    for name, value in cache.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)
    quietly = (
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    )  # For modules that are imported already.
    status: int = pytest.ExitCode.INTERNAL_ERROR
    try:
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *quietly, *tests])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # An exception would give the exit status of a failing test.


def run_tests(tree: Path, tests: Sequence[str], seconds: float | None = None) -> int | None:
    """Return pytest's exit status for some tests of a tree; None if they took too long."""
    process = multiprocessing.Process(target=_pytest, args=(tree, tests))
    process.start()
    process.join(seconds)
    status = process.exitcode
    process.kill()
    with contextlib.suppress(ProcessLookupError):  # Processes that its tests may have started.
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return status
