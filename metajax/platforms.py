"""The platform that a program is compiled for: tracing chooses by it."""

import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax

# A GPU's compiler spends most of its time on a search for the tiles of fused softmaxes and norms.
# Without it, BERT-base's meta-gradient compiles in a seventh of the time and moves 2% fewer bytes.
_ALWAYS: dict[str, dict[str, Any]] = {"gpu": {"xla_disable_hlo_passes": "triton-softmax-rewriter"}}
# With the CPU's older emitters, programs are somewhat slower. With a TPU's lowest effort, the same
# meta-gradient compiles in a seventh of the time, too, but takes 1.7 times as long by an estimate.
_QUICK: dict[str, dict[str, Any]] = {
    "cpu": {"xla_cpu_use_fusion_emitters": False},
    "tpu": {"exec_time_optimization_effort": -1.0},
}
# A TPU's run of this many tasks on each device compiles with full effort. By the same estimate,
# BERT-base breaks even at 2,600 tasks on a v5e, if it compiles in as many seconds as CPU seconds.
_LONG_FROM = 3000

# The caches of `jax.jit` tell its values apart.
_PLATFORM = jax.make_user_context()


def compiling_for(platform: str) -> AbstractContextManager[None]:
    """Trace for a platform that may not be present, such as `tpu`.

    Inside this context manager `target_platform` returns the platform.

    Args:
        platform: `cpu`, `gpu` or `tpu`.

    Examples:
        >>> with compiling_for("tpu"):
        ...     target_platform()
        'tpu'
    """
    return _PLATFORM(platform)


def target_platform() -> str:
    """Return the platform that programs are compiled for: by default, JAX's default backend."""
    return _PLATFORM.value or jax.default_backend()


def full_jit(function: Callable[..., Any]) -> jax.stages.Wrapped:
    """Return `jax.jit(function)` with the compiler options of a program that runs often."""
    return jax.jit(function, compiler_options=xla_options(quick=False))


def quick_jit(function: Callable[..., Any], *, donate_argnums: Any = ()) -> jax.stages.Wrapped:
    """Return `jax.jit(function)`, which compiles in less time.

    For the programs of few-shot adaptation and predictions, which often run for seconds only.
    """
    options = xla_options(quick=True)
    return jax.jit(function, donate_argnums=donate_argnums, compiler_options=options)


def xla_options(*, quick: bool) -> dict[str, Any]:
    """Return the compiler options of a program. What the user has set stays.

    Args:
        quick: whether it should compile in less time, though it may be slower.
    """
    platform = target_platform()
    chosen = _ALWAYS.get(platform, {}) | (_QUICK.get(platform, {}) if quick else {})
    return chosen if _may_choose(platform) else {}


def _may_choose(platform: str) -> bool:
    """Return whether the options of a platform are known to XLA and not set by the user."""
    if platform == "gpu":
        return "xla_disable_hlo_passes" not in os.environ.get("XLA_FLAGS", "")
    if platform == "tpu":
        return not jax.config.jax_exec_time_optimization_effort  # type: ignore[attr-defined]
    return platform != "cpu" or _is_known()


def is_short(num_tasks: int) -> bool:
    """Whether a run should compile quickly, if each device computes so many tasks in all steps."""
    return target_platform() == "tpu" and num_tasks < _LONG_FROM


@functools.cache
def _is_known() -> bool:
    """Return whether this version of XLA knows the options for a CPU; a later one may not."""
    try:
        jax.jit(lambda: 0, compiler_options=_QUICK["cpu"]).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
