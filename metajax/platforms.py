"""The platform that a program is compiled for: tracing chooses by it."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax

# The older emitters of the CPU's compiler. Their programs are somewhat slower.
_QUICK = {"xla_cpu_use_fusion_emitters": False}

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


def quick_jit(function: Callable[..., Any], *, donate_argnums: Any = ()) -> Callable[..., Any]:
    """Return `jax.jit(function)`, which compiles on a CPU in less time and memory.

    For the programs of few-shot adaptation and predictions, which often run for seconds only.
    """
    return jax.jit(function, donate_argnums=donate_argnums, compiler_options=quick_options())


def quick_options() -> dict[str, bool]:
    """Return the compiler options of `quick_jit`: none for another platform than a CPU."""
    return dict(_QUICK) if target_platform() == "cpu" and _is_known() else {}


@functools.cache
def _is_known() -> bool:
    """Return whether this version of XLA knows the options; a later one may not."""
    try:
        jax.jit(lambda: 0, compiler_options=_QUICK).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
