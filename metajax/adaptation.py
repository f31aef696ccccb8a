"""What gradient-based algorithms share: a task reduced, a start, the inner loop, the query loss."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import optax

from metajax.inner import fold_in, inner_loop
from metajax.tree import combine, select
from metajax.types import AdaptInfo, Batch, Key, LossFn, MetaInfo, Params, Reduce, Start, Task

# Keys of the independent uses of one task's key.
START, INNER, QUERY = range(3)

Optimizer: TypeAlias = optax.GradientTransformation


class Adaptation(NamedTuple):
    """Adapting to a task, and judging the result; pure, differentiable functions of ONE task.

    Attributes:
        adapt: `(optimizer, params, support, rng) -> (adapted_params, AdaptInfo)`.
        query_loss: `(optimizer, params, task, rng) -> (loss, MetaInfo)`, the loss on the query
            set after adaptation.
    """

    adapt: Callable[[Optimizer, Params, Batch, Key | None], tuple[Params, AdaptInfo]]
    query_loss: Callable[[Optimizer, Params, Task, Key | None], tuple[jax.Array, MetaInfo]]


def adaptation(
    loss_fn: LossFn,
    num_steps: int,
    *,
    first_order: bool = False,
    low_memory: bool = False,
    adapted: Callable[[str], bool] | None = None,
    reduce: Reduce | None = None,
    start: Start | None = None,
) -> Adaptation:
    """Composes an algorithm's adaptation; see `metajax.maml` for the arguments."""

    def inner_loss(changed: Params, frozen: Params, batch: Batch, rng: Key | None) -> jax.Array:
        return loss_fn(combine(changed, frozen), batch, rng)[0]

    loop = inner_loop(inner_loss, num_steps, first_order=first_order, low_memory=low_memory)

    def solve(
        optimizer: Optimizer, params: Params, support: Batch, rng: Key | None
    ) -> tuple[Params, AdaptInfo]:
        if start is not None:
            params = start(params, support, fold_in(rng, START))
        changed, frozen = select(params, adapted or (lambda path: True))
        changed, info = loop(optimizer, changed, frozen, support, fold_in(rng, INNER))
        return combine(changed, frozen), info

    def adapt(
        optimizer: Optimizer, params: Params, support: Batch, rng: Key | None
    ) -> tuple[Params, AdaptInfo]:
        if reduce is None:
            return solve(optimizer, params, support, rng)
        params, task, restore = reduce(params, Task(support, None))
        params, info = solve(optimizer, params, task.support, rng)
        return restore(params), info

    def query_loss(
        optimizer: Optimizer, params: Params, task: Task, rng: Key | None
    ) -> tuple[jax.Array, MetaInfo]:
        if reduce is not None:
            params, task, _ = reduce(params, task)
        params, info = solve(optimizer, params, task.support, rng)
        loss, aux = loss_fn(params, task.query, fold_in(rng, QUERY))
        return loss, MetaInfo(loss, aux, info.support_loss)

    return Adaptation(adapt, query_loss)
