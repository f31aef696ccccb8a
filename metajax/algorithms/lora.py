"""Low-rank adapters (LoRA: Hu et al. 2021, arXiv:2106.09685), as a change of parameters.

For the inner loop to move the adapters alone, while the outer loop trains everything:

    from metajax.algorithms import lora
    params = lora.init(params, rank=8, chosen=lambda path: path.endswith("qkv/kernel"), rng=key)
    algorithm = metajax.maml(lora.loss(loss_fn), optax.sgd(0.1), 3, adapted=lora.is_adapter)

A start or a reduction that was made for the plain parameters goes through `lora.start` and
`lora.reduce`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.tree import extend, select
from metajax.types import Batch, Key, LossFn, Params, Reduce, Reduced, Start, Task


def init(
    params: Params, *, rank: int, chosen: Callable[[str], bool], rng: Key, scale: float = 1.0
) -> Params:
    """Adds adapters that change nothing yet.

    Args:
        params: any pytree.
        rank: r > 0.
        chosen: of a parameter's path, whether it gets an adapter; kernels `[..., in, out]`.
        rng: of the adapters' first factors.
        scale: of these factors' entries, times 1 / sqrt(in).

    Returns:
        `{"base", "adapters"}`: of a chosen kernel the factors `{"down" [..., in, r], "up" [..., r,
        out]}`, the latter zero.

    Raises:
        ValueError: nothing is chosen, a chosen parameter is no kernel, or rank < 1.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from metajax.algorithms import lora
        >>> plain = {"kernel": jnp.ones((6, 5)), "bias": jnp.zeros(5)}
        >>> params = lora.init(
        ...     plain, rank=2, chosen=lambda path: path == "kernel", rng=jax.random.key(0))
        >>> params["adapters"]["kernel"]["down"].shape, params["adapters"]["kernel"]["up"].shape
        ((6, 2), (2, 5))
    """
    kernels, treedef = jax.tree.flatten(select(params, chosen)[0])
    if not kernels or rank < 1 or min(kernel.ndim for kernel in kernels) < 2:
        raise ValueError(
            f"rank is {rank} and {len(kernels)} parameters are chosen: give a rank of at least 1 "
            "and choose kernels [..., in, out]"
        )

    def factors(kernel: jax.Array, key: Key) -> Params:
        *stack, size_in, size_out = kernel.shape
        down = jax.random.normal(key, (*stack, size_in, rank), kernel.dtype) * size_in**-0.5
        return {"down": scale * down, "up": jnp.zeros((*stack, rank, size_out), kernel.dtype)}

    keys = jax.random.split(rng, len(kernels))
    adapters = jax.tree.unflatten(treedef, list(map(factors, kernels, keys)))
    return {"base": params, "adapters": adapters}


def is_adapter(path: str) -> bool:
    """Whether a path is that of an adapter, for `adapted`.

    Args:
        path: of a parameter in what `init` returns.

    Examples:
        >>> from metajax.algorithms import lora
        >>> lora.is_adapter("adapters/kernel/up"), lora.is_adapter("base/kernel")
        (True, False)
    """
    return path.startswith("adapters/")


def merge(params: Params) -> Params:
    """The parameters with their adapters added in: each kernel plus `down @ up`.

    Args:
        params: `{"base", "adapters"}`, as `init` returns them.

    Returns:
        Parameters like the base, of the same shapes.

    Examples:
        >>> import jax.numpy as jnp
        >>> from metajax.algorithms import lora
        >>> factors = {"down": jnp.ones((3, 1)), "up": jnp.ones((1, 2))}
        >>> base, adapters = {"kernel": jnp.zeros((3, 2))}, {"kernel": factors}
        >>> lora.merge({"base": base, "adapters": adapters})["kernel"].tolist()
        [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """

    def add(kernel: Any, adapter: Any) -> Any:
        return kernel if adapter is None else kernel + adapter["down"] @ adapter["up"]

    # A start may have added a head, which has none.
    adapters = extend(params["adapters"], params["base"], None)
    return jax.tree.map(add, params["base"], adapters)


def loss(loss_fn: LossFn) -> LossFn:
    """The loss of parameters with adapters.

    Args:
        loss_fn: of plain parameters.

    Returns:
        The same, of what `init` returns.

    Examples:
        >>> import jax, jax.numpy as jnp, metajax, optax
        >>> from metajax.algorithms import lora
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.mean((batch @ params["kernel"]) ** 2), {}
        >>> algorithm = metajax.maml(
        ...     lora.loss(loss_fn), optax.sgd(0.1), num_steps=2, adapted=lora.is_adapter)
        >>> params = lora.init(
        ...     {"kernel": jnp.eye(4)}, rank=1, chosen=lambda path: True, rng=jax.random.key(0))
        >>> adapted, info = algorithm.adapt(params, jnp.eye(4), None)
        >>> bool((adapted["base"]["kernel"] == jnp.eye(4)).all()), info.support_loss.shape
        (True, (2,))
    """

    def adapted_loss(params: Params, batch: Batch, rng: Key | None) -> tuple[jax.Array, Any]:
        return loss_fn(merge(params), batch, rng)

    return adapted_loss


def start(start: Start) -> Start:
    """A start of plain parameters for those with adapters; what it adds (a head) joins the base.

    Args:
        start: `(params, support, rng) -> params`, as `metajax.maml` takes it.

    Returns:
        The same, of what `init` returns.

    Examples:
        >>> import jax.numpy as jnp
        >>> from metajax.algorithms import lora
        >>> begin = lora.start(lambda params, support, rng: {**params, "head": jnp.zeros(2)})
        >>> params = {"base": {"bias": jnp.ones(3)}, "adapters": {"bias": None}}
        >>> sorted(begin(params, {}, None)["base"])
        ['bias', 'head']
    """

    def adapted_start(params: Params, support: Batch, rng: Key | None) -> Params:
        begun = start(merge(params), support, rng)
        added = {key: value for key, value in begun.items() if key not in params["base"]}
        return {**params, "base": {**params["base"], **added}}

    return adapted_start


def reduce(reduce: Reduce) -> Reduce:
    """A reduction of plain parameters for those with adapters; it must leave adapted kernels be.

    Args:
        reduce: `(params, task) -> (params, task, restore)`, as `metajax.maml` takes it.

    Returns:
        The same, of what `init` returns.

    Examples:
        >>> import jax.numpy as jnp, metajax
        >>> from metajax.algorithms import lora
        >>> def two_rows(params, task):
        ...     restore = lambda few: {"rows": params["rows"].at[:2].set(few["rows"])}
        ...     return {"rows": params["rows"][:2]}, task, restore
        >>> params = {"base": {"rows": jnp.ones(3)}, "adapters": {"rows": None}}
        >>> params, _, restore = lora.reduce(two_rows)(params, metajax.Task({}, {}))
        >>> params["base"]["rows"].shape, restore(params)["base"]["rows"].shape
        ((2,), (3,))
    """

    def adapted_reduce(params: Params, task: Task) -> Reduced:
        base, task, restore = reduce(params["base"], task)
        return (
            {**params, "base": base},
            task,
            lambda adapted: {**adapted, "base": restore(adapted["base"])},
        )

    return adapted_reduce
