"""Train a network on one task's examples alone, by AdamW."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax import data
from metajax.data.batches import token_batch
from metajax.data.packing import Shapes, plan_shapes
from metajax.models import Transformer
from metajax.models.parts import unused_parts
from metajax.platforms import quick_jit
from metajax.runs.progress import progress
from metajax.runs.recipes import Recipe
from metajax.training.optimizer import adamw, learning_rate
from metajax.types import Batch, Key, LossFn, Params

_ROUNDING = 512  # Of the number of embedding rows, so that tasks share a compiled step.
_PLANNED_STEPS = 32


def train(
    model: Transformer,
    params: Params,
    examples: data.TokenizedTask,
    recipe: Recipe,
    *,
    seed: int,
    weights: np.ndarray | None = None,
    what: str | None = None,
    plan: Sequence[Shapes] = (),
    donate: bool = False,
) -> tuple[Params, list[float]]:
    """Train all parameters.

    Only the embedding rows that the texts mention are trained: the others have no gradient. Several
    networks of a recipe start from the same parameters and have their own batches and dropout
    masks; the result is the mean of their parameters (a model soup: Wortsman et al. 2022,
    arXiv:2203.05482, section 2).

    Args:
        model: the network.
        params: its parameters.
        examples: N examples.
        recipe: loss, batches and optimizer.
        seed: of the batches and of dropout.
        weights: float32 of the examples in the loss, [N], or of their labels, [N, C]. By default
            all are 1.
        what: name of the progress bar. None: no bar.
        plan: shapes to pack batches to, from `plan_steps`. By default they fit the examples.
        donate: whether to free the memory of `params`, except the table of word embeddings, when
            the last network begins. The caller must not use `params` afterwards.

    Returns:
        The trained parameters, and the loss of each step: the mean over the networks.
    """
    kept, small = _mentioned(examples, params["embeddings"]["word"].shape[0])
    recipe = recipe.for_examples(examples)
    plan = plan or plan_steps([small], recipe, seed)
    begin, step, merge, set_rows = _compiled(model, recipe.make_loss)
    count = recipe.num_steps(len(examples.labels))
    rates = _rates(recipe.rate_for(model.config.hidden_size), count)
    key = jax.random.key(seed)
    mean: Params = None
    losses = []
    steps = range(recipe.networks * count)
    several = "" if recipe.networks == 1 else f", {recipe.networks} networks"
    for number in steps if what is None else progress(steps, what + several, "step"):
        network, own_number = divmod(number, count)
        if own_number == 0:
            own, state = begin(params, kept)
            if donate and network == recipe.networks - 1:
                for leaf in jax.tree.leaves(_with_table(params, None)):
                    leaf.delete()
        batch = data.packed_parts(_batch(small, recipe, seed, number, weights), 1, plan)
        part = {name: leaf[0] for name, leaf in batch.items()}
        own, state, loss = step(own, state, part, key, number, rates[own_number])
        losses.append(loss)
        if own_number == count - 1:
            mean = merge(own, mean, 1 / (network + 1)) if network else own
            del own, state  # Before the next network begins.
    table = set_rows(params["embeddings"]["word"], kept, mean["embeddings"]["word"])
    mean_losses = np.reshape(losses, (recipe.networks, count)).mean(0)
    return _with_table(mean, table), mean_losses.tolist()


def plan_steps(
    tasks: Sequence[data.TokenizedTask], recipe: Recipe, seed: int
) -> tuple[Shapes, ...]:
    """Choose the shapes of the batches of all these tasks."""
    recipes = [recipe.for_examples(task) for task in tasks]  # Their batch sizes can differ.
    steps = max(own.networks * own.num_steps(len(task.labels)) for task, own in zip(tasks, recipes))
    each = [
        _batch(task, own, seed, number)["attention_mask"].sum(1)
        for task, own in zip(tasks, recipes)
        for number in range(min(steps, math.ceil(_PLANNED_STEPS / len(tasks))))
    ]
    longest = max(int(task.tokens.lengths.max()) for task in tasks)
    return plan_shapes([(lengths[None],) for lengths in each], longest, steps)


def _batch(
    examples: data.TokenizedTask,
    recipe: Recipe,
    seed: int,
    step: int,
    weights: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return the padded batch of a step."""
    size = min(recipe.batch_size, len(examples.labels))
    rows = recipe.rows(examples.labels, seed, step, size)
    longest = int(examples.tokens.lengths.max())
    batch = token_batch(examples.tokens, rows, longest) | {"labels": examples.labels[rows]}
    if weights is None:
        return batch
    return batch | {"example_mask" if weights.ndim == 1 else "label_weights": weights[rows]}


def _mentioned(
    examples: data.TokenizedTask, vocabulary: int
) -> tuple[np.ndarray, data.TokenizedTask]:
    """Return the rows of the table to keep, and the examples with places in them as tokens."""
    ids = np.asarray(examples.tokens.input_ids)
    unused = np.bincount(ids.reshape(-1), minlength=vocabulary) == 0
    count = min(vocabulary, -(-int((~unused).sum()) // _ROUNDING) * _ROUNDING)
    kept = np.sort(np.argsort(unused, kind="stable")[:count])
    places = np.searchsorted(kept, ids).astype(np.int32)
    return kept, examples._replace(tokens=examples.tokens._replace(input_ids=places))


def _with_table(params: Params, table: jax.Array | None) -> Params:
    return {**params, "embeddings": {**params["embeddings"], "word": table}}


@functools.lru_cache(maxsize=8)
def _rates(peak: float, count: int) -> np.ndarray:
    """Return the learning rates of all steps, from one program for all operations."""
    schedule = learning_rate(peak, count, math.ceil(count / 10))
    return np.asarray(quick_jit(jax.vmap(schedule))(np.arange(count)))


@functools.lru_cache(maxsize=8)
def _compiled(
    model: Transformer, make_loss: Callable[[Transformer], LossFn]
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Compile the functions that begin training, take a step, average and set rows of a table.

    The rate is an argument, so that training with other rates and numbers of steps compiles nothing
    again.

    Returns:
        `(params, kept) -> (own, state)`, where `own` has only the rows `kept` of the embedding
        table, `(own, state, batch, key, number of the step, rate) -> (own, state, loss)`,
        `(own, mean, share of own) -> mean`, and `(table, numbers of rows, rows) -> table`.
    """
    fixed = tuple(f"{part}/" for part in unused_parts(model.head, model.pooling))
    optimizer = adamw(1.0, weight_decay=0.01, clip_norm=1.0, fixed=fixed)
    loss_fn = make_loss(model)

    @quick_jit
    def begin(params: Params, kept: np.ndarray) -> tuple[Params, Any]:
        own = _with_table(params, params["embeddings"]["word"][kept])
        own = jax.tree.map(jnp.array, own)  # Copies, because a step overwrites its arguments.
        return own, optimizer.init(own)

    @functools.partial(quick_jit, donate_argnums=(0, 1))
    def step(
        params: Params, state: Any, batch: Batch, key: Key, number: jax.Array, rate: jax.Array
    ) -> tuple[Params, Any, jax.Array]:
        key = jax.random.fold_in(key, number)
        loss, grads = jax.value_and_grad(lambda params: loss_fn(params, batch, key)[0])(params)
        updates, state = optimizer.update(grads, state, params)
        updates = optax.tree.scale(rate, updates)
        return optax.apply_updates(params, updates), state, loss

    merge = quick_jit(optax.incremental_update, donate_argnums=1)
    set_rows = quick_jit(lambda table, numbers, rows: table.at[numbers].set(rows))
    return begin, step, merge, set_rows
