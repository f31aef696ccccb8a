"""Test-time training: meta-learning for parameters that adapt to a stream."""
# ruff: noqa: PT028 -- the name of the method begins like that of a test.

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metajax.algorithms.adaptation import Adaptation, meta_gradient
from metajax.algorithms.hypergrad import InnerLoss
from metajax.algorithms.inner_loop import InnerLoop, inner_loop
from metajax.dtypes import widen
from metajax.types import InitFn, Key, LossFn, MetaAlgorithm, MetaInfo, Params, Reparametrize, Task


def test_time_training(
    loss_fn: LossFn,
    inner_optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    truncate: int | None = None,
    low_memory: bool = False,
    unroll: bool = False,
    micro_batches: int = 1,
    trainable: Callable[[str], bool] | None = None,
    frozen: Callable[[str], bool] | None = None,
    reparametrize: Reparametrize | None = None,
    init_fn: InitFn | None = None,
) -> MetaAlgorithm:
    """Learn parameters that adapt to a stream while they are evaluated on it.

    The support set is a stream of K chunks. The meta-loss is the mean of the losses on the chunks,
    each before the step on it. For a pretrained model this loss is dynamic evaluation (Krause et
    al. 2018, arXiv:1709.07432). Test-time training learns the parameters through the steps (Sun et
    al. 2023, arXiv:2310.13807; Sun et al. 2024, arXiv:2407.04620). In these two papers the steps
    minimize a self-supervised loss; here they minimize `loss_fn`.

    Args:
        loss_fn: `(params, batch, rng) -> (loss, aux)`.
        inner_optimizer: as for `metajax.maml`.
        num_steps: K >= 1, the number of chunks.
        truncate: T: gradients pass through the last T steps only. The gradients of earlier steps
            are constants. The meta-gradient is then not exact, but needs less time and memory. 0 is
            first order. None: exact.
        low_memory: as for `metajax.maml`.
        unroll: as for `metajax.maml`.
        micro_batches: as for `metajax.maml`, but applied to a chunk.
        trainable: as for `metajax.maml`.
        frozen: as for `metajax.maml`.
        reparametrize: as for `metajax.maml`. It is called with the whole stream.
        init_fn: as for `metajax.maml`. It is called with the whole stream.

    Returns:
        A MetaAlgorithm whose meta_params are the given params. The support set of a task has leaves
        [K, ...]. The query set is None or one more chunk: the meta-loss is then the mean of K + 1
        losses, the last one after all steps. In MetaInfo, `support_loss` [K] has the losses before
        the steps, `query_loss` is the meta-loss, and `query_aux` is that of the query set, or {}.

    Raises:
        ValueError: num_steps or micro_batches is below 1, or truncate below 0, or, when
            called, a leaf of the support set is not [K, ...], or `trainable` is false for all
            parameters.
        TypeError: when called, loss_fn does not return a scalar loss and aux.

    Examples:
        >>> import jax.numpy as jnp, metajax, optax
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2) / 2, {}
        >>> algorithm = metajax.test_time_training(loss_fn, optax.sgd(0.5), num_steps=2)
        >>> task = metajax.Task(support=jnp.array([[1.0], [2.0]]), query=None)
        >>> grads, info = algorithm.meta_grad(jnp.zeros(1), task, None)
        >>> info.support_loss.tolist(), float(info.query_loss), grads.tolist()
        ([0.5, 1.125], 0.8125, [-0.875])
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; give a number of chunks >= 1")

    def make_loop(inner_loss: InnerLoss) -> InnerLoop:
        return inner_loop(
            inner_loss,
            num_steps,
            low_memory=low_memory,
            unroll=unroll,
            stream=True,
            micro_batches=micro_batches,
            differentiable_loss=True,
            truncate=truncate,
        )

    adaptation = Adaptation(
        loss_fn,
        num_steps,
        low_memory=low_memory,
        trainable=trainable,
        frozen=frozen,
        reparametrize=reparametrize,
        init_fn=init_fn,
        stream=True,
        make_loop=make_loop,
    )

    def meta_loss(params: Params, task: Task, rng: Key | None) -> tuple[jax.Array, MetaInfo]:
        if task.query is None:
            losses = adaptation.adapt(inner_optimizer, params, task.support, rng)[1].support_loss
            mean = widen(losses).mean()
            return mean, MetaInfo(mean, {}, losses)
        loss, info = adaptation.query_loss(inner_optimizer, params, task, rng)
        mean = widen(jnp.append(info.support_loss, loss)).mean()
        return mean, info._replace(query_loss=mean)

    through = None if truncate == 0 else inner_optimizer
    algorithm = adaptation.algorithm(inner_optimizer)
    return algorithm._replace(meta_grad=meta_gradient(meta_loss, through=through))
