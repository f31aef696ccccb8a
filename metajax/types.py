"""The contracts: what a loss, a task and a meta-learning algorithm are."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

PyTree = Any
Params = PyTree
Batch = PyTree
Key = jax.Array


class LossFn(Protocol):
    """A pure function of parameters, a batch and a key (`jax.random.key`, or None: no noise)."""

    def __call__(self, params: Params, batch: Batch, rng: Key | None, /) -> tuple[jax.Array, Any]:
        """Returns the loss, a scalar, and auxiliary output: any pytree of arrays."""
        ...


class Task(NamedTuple):
    """A support set to adapt on and a query set to judge by.

    A batch of T tasks is a Task whose leaves all have a leading axis [T].
    """

    support: Batch
    query: Batch


class MetaInfo(NamedTuple):
    """What one task's meta-gradient saw on the way.

    Attributes:
        query_loss: [] the loss on the query set after adaptation.
        query_aux: the loss function's auxiliary output on the query set.
        support_loss: [K] the loss on the support set before each of the K inner steps.
    """

    query_loss: jax.Array
    query_aux: Any
    support_loss: jax.Array


class AdaptInfo(NamedTuple):
    """What adaptation to one support set saw: support_loss [K], before each inner step."""

    support_loss: jax.Array


class MetaAlgorithm(NamedTuple):
    """A meta-learning algorithm: three pure functions, each of ONE task.

    `meta_grad`, and not a meta-loss, is the primitive: Reptile and implicit MAML have a
    meta-gradient but no unrolled loss to differentiate, and one outer loop serves them all.

    Attributes:
        init: `(params) -> meta_params`, what the outer loop trains.
        adapt: `(meta_params, support, rng) -> (adapted_params, AdaptInfo)`.
        meta_grad: `(meta_params, task, rng) -> (grads, MetaInfo)`; grads has the structure of
            meta_params.
    """

    init: Callable[[Params], PyTree]
    adapt: Callable[[PyTree, Batch, Key | None], tuple[Params, AdaptInfo]]
    meta_grad: Callable[[PyTree, Task, Key | None], tuple[PyTree, MetaInfo]]


# (params, support, rng) -> params: where the inner loop starts.
Start = Callable[[Params, Batch, Key | None], Params]
# (params, task, restore), restore: (params) -> params.
Reduced = tuple[Params, Task, Callable[[Params], Params]]
# The same task in terms of fewer parameters.
Reduce = Callable[[Params, Task], Reduced]
