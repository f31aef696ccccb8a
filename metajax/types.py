"""The contracts: loss, task, meta-learning algorithm."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

PyTree = Any
Params = PyTree
Batch = PyTree
Key = jax.Array


class LossFn(Protocol):
    """A pure function `(params, batch, rng) -> (loss, aux)`.

    `params` is any pytree, `batch` any pytree of arrays, and `rng` a `jax.random.key` or None
    (nothing is random). The loss is a scalar, []. The auxiliary output is any pytree of arrays, or
    `{}`. Metrics and evaluations report it next to the loss.

    Examples:
        >>> import jax.numpy as jnp
        >>> def loss_fn(params, batch, rng):
        ...     error = batch["x"] @ params["w"] - batch["y"]
        ...     return jnp.mean(error**2), {"mae": jnp.mean(abs(error))}
        >>> batch = {"x": jnp.ones((5, 2)), "y": jnp.ones(5)}
        >>> float(loss_fn({"w": jnp.zeros(2)}, batch, None)[0])
        1.0
    """

    def __call__(self, params: Params, batch: Batch, rng: Key | None, /) -> tuple[jax.Array, Any]:
        """Return the loss, a scalar, and auxiliary output: any pytree of arrays."""
        ...


class Task(NamedTuple):
    """A support set to adapt to and a query set to test on.

    A batch of T tasks is a Task whose leaves all have a leading axis [T].

    Attributes:
        support: a batch in the format of the loss, any pytree of arrays.
        query: another batch with the same structure. Its sizes may differ.

    Examples:
        >>> import jax, jax.numpy as jnp, metajax
        >>> one = metajax.Task(support={"x": jnp.ones((5, 3))}, query={"x": jnp.ones((9, 3))})
        >>> batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, one)
        >>> batch.support["x"].shape
        (2, 5, 3)
    """

    support: Batch
    query: Batch


class MetaInfo(NamedTuple):
    """The losses that were computed with the meta-gradient of one task.

    Attributes:
        query_loss: [] the loss on the query set after adaptation.
        query_aux: the loss function's auxiliary output on the query set.
        support_loss: [K] the loss on the support set before each of the K inner steps.

    Examples:
        >>> import jax.numpy as jnp, metajax, optax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> algorithm = metajax.maml(loss_fn, optax.sgd(0.5), num_steps=2)
        >>> task = metajax.Task(support=jnp.ones(2), query=jnp.ones(2))
        >>> _, info = algorithm.meta_grad(jnp.zeros(2), task, None)
        >>> info.support_loss.tolist(), float(info.query_loss)
        ([1.0, 0.25], 0.0625)
    """

    query_loss: jax.Array
    query_aux: Any
    support_loss: jax.Array


class AdaptInfo(NamedTuple):
    """The losses of an adaptation to one support set.

    Attributes:
        support_loss: [K] the loss on the support set before each of the K inner steps.

    Examples:
        >>> import jax.numpy as jnp, metajax, optax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> algorithm = metajax.maml(loss_fn, optax.sgd(0.5), num_steps=2)
        >>> adapted, info = algorithm.adapt(jnp.zeros(2), jnp.ones(2), None)
        >>> info.support_loss.tolist()
        [1.0, 0.25]
    """

    support_loss: jax.Array


class MetaAlgorithm(NamedTuple):
    """A meta-learning algorithm: three pure functions of ONE task.

    The primitive is `meta_grad`, not a meta-loss, because Reptile and implicit MAML have a
    meta-gradient but no unrolled loss to differentiate. One outer loop works with all of them.

    Attributes:
        init: `(params) -> meta_params`; the outer loop trains meta_params.
        adapt: `(meta_params, support, rng) -> (adapted_params, AdaptInfo)`.
        meta_grad: `(meta_params, task, rng) -> (grads, MetaInfo)`; grads has the structure of
            meta_params.

    Examples:
        >>> import jax.numpy as jnp, metajax, optax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> algorithm = metajax.maml(loss_fn, optax.sgd(0.5), num_steps=1)
        >>> meta_params = algorithm.init(jnp.zeros(2))
        >>> algorithm.adapt(meta_params, jnp.ones(2), None)[0].tolist()
        [0.5, 0.5]
    """

    init: Callable[[Params], PyTree]
    adapt: Callable[[PyTree, Batch, Key | None], tuple[Params, AdaptInfo]]
    meta_grad: Callable[[PyTree, Task, Key | None], tuple[PyTree, MetaInfo]]


# (params, support, rng) -> params: the start of the inner loop.
InitFn = Callable[[Params, Batch, Key | None], Params]
# (params, task, undo), undo: (params) -> params.
Reparametrized = tuple[Params, Task, Callable[[Params], Params]]
# Rewrites a task in terms of other parameters, usually fewer.
Reparametrize = Callable[[Params, Task], Reparametrized]


@dataclasses.dataclass(frozen=True)
class NetworkFn:
    """A function of a network's parameters that also accepts them reparametrized.

    The losses and initial heads of `metajax.models` are such functions. MAML and implicit MAML use
    their reparametrization if they have no other one, which makes them faster and does not change
    the result.

    Attributes:
        fn: a `LossFn` or an `InitFn`.
        reparametrize: the exact reparametrization.

    Examples:
        >>> import metajax
        >>> from metajax.types import NetworkFn
        >>> loss_fn = NetworkFn(lambda params, batch, rng: (params * batch, {}),
        ...                     lambda params, task: (params, task, lambda params: params))
        >>> loss_fn(2.0, 3.0, None)
        (6.0, {})
    """

    fn: Callable[[Params, Batch, Key | None], Any]
    reparametrize: Reparametrize

    def __call__(self, params: Params, batch: Batch, rng: Key | None, /) -> Any:
        """Call the function."""
        return self.fn(params, batch, rng)
