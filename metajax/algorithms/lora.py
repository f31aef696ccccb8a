"""Low-rank adapters (LoRA: Hu et al. 2021, arXiv:2106.09685), as a reparametrization.

In this example the inner loop updates only the adapters, and the outer loop trains everything:

    from metajax.algorithms import lora
    params = lora.init(params, rank=8, target=lambda path: path.endswith("qkv/kernel"), rng=key)
    algorithm = metajax.maml(lora.loss(loss_fn), optax.sgd(0.1), 3, trainable=lora.is_adapter)

`lora.init_fn` and `lora.reparametrize` convert an `init_fn` or a `reparametrize` of the plain
parameters.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from metajax.tree import combine as join
from metajax.tree import extend, select
from metajax.types import Batch, InitFn, Key, LossFn, Params, Reparametrize, Reparametrized, Task

# `{"base", "adapters"}` to the parameters that a network reads.
_Combine: TypeAlias = Callable[[Params], Params]


def init(
    params: Params, *, rank: int, target: Callable[[str], bool], rng: Key, scale: float = 1.0
) -> Params:
    """Add adapters, initialized so that they do not change the output.

    Args:
        params: any pytree.
        rank: r > 0.
        target: predicate on a parameter's path; true if the parameter gets an adapter. It must be
            a kernel `[..., in, out]`.
        rng: key for the entries of the factors `down`.
        scale: factor on these entries; their standard deviation is scale / sqrt(in).

    Returns:
        `{"base", "adapters"}`. The adapter of a target has two factors, `{"down" [..., in, r],
        "up" [..., r, out]}`; `up` is zero.

    Raises:
        ValueError: there is no target, a target is not a kernel, or rank < 1.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from metajax.algorithms import lora
        >>> plain = {"kernel": jnp.ones((6, 5)), "bias": jnp.zeros(5)}
        >>> params = lora.init(
        ...     plain, rank=2, target=lambda path: path == "kernel", rng=jax.random.key(0))
        >>> params["adapters"]["kernel"]["down"].shape, params["adapters"]["kernel"]["up"].shape
        ((6, 2), (2, 5))
    """
    kernels, treedef = jax.tree.flatten(select(params, target)[0])
    if not kernels or rank < 1 or min(kernel.ndim for kernel in kernels) < 2:
        raise ValueError(
            f"rank is {rank} and there are {len(kernels)} targets; give a rank of at least 1 and "
            "kernels [..., in, out]"
        )

    def factors(kernel: jax.Array, key: Key) -> Params:
        *stack, size_in, size_out = kernel.shape
        down = jax.random.normal(key, (*stack, size_in, rank), kernel.dtype) * size_in**-0.5
        return {"down": scale * down, "up": jnp.zeros((*stack, rank, size_out), kernel.dtype)}

    keys = jax.random.split(rng, len(kernels))
    adapters = jax.tree.unflatten(treedef, list(map(factors, kernels, keys)))
    return {"base": params, "adapters": adapters}


def is_adapter(path: str) -> bool:
    """Return whether a path leads to an adapter, for `trainable`.

    Args:
        path: path of a parameter in the result of `init`.

    Examples:
        >>> from metajax.algorithms import lora
        >>> lora.is_adapter("adapters/kernel/up"), lora.is_adapter("base/kernel")
        (True, False)
    """
    return path.startswith("adapters/")


def merge(params: Params) -> Params:
    """Merge the adapters into the parameters: add `down @ up` to each kernel.

    Args:
        params: `{"base", "adapters"}`, from `init`.

    Returns:
        Parameters with the structure and shapes of the base.

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

    # An init_fn may have added a head, which has no adapter.
    adapters = extend(params["adapters"], params["base"], None)
    return jax.tree.map(add, params["base"], adapters)


def attach(params: Params) -> Params:
    """Put each adapter's factors next to its kernel, which does not change.

    For networks that compute `x W + (x A) B` themselves, as `metajax.Transformer` does. Tasks under
    `vmap` then share the kernels of the base; merged, each task has a kernel of its own.

    Args:
        params: `{"base", "adapters"}`, as `init` returns them; dicts and lists of arrays.

    Returns:
        Parameters like the base; each dict whose `kernel` has an adapter also has `down` and `up`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from metajax.algorithms import lora
        >>> factors = {"down": jnp.ones((3, 1)), "up": jnp.ones((1, 2))}
        >>> base = {"dense": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
        >>> adapters = {"dense": {"kernel": factors, "bias": None}}
        >>> sorted(lora.attach({"base": base, "adapters": adapters})["dense"])
        ['bias', 'down', 'kernel', 'up']
    """
    return _attach(params["base"], params["adapters"])


def _attach(base: Any, adapters: Any) -> Any:
    if adapters is None:  # A head that an `init_fn` has added.
        return base
    if isinstance(base, list):
        return [_attach(*each) for each in zip(base, adapters, strict=True)]
    if not isinstance(base, dict):
        return base
    attached = {key: _attach(leaf, adapters.get(key)) for key, leaf in base.items()}
    return attached | (adapters.get("kernel") or {})


def freeze(combine: _Combine, head: Callable[[str], bool] = lambda path: False) -> _Combine:
    """Freeze the base: `merge` or `attach` then passes no gradient to it.

    Args:
        combine: `merge` or `attach`.
        head: predicate on a path in the base; true for what the inner loop adapts besides the
            adapters, such as a head that `init_fn` adds.

    Returns:
        The same function with a constant base. With `frozen=lora.is_base`, `metajax.outer_loop`
        keeps no optimizer state for it.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from metajax.algorithms import lora
        >>> factors = {"down": jnp.ones((3, 1)), "up": jnp.ones((1, 2))}
        >>> params = {"base": {"kernel": jnp.zeros((3, 2))}, "adapters": {"kernel": factors}}
        >>> total = lambda params: lora.freeze(lora.merge)(params)["kernel"].sum()
        >>> float(abs(jax.grad(total)(params)["base"]["kernel"]).max())
        0.0
    """

    def frozen(params: Params) -> Params:
        adapted, rest = select(params["base"], head)
        return combine({**params, "base": join(adapted, jax.lax.stop_gradient(rest))})

    return frozen


def is_base(path: str) -> bool:
    """Whether a path belongs to the base, for `frozen` of `metajax.outer_loop`.

    Args:
        path: of a parameter in what `init` returns, or in the meta-parameters of an algorithm with
            learned rates (`metajax.meta_sgd`), whose rates do not belong to the base.

    Examples:
        >>> from metajax.algorithms import lora
        >>> lora.is_base("adapters/kernel/up"), lora.is_base("base/kernel")
        (False, True)
        >>> lora.is_base("params/base/kernel"), lora.is_base("rates/adapters/kernel/up")
        (True, False)
    """
    return path.removeprefix("params/").startswith("base/")


def loss(loss_fn: LossFn, combine: _Combine = merge) -> LossFn:
    """Convert a loss of plain parameters to a loss of parameters with adapters.

    Args:
        loss_fn: loss function of plain parameters; with `attach`, of a network that reads the
            factors.
        combine: `merge`, `attach`, or `freeze` of one of them.

    Returns:
        The loss function of parameters from `init`.

    Examples:
        >>> import jax, jax.numpy as jnp, metajax, optax
        >>> from metajax.algorithms import lora
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.mean((batch @ params["kernel"]) ** 2), {}
        >>> algorithm = metajax.maml(
        ...     lora.loss(loss_fn), optax.sgd(0.1), num_steps=2, trainable=lora.is_adapter)
        >>> params = lora.init(
        ...     {"kernel": jnp.eye(4)}, rank=1, target=lambda path: True, rng=jax.random.key(0))
        >>> adapted, info = algorithm.adapt(params, jnp.eye(4), None)
        >>> bool((adapted["base"]["kernel"] == jnp.eye(4)).all()), info.support_loss.shape
        (True, (2,))
    """

    def adapted_loss(params: Params, batch: Batch, rng: Key | None) -> tuple[jax.Array, Any]:
        return loss_fn(combine(params), batch, rng)

    return adapted_loss


def init_fn(init_fn: InitFn, combine: _Combine = merge) -> InitFn:
    """Convert an `init_fn` of plain parameters to an `init_fn` of parameters with adapters.

    Parameters that it adds, such as a head, become part of the base.

    Args:
        init_fn: `(params, support, rng) -> params`, as for `metajax.maml`.
        combine: as for `loss`.

    Returns:
        The `init_fn` of parameters from `init`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from metajax.algorithms import lora
        >>> with_head = lora.init_fn(lambda params, support, rng: {**params, "head": jnp.zeros(2)})
        >>> params = {"base": {"bias": jnp.ones(3)}, "adapters": {"bias": None}}
        >>> sorted(with_head(params, {}, None)["base"])
        ['bias', 'head']
    """

    def of_adapted(params: Params, support: Batch, rng: Key | None) -> Params:
        whole = combine(params)
        plain = init_fn(whole, support, rng)
        added = {key: value for key, value in plain.items() if key not in whole}
        return {**params, "base": {**params["base"], **added}}

    return of_adapted


def reparametrize(reparametrize: Reparametrize) -> Reparametrize:
    """Convert a `reparametrize` of plain parameters to one of parameters with adapters.

    It must not change kernels that have an adapter.

    Args:
        reparametrize: `(params, task) -> (params, task, undo)`, as for `metajax.maml`.

    Returns:
        The `reparametrize` of parameters from `init`.

    Examples:
        >>> import jax.numpy as jnp, metajax
        >>> from metajax.algorithms import lora
        >>> def two_rows(params, task):
        ...     undo = lambda few: {"rows": params["rows"].at[:2].set(few["rows"])}
        ...     return {"rows": params["rows"][:2]}, task, undo
        >>> params = {"base": {"rows": jnp.ones(3)}, "adapters": {"rows": None}}
        >>> params, _, undo = lora.reparametrize(two_rows)(params, metajax.Task({}, {}))
        >>> params["base"]["rows"].shape, undo(params)["base"]["rows"].shape
        ((2,), (3,))
    """

    def of_adapted(params: Params, task: Task) -> Reparametrized:
        base, task, undo = reparametrize(params["base"], task)
        return (
            {**params, "base": base},
            task,
            lambda adapted: {**adapted, "base": undo(adapted["base"])},
        )

    return of_adapted
