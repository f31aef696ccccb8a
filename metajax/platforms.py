"""The platform that a program is compiled for: tracing chooses by it."""

from contextlib import AbstractContextManager

import jax

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
