"""Learned inner rates: Meta-SGD (Li et al. 2017) and MAML++ (Antoniou et al. 2019)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax.adaptation import adaptation
from metajax.tree import extend
from metajax.types import AdaptInfo, Batch, Key, LossFn, MetaAlgorithm, MetaInfo, Params, Task


def meta_sgd(loss_fn: LossFn, rate: float, num_steps: int, **settings: Any) -> MetaAlgorithm:
    """Learns the initialisation and a rate for each of its parameters (arXiv:1707.09835, eq. 1).

    Args:
        loss_fn: `(params, batch, rng) -> (loss, aux)`.
        rate: where every rate starts; also that of parameters which `start` adds.
        num_steps: K >= 0.
        **settings: `first_order`, `low_memory`, `adapted` and `start` of `metajax.maml`.

    Returns:
        A MetaAlgorithm whose meta_params are `{"params", "rates"}`, the rates like the params.

    Example:
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
        return {"params": params, "rates": jax.tree.map(lambda p: jnp.full_like(p, rate), params)}

    return _with_rates(adaptation(loss_fn, num_steps, **settings), init, rate, per_step=False)


def maml_plus_plus(loss_fn: LossFn, rate: float, num_steps: int, **settings: Any) -> MetaAlgorithm:
    """MAML++'s per-layer per-step rates (arXiv:1810.09502, section 4, "LSLR").

    Args:
        loss_fn: `(params, batch, rng) -> (loss, aux)`.
        rate: where every rate starts; also that of parameters which `start` adds.
        num_steps: K >= 1.
        **settings: `first_order`, `low_memory`, `adapted` and `start` of `metajax.maml`.

    Returns:
        A MetaAlgorithm whose meta_params are `{"params", "rates"}`: for each leaf of the params a
        rate for each step, [K].
    """

    def init(params: Params) -> Params:
        return {
            "params": params,
            "rates": jax.tree.map(lambda p: jnp.full(num_steps, rate, p.dtype), params),
        }

    return _with_rates(adaptation(loss_fn, num_steps, **settings), init, rate, per_step=True)


def _with_rates(
    learner: Any, init: Callable[[Params], Params], rate: float, *, per_step: bool
) -> MetaAlgorithm:
    def optimizer(rates: Params) -> optax.GradientTransformation:
        def update(grads: Params, step: jax.Array, params: Params = None) -> tuple[Params, Any]:
            def move(found: Any, grad: jax.Array) -> jax.Array:
                return -(found[step] if per_step and jnp.ndim(found) else found) * grad

            return jax.tree.map(move, extend(rates, grads, rate), grads), step + 1

        return optax.GradientTransformation(lambda params: jnp.int32(0), update)

    def adapt(meta_params: Params, support: Batch, rng: Key | None) -> tuple[Params, AdaptInfo]:
        return learner.adapt(optimizer(meta_params["rates"]), meta_params["params"], support, rng)

    def query_loss(meta_params: Params, task: Task, rng: Key | None) -> tuple[jax.Array, MetaInfo]:
        rates = optimizer(meta_params["rates"])
        return learner.query_loss(rates, meta_params["params"], task, rng)

    return MetaAlgorithm(init, adapt, jax.grad(query_loss, has_aux=True))
