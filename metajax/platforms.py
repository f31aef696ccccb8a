"""The platform that a program is compiled for: tracing chooses by it."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax

# Options of the compilers for programs that run only a few times. Their programs are slower: on a
# CPU, with its older emitters, somewhat, and on a TPU BERT-base's meta-gradient by 0.7 (it compiles
# in a seventh of the time).
_QUICK: dict[str, dict[str, Any]] = {
    "cpu": {"xla_cpu_use_fusion_emitters": False},
    "tpu": {"exec_time_optimization_effort": -1.0},
}

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
    """Return `jax.jit(function)`, which compiles on a CPU and on a TPU in less time.

    For the programs of few-shot adaptation and predictions, which often run for seconds only.
    """
    return jax.jit(function, donate_argnums=donate_argnums, compiler_options=quick_options())


def quick_options() -> dict[str, Any]:
    """Return the compiler options of `quick_jit`: none for a GPU, whose compiler has no such."""
    platform = target_platform()
    return dict(_QUICK.get(platform, {})) if platform != "cpu" or _is_known() else {}


@functools.cache
def _is_known() -> bool:
    """Return whether this version of XLA knows the options for a CPU; a later one may not."""
    try:
        jax.jit(lambda: 0, compiler_options=_QUICK["cpu"]).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
