"""The platform that a program is compiled for: tracing chooses by it."""

import functools
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
# From about this many tasks on each device on, the time of a TPU's steps matters more: with full
# effort, BERT-base takes 351 more CPU seconds to compile for a v5e, and 0.54 seconds less for four
# tasks of 64 texts, by the estimate.
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


def quick_jit(function: Callable[..., Any], *, donate_argnums: Any = ()) -> jax.stages.Wrapped:
    """Return `jax.jit(function)`, which compiles in less time.

    For the programs of few-shot adaptation and predictions, which often run for seconds only.
    """
    options = xla_options(quick=True)
    return jax.jit(function, donate_argnums=donate_argnums, compiler_options=options)


def xla_options(*, quick: bool) -> dict[str, Any]:
    """Return the compiler options of a program.

    Args:
        quick: whether it should compile in less time, though it may be slower.
    """
    platform = target_platform()
    quick = quick and (platform != "cpu" or _is_known())
    return _ALWAYS.get(platform, {}) | (_QUICK.get(platform, {}) if quick else {})


def is_short(num_tasks: int) -> bool:
    """Whether a run should compile quickly, if each device computes so many tasks in all."""
    return target_platform() == "tpu" and num_tasks < _LONG_FROM


@functools.cache
def _is_known() -> bool:
    """Return whether this version of XLA knows the options for a CPU; a later one may not."""
    try:
        jax.jit(lambda: 0, compiler_options=_QUICK["cpu"]).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
