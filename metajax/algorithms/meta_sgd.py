"""Learned inner rates: Meta-SGD (Li et al. 2017) and MAML++ (Antoniou et al. 2019)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from metajax.algorithms.adaptation import Adaptation, Engine, meta_gradient
from metajax.tree import combine, extend, mask, select
from metajax.types import (
    AdaptInfo,
    Batch,
    InitFn,
    Key,
    LossFn,
    MetaAlgorithm,
    MetaInfo,
    Params,
    Reparametrize,
    Task,
)


def meta_sgd(
    loss_fn: LossFn,
    rate: float,
    num_steps: int,
    *,
    direction: optax.GradientTransformation | None = None,
    trainable: Callable[[str], bool] | None = None,
    reparametrize: Reparametrize | None = None,
    init_fn: InitFn | None = None,
    **engine: Unpack[Engine],
) -> MetaAlgorithm:
    """Meta-SGD: learn the initialization and a rate per parameter (arXiv:1707.09835, eq. 1).

    Args:
        loss_fn: `(params, batch, rng) -> (loss, aux)`.
        rate: initial value of all rates, and the constant rate of parameters that `init_fn` adds.
        num_steps: K >= 0.
        direction: transformation of the gradient, whose result the rates scale, such as
            `optax.trace(0.9)` (momentum) or `optax.scale_by_adam(eps_root=1e-8)`. By default the
            gradient is not changed.
        trainable: as for `metajax.maml`.
        reparametrize: as for `metajax.maml`. It is also applied to the rates.
        init_fn: as for `metajax.maml`. It may add parameters, but must not move any.
        **engine: `first_order`, `low_memory`, `unroll`, `stream` and `micro_batches`, as for
            `metajax.maml`.

    Returns:
        A MetaAlgorithm whose meta_params are `{"params", "rates"}`. The rates have the structure
        and shapes of the params that the inner loop updates, and None for the others.

    Raises:
        ValueError: num_steps is below 0.
        TypeError: when called, loss_fn does not return a scalar loss and aux.

    Examples:
        >>> import jax.numpy as jnp, metajax, optax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> algorithm = metajax.meta_sgd(loss_fn, 0.5, num_steps=1)
        >>> meta_params = algorithm.init(jnp.zeros(1))
        >>> task = metajax.Task(support=jnp.ones(1), query=jnp.ones(1))
        >>> algorithm.meta_grad(meta_params, task, None)[0]["rates"]
        Array([-0.5], dtype=float32)
    """

    def init(params: Params) -> Params:
        updated, _ = select(params, trainable or (lambda path: True))
        return {"params": params, "rates": jax.tree.map(lambda p: jnp.full_like(p, rate), updated)}

    def optimizer(meta_params: Params, task: Task) -> optax.GradientTransformation:
        rates = meta_params["rates"]
        if reparametrize is not None:  # It expects every leaf, but no other rate is used.
            # A checkpoint has no place for the rates that are None.
            rates = extend(rates, meta_params["params"], None)
            rates = reparametrize(combine(rates, meta_params["params"]), task)[0]
        return optax.chain(direction or optax.identity(), _descent(rates, rate))

    adaptation = Adaptation(
        loss_fn,
        num_steps,
        trainable=trainable,
        reparametrize=reparametrize,
        init_fn=init_fn,
        **engine,
    )
    return _with_rates(adaptation, init, optimizer)


def maml_plus_plus(
    loss_fn: LossFn,
    rate: float,
    num_steps: int,
    *,
    step: int | jax.Array | None = None,
    multi_step: int = 0,
    first_order_until: int = 0,
    stacked: Callable[[str], bool] = lambda path: False,
    low_memory: bool = False,
    unroll: bool = False,
    direction: optax.GradientTransformation | None = None,
    trainable: Callable[[str], bool] | None = None,
    init_fn: InitFn | None = None,
    stream: bool = False,
    micro_batches: int = 1,
) -> MetaAlgorithm:
    """MAML++ for networks without batch norm (Antoniou, Edwards & Storkey 2019, arXiv:1810.09502).

    It has three parts of section 4:

    - LSLR: one learned rate per layer and step.
    - MSL: the loss on the query set after each inner step, annealed to the loss after the last.
    - DA: first order in the first outer steps.

    The annealing of MSL and DA needs the outer step, which `metajax.outer_loop` passes:
    `outer_loop(lambda step: maml_plus_plus(..., step=step, multi_step=1000), optimizer)`.

    Args:
        loss_fn: `(params, batch, rng) -> (loss, aux)`.
        rate: initial value of all rates, and the constant rate of parameters that `init_fn` adds.
        num_steps: K >= 1.
        step: [] the outer step, from 0. None means that all annealing is complete.
        multi_step: number of outer steps of MSL. The weights of the losses change linearly from
            1 / K each to 1 for the last loss.
        first_order_until: number of outer steps of DA. First order ignores that a larger rate
            changes the gradients of later steps, so the rates can grow until the steps diverge.
        stacked: predicate on a parameter's path; true if its first axis counts N layers, which get
            separate rates. For `metajax.Transformer` use `lambda path: path.startswith("layers/")`.
        low_memory: as for `metajax.maml`.
        unroll: as for `metajax.maml`.
        direction: as for `meta_sgd`.
        trainable: as for `metajax.maml`.
        init_fn: as for `meta_sgd`. (There is no `reparametrize`: the rate of a leaf is one number,
            so that it cannot be reduced to rows.)
        stream: as for `metajax.maml`.
        micro_batches: as for `metajax.maml`.

    Returns:
        A MetaAlgorithm whose meta_params are `{"params", "rates"}`. Each leaf of the params has one
        rate per step, [K], or [K, N] for stacked layers; None for those that `trainable` excludes.
        If the rates have more steps, the first K are used.

    Raises:
        ValueError: a number is out of bounds, or, when called, meta_params have rates for fewer
            than K steps.

    Examples:
        >>> import jax.numpy as jnp, metajax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params["w"] - batch) ** 2) / 2, {}
        >>> algorithm = metajax.maml_plus_plus(loss_fn, 0.5, num_steps=2)
        >>> meta_params = algorithm.init({"w": jnp.zeros(1)})
        >>> meta_params["rates"]["w"].tolist()
        [0.5, 0.5]
    """
    if num_steps < 1:
        raise ValueError(
            f"num_steps is {num_steps}, and MAML++ needs a step to learn rates; give at least 1"
        )
    for name, value in {"multi_step": multi_step, "first_order_until": first_order_until}.items():
        if value < 0:
            raise ValueError(f"{name} is {value}; give a number of outer steps >= 0")

    def init(params: Params) -> Params:
        own, _ = select(params, trainable or (lambda path: True))
        layers = mask(own, stacked)
        rates = jax.tree.map(functools.partial(_step_rates, rate, num_steps), own, layers)
        return {"params": params, "rates": rates}

    def optimizer(meta_params: Params, task: Task) -> optax.GradientTransformation:
        _check_steps(meta_params["rates"], num_steps)
        descent = _descent(meta_params["rates"], rate, by_step=True)
        return optax.chain(direction or optax.identity(), descent)

    def variant(begin: int) -> MetaAlgorithm:
        """Make the algorithm for the outer steps from `begin`, where an annealing ends."""
        first_order = begin < first_order_until
        adaptation = Adaptation(
            loss_fn,
            num_steps,
            first_order,
            low_memory,
            unroll,
            trainable,
            init_fn=init_fn,
            stream=stream,
            micro_batches=micro_batches,
        )
        weights = None
        if step is not None and begin < multi_step:
            weights = _loss_weights(step, multi_step, num_steps)
        return _with_rates(adaptation, init, optimizer, weights)

    ends = sorted({multi_step, first_order_until} - {0})
    if step is None or not ends:
        return variant(max(ends, default=0))
    return _switched([variant(begin) for begin in (0, *ends)], ends, step)


def _step_rates(rate: float, num_steps: int, leaf: jax.Array, layers: bool) -> jax.Array:
    """Return the initial rates of one leaf: [K], or [K, N] if its first axis counts N layers."""
    return jnp.full((num_steps, *leaf.shape[: int(layers)]), rate, leaf.dtype)


def _switched(
    variants: Sequence[MetaAlgorithm], ends: Sequence[int], step: int | jax.Array
) -> MetaAlgorithm:
    """Combine variants of an algorithm; variant i + 1 begins at outer step `ends[i]`."""

    def meta_grad(meta_params: Params, task: Task, rng: Key | None) -> tuple[Params, MetaInfo]:
        current = jnp.searchsorted(jnp.array(ends), jnp.asarray(step), side="right")
        branches = [algorithm.meta_grad for algorithm in variants]
        return jax.lax.switch(current, branches, meta_params, task, rng)

    last = variants[-1]
    return MetaAlgorithm(last.init, last.adapt, meta_grad)


def _loss_weights(step: Any, until: int, num_steps: int) -> jax.Array:
    """Return the weights [K] of the query losses after the inner steps. Their sum is 1."""
    equal = (1 - step / until) / num_steps
    return jnp.full(num_steps, equal).at[-1].add(step / until)


def _with_rates(
    adaptation: Adaptation,
    init: Callable[[Params], Params],
    optimizer: Callable[[Params, Task], optax.GradientTransformation],
    step_weights: jax.Array | None = None,
) -> MetaAlgorithm:
    """Make the algorithm that adapts `params` by the optimizer for a task."""

    def adapt(meta_params: Params, support: Batch, rng: Key | None) -> tuple[Params, AdaptInfo]:
        descent = optimizer(meta_params, Task(support, None))
        return adaptation.adapt(descent, meta_params["params"], support, rng)

    def query_loss(meta_params: Params, task: Task, rng: Key | None) -> tuple[jax.Array, MetaInfo]:
        descent, params = optimizer(meta_params, task), meta_params["params"]
        return adaptation.query_loss(descent, params, task, rng, step_weights)

    return MetaAlgorithm(init, adapt, meta_gradient(query_loss))


def _descent(rates: Params, rate: float, *, by_step: bool = False) -> optax.GradientTransformation:
    """Gradient descent with one learned rate per leaf.

    Args:
        rates: arrays that broadcast with their leaf. With `by_step`, [K, ...].
        rate: rate of the leaves that `rates` lacks.
        by_step: whether the rates of inner step i are at index i.
    """

    def update(grads: Params, step: jax.Array, params: Params = None) -> tuple[Params, Any]:
        def move(leaf_rate: Any, grad: jax.Array | None) -> jax.Array | None:
            if grad is None:  # Not adapted.
                return None
            if by_step and jnp.ndim(leaf_rate):
                leaf_rate = leaf_rate[step]
                ones = (1,) * (grad.ndim - leaf_rate.ndim)
                leaf_rate = leaf_rate.reshape(leaf_rate.shape + ones)
            return -leaf_rate * grad

        _check_rates(rates, grads)
        return jax.tree.map(move, extend(rates, grads, rate), grads), step + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


def _check_rates(rates: Params, grads: Params) -> None:
    if isinstance(rates, dict) and not rates.keys() <= grads.keys():
        lost = ", ".join(sorted(rates.keys() - grads.keys()))
        raise ValueError(f"init_fn: moved {lost}, which has learned rates; let init_fn only add")


def _check_steps(rates: Params, num_steps: int) -> None:
    # JAX clamps an index past the end, so it would repeat the last step's rate.
    for leaf in jax.tree.leaves(rates):
        if jnp.ndim(leaf) and len(leaf) < num_steps:
            raise ValueError(
                f"num_steps is {num_steps}, but rates were learned for {len(leaf)} steps; give at "
                f"most {len(leaf)}"
            )
