"""Reparametrization of a toy; models/test_reparametrization.py has language models."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import metajax

USED = np.array([1, 3])  # Of five rows.
SGD = optax.sgd(0.1)


def features(params, batch, rng):
    return jnp.tanh(batch["scale"] * params["rows"][batch["ids"]].sum(1)) + params["bias"]


def loss_fn(params, batch, rng):
    return jnp.mean((features(params, batch, rng).sum(1) - batch["labels"]) ** 2), {}


def reduce(params, task):
    """The rows that are used, and twice the scale, which says whether this took place."""

    def undo(few):
        return {**few, "rows": params["rows"].at[USED].set(few["rows"])}

    def fewer(batch):
        return {**batch, "ids": batch["ids"] // 2, "scale": 2 * batch["scale"]}

    few = {**params, "rows": params["rows"][USED]}
    return few, metajax.Task(*(batch and fewer(batch) for batch in task)), undo


LEOPARD = {"width": 3, "rng": jax.random.key(0)}
CONSTRUCTORS = {
    "reptile": lambda **settings: metajax.reptile(loss_fn, SGD, 2, **settings),
    "imaml": lambda **settings: metajax.imaml(loss_fn, SGD, 2, **settings),
    "proto-maml": lambda **settings: metajax.proto_maml(features, 2, SGD, 1, **settings),
    "leopard": lambda **settings: metajax.leopard(features, 2, 2, SGD, 1, **LEOPARD, **settings),
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_reduced_task_is_the_same_task(x64, name):
    draw = np.random.default_rng(0)
    params = {"rows": jnp.asarray(draw.normal(size=(5, 2))), "bias": jnp.array([0.1, -0.2])}
    ids, labels = jnp.asarray(draw.choice(USED, size=(2, 4, 3))), jnp.array([0, 1, 1, 0])

    def task(*scales):
        return metajax.Task(
            *({"ids": i, "scale": jnp.float64(s), "labels": labels} for s, i in zip(scales, ids))
        )

    def run(task, **settings):
        algorithm = CONSTRUCTORS[name](**settings)
        meta_params = jax.tree.map(jnp.float64, algorithm.init(params))
        return jax.jit(
            lambda params: (
                algorithm.meta_grad(params, task, None),
                algorithm.adapt(params, task.support, None),
            )
        )(meta_params)

    # Reptile judges the parameters put back, by the query set as it is.
    doubled = task(2.0, 1.0 if name == "reptile" else 2.0)
    assert problems.relative_gap(run(task(1.0, 1.0), reparametrize=reduce), run(doubled)) < 1e-12
