"""Adaptation to one task and the gradient through it, for all gradient-based algorithms."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias, TypedDict

import jax
import numpy as np
import optax

from metajax.algorithms.checks import (
    check_params,
    check_task,
    is_elementwise,
    loss_and_aux,
)
from metajax.algorithms.hypergrad import InnerLoss
from metajax.algorithms.inner_loop import InnerLoop, fold_in, inner_loop
from metajax.algorithms.streams import check_stream
from metajax.dtypes import is_float, widen
from metajax.platforms import target_platform
from metajax.tree import combine, path_name, paths, select
from metajax.types import (
    AdaptInfo,
    Batch,
    InitFn,
    Key,
    LossFn,
    MetaAlgorithm,
    MetaInfo,
    NetworkFn,
    Params,
    Reparametrize,
    Task,
)

# Indices to fold into a task's key, one per independent use.
INIT, INNER, QUERY = range(3)

Optimizer: TypeAlias = optax.GradientTransformation


UNROLLED = 5  # Maximum of the inner steps to compile one by one; more would take too long.


class Engine(TypedDict, total=False):
    """Options for computing and differentiating the inner loop; see `metajax.maml`."""

    first_order: bool
    low_memory: bool
    unroll: bool | None
    stream: bool
    micro_batches: int


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """Adaptation to one task. Its methods are pure and differentiable.

    Attributes:
        loss_fn: `(params, batch, rng) -> (loss, aux)`.
        num_steps: inner steps, K >= 0.
        first_order: see `metajax.maml`, also for the attributes below.
        low_memory: whether to compute the exact second order in less memory.
        unroll: whether to compile the inner steps one after the other. None: only if the loss
            suggests a layout of the parameters, on a CPU, and at most `UNROLLED` steps.
        trainable: predicate on a parameter's path; true if the inner loop updates it.
        reparametrize: function that expresses the task in fewer parameters.
        init_fn: start of the inner loop.
        stream: whether the support set has one batch per inner step.
        micro_batches: number of equal parts of a step's batch.
        make_loop: constructor of a different inner loop. None uses `inner_loop`.
        frozen: predicate on a parameter's path; true if nothing updates it.

    Raises:
        ValueError: num_steps is below 0 or micro_batches below 1, or, when called, `trainable` is
            false for all parameters.
        TypeError: when called, loss_fn does not return a scalar loss and aux.

    Examples:
        >>> import jax.numpy as jnp, metajax, optax
        >>> from metajax.algorithms.adaptation import Adaptation
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> adaptation = Adaptation(loss_fn, num_steps=1)
        >>> task = metajax.Task(support=jnp.ones(1), query=jnp.ones(1))
        >>> float(adaptation.query_loss(optax.sgd(0.5), jnp.zeros(1), task, None)[0])
        0.125
    """

    loss_fn: LossFn
    num_steps: int
    first_order: bool = False
    low_memory: bool = False
    unroll: bool | None = None
    trainable: Callable[[str], bool] | None = None
    reparametrize: Reparametrize | None = None
    init_fn: InitFn | None = None
    stream: bool = False
    micro_batches: int = 1
    make_loop: Callable[[InnerLoss], InnerLoop] | None = None
    frozen: Callable[[str], bool] | None = None

    def __post_init__(self) -> None:
        self._loop()  # This call checks the number of steps.

    def adapt(
        self, optimizer: Optimizer, params: Params, support: Batch, rng: Key | None
    ) -> tuple[Params, AdaptInfo]:
        """Return the parameters after the inner steps, and the loss before each step."""
        params = self._hold(params)
        if self.reparametrize is None:
            return self._solve(optimizer, params, support, rng)[:2]
        params, task, undo = self.reparametrize(params, Task(support, None))
        params, info, _ = self._solve(optimizer, params, task.support, rng)
        return undo(params), info

    def query_loss(
        self,
        optimizer: Optimizer,
        params: Params,
        task: Task,
        rng: Key | None,
        step_weights: jax.Array | None = None,
    ) -> tuple[jax.Array, MetaInfo]:
        """Return the loss on the query set after adaptation.

        With `step_weights` [K], return the weighted sum of the losses after each step.
        """
        params = self._hold(params)
        if self.reparametrize is not None:
            params, task, _ = self.reparametrize(params, task)

        def loss_of(params: Params) -> tuple[jax.Array, Any]:
            return loss_and_aux(self.loss_fn(params, task.query, fold_in(rng, QUERY)))

        if step_weights is None:
            params, info, _ = self._solve(optimizer, params, task.support, rng)
            loss, aux = loss_of(params)
            return loss, MetaInfo(loss, aux, info.support_loss)
        _, info, per_step = self._solve(optimizer, params, task.support, rng, loss_of)
        loss, aux = jax.tree.map(lambda leaf: leaf[-1], per_step)
        return widen(per_step[0]) @ step_weights, MetaInfo(loss, aux, info.support_loss)

    def algorithm(
        self, optimizer: Optimizer, init: Callable[[Params], Params] = lambda params: params
    ) -> MetaAlgorithm:
        """Return the algorithm whose meta-gradient is the gradient of `query_loss`."""
        differentiated = self.num_steps and not self.first_order and self.make_loop is None

        def adapt(params: Params, support: Batch, rng: Key | None) -> tuple[Params, AdaptInfo]:
            return self._laid_out(optimizer).adapt(optimizer, params, support, rng)

        def query_loss(params: Params, task: Task, rng: Key | None) -> tuple[jax.Array, MetaInfo]:
            return self._laid_out(optimizer).query_loss(optimizer, params, task, rng)

        through = optimizer if differentiated else None
        return MetaAlgorithm(init, adapt, meta_gradient(query_loss, through=through))

    def _laid_out(self, optimizer: Optimizer) -> "Adaptation":
        """Return this adaptation in the layout of its loss, unless something depends on another.

        Called while tracing, because it depends on the platform that is compiled for.
        """
        if not isinstance(self.loss_fn, NetworkFn) or self.reparametrize or self.low_memory:
            return self
        depends = self.trainable or self.frozen or not isinstance(self.init_fn, NetworkFn | None)
        if depends or not is_elementwise(optimizer, self.num_steps):
            return self
        unroll = self.unroll
        if unroll is None:
            unroll = target_platform() == "cpu" and self.num_steps <= UNROLLED
        layout = self.loss_fn.reparametrize
        return dataclasses.replace(self, reparametrize=layout, unroll=unroll)

    def _hold(self, params: Params) -> Params:
        """Let no gradient pass to frozen parameters."""
        if self.frozen is None:
            return params
        frozen, others = select(params, self.frozen)
        return combine(jax.lax.stop_gradient(frozen), others)

    def _updates(self, path: str) -> bool:
        """Whether the inner loop updates a parameter."""
        frozen = self.frozen is not None and self.frozen(path)
        return not frozen and (self.trainable is None or self.trainable(path))

    def _loop(self) -> InnerLoop:
        def inner_loss(updated: Params, rest: Params, batch: Batch, rng: Key | None) -> jax.Array:
            return loss_and_aux(self.loss_fn(combine(updated, rest), batch, rng))[0]

        if self.make_loop is not None:
            return self.make_loop(inner_loss)
        return inner_loop(
            inner_loss,
            self.num_steps,
            first_order=self.first_order,
            low_memory=self.low_memory,
            unroll=bool(self.unroll),
            stream=self.stream,
            micro_batches=self.micro_batches,
        )

    def _solve(
        self,
        optimizer: Optimizer,
        params: Params,
        support: Batch,
        rng: Key | None,
        per_step_fn: Callable[[Params], Any] | None = None,
    ) -> tuple[Params, AdaptInfo, Any]:
        if self.stream:
            check_stream(support, self.num_steps)
        if self.init_fn is not None:
            init_fn = jax.checkpoint(self.init_fn) if self.low_memory else self.init_fn
            params = init_fn(params, support, fold_in(rng, INIT))
        params = check_params(params)
        updated, rest = select(params, self._updates)
        if self.num_steps:
            _check_trainable(updated, params)
        updated, info, seen = self._loop()(
            optimizer,
            updated,
            rest,
            support,
            fold_in(rng, INNER),
            per_step_fn=per_step_fn and (lambda updated: per_step_fn(combine(updated, rest))),
        )
        return combine(updated, rest), info, seen


def meta_gradient(
    query_loss: Callable[[Params, Task, Key | None], tuple[jax.Array, MetaInfo]],
    *,
    through: Optimizer | None = None,
) -> Callable[[Params, Task, Key | None], tuple[Params, MetaInfo]]:
    """Make an algorithm's `meta_grad`: the gradient of the query loss.

    For leaves that are not floating-point, the gradient is zero, with JAX's dtype float0.

    Args:
        query_loss: `(meta_params, task, rng) -> (loss, MetaInfo)`.
        through: the inner optimizer, if its updates are differentiated.
    """
    gradient = jax.grad(query_loss, has_aux=True, allow_int=True)

    def meta_grad(meta_params: Params, task: Task, rng: Key | None) -> tuple[Params, MetaInfo]:
        if through is not None:
            _warn_of_infinite_slope(through)
        return gradient(check_params(meta_params), check_task(task), rng)

    return meta_grad


def _warn_of_infinite_slope(optimizer: Optimizer) -> None:
    """Warn if an update has no finite derivative where an entry of the gradient is zero."""
    params, grads = np.ones(2, np.float32), np.array([0, 1], np.float32)
    try:
        with jax.ensure_compile_time_eval():
            slope = jax.grad(lambda g: optimizer.update(g, optimizer.init(params), params)[0].sum())
            finite = np.isfinite(slope(grads)).all()
    except Exception:  # Traced rates have no value yet; some optimizers need other parameters.
        return
    if not finite:
        warnings.warn(
            "inner_optimizer: the update has no finite derivative at a gradient of 0, so the "
            "meta-gradient may be nan; set eps_root of Adam (`optax.adam(rate, eps_root=1e-8)`) or "
            "first_order=True",
            stacklevel=3,
        )


def _check_trainable(updated: Params, params: Params) -> None:
    if not jax.tree.leaves(updated):
        known = ", ".join(sorted(paths(params))[:8])
        raise ValueError(
            f"trainable (head of anil): false for all parameters ({known}); select at least one"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(updated):
        if not is_float(leaf):
            raise TypeError(
                f"params: leaf {path_name(path)!r} is {leaf.dtype}, but inner steps update only "
                "floating-point parameters; exclude it with `trainable`, or remove it from params "
                "(flax.nnx: `nnx.split(model, nnx.Param, ...)`)"
            )
