"""A second-order LoRA step with merged kernels and with shared, frozen ones, in one process.

    python -m benchmarks.lora_step

MiniLM's shape (6 layers, 384 wide), rank 8 on the attention's query, key and value, four tasks of
5-way 5-shot with random texts of 16 tokens. `merged` adds each task's factors to a copy of the
kernels and trains the base too. `shared` keeps the kernels and freezes the base. Both take one
step in each of --repeats pairs. The arithmetic is that of the matrix products.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from metajax.algorithms import lora
from metajax.models import (
    Transformer,
    TransformerConfig,
    classification_loss,
    mentioned_rows,
    prototype_init,
    separate_layers,
)
from metajax.training.flops import count_flops

SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
WAYS, SHOTS, TOKENS, TASKS, RANK = 5, 5, 16, 4, 8


def tasks_of(vocabulary: int) -> metajax.Task:
    """Random texts [4, 25, 16] with their labels, for support and query."""
    random = np.random.default_rng(0)

    def batch() -> dict[str, jax.Array]:
        shape = (TASKS, WAYS * SHOTS, TOKENS)
        ids = jnp.asarray(random.integers(1, vocabulary, shape))
        labels = jnp.broadcast_to(jnp.arange(WAYS * SHOTS) % WAYS, shape[:2])
        masks = {"attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
        return {"input_ids": ids, "labels": labels, **masks}

    return metajax.Task(batch(), batch())


def in_head(path: str) -> bool:
    """Whether a parameter of the base belongs to the head."""
    return path.startswith("classifier")


def separate(params: Any, task: metajax.Task) -> Any:
    """`separate_layers` of the base and of the adapters."""
    trees = {name: separate_layers()(tree, task) for name, tree in params.items()}

    def undo(adapted: Any) -> Any:
        return {name: trees[name][2](tree) for name, tree in adapted.items()}

    return {name: tree for name, (tree, _, _) in trees.items()}, task, undo


def loop_of(model: Transformer, steps: int, *, shared: bool) -> metajax.OuterLoop:
    """The outer loop as `metatrain` runs it on this machine."""
    loss_fn, begin = classification_loss(model), prototype_init(model)
    combine = lora.freeze(lora.attach, in_head) if shared else lora.merge
    algorithm = metajax.maml(
        lora.loss(lambda params, batch, rng: loss_fn(params, batch, None), combine),
        optax.sgd(0.1),
        steps,
        unroll=True,
        trainable=lambda path: lora.is_adapter(path) or path.startswith("base/classifier"),
        reparametrize=separate if shared else lora.reparametrize(mentioned_rows(model)),
        init_fn=lora.init_fn(begin, combine),
    )
    frozen = lora.is_base if shared else None
    return metajax.outer_loop(algorithm, optax.adamw(1e-5), frozen=frozen)


def main() -> None:
    """Time both in turn; print the medians, and the ratios of arithmetic and of the pairs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed pairs")
    parser.add_argument("--steps", type=int, default=3, help="inner steps")
    parser.add_argument("--vocabulary", type=int, default=30522, help="rows of the table")
    options = parser.parse_args()
    rest = {"intermediate_size": 1536, "vocab_size": options.vocabulary}
    config = TransformerConfig(**SHAPE, **rest)
    model = Transformer(config, head="classification", num_labels=(WAYS,), pooling="mean")
    params = model.init(jax.random.key(0))
    del params["classifier"], params["pooler"]
    adapted = lora.init(
        params, rank=RANK, target=lambda path: path.endswith("qkv/kernel"), rng=jax.random.key(1)
    )
    tasks = tasks_of(options.vocabulary)
    names = ("merged", "shared")
    loops = {name: loop_of(model, options.steps, shared=name == "shared") for name in names}
    states = {name: loop.init(adapted, jax.random.key(0)) for name, loop in loops.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.repeats + 1):
        for name, loop in loops.items():
            start = time.perf_counter()
            jax.block_until_ready(loop.step(states[name], tasks))
            seconds[name].append(time.perf_counter() - start)
    flops = {name: count_flops(loops[name].step, states[name], tasks) for name in names}
    for name, loop in loops.items():
        memory = loop.lower(states[name], tasks).compile().memory_analysis()
        size, median = memory.temp_size_in_bytes / 1e6, float(np.median(seconds[name][1:]))
        work = f"{flops[name] / 1e12:.3f} TFLOP"
        print(f"{name:8} {median:7.3f} s   {work}   {size:8.1f} MB of working memory")
    pairs = np.divide(seconds["shared"][1:], seconds["merged"][1:])
    print(f"shared / merged: {np.median(pairs):.2f} of the time (median of pairs)", end=", ")
    print(f"{flops['shared'] / flops['merged']:.2f} of the arithmetic")


if __name__ == "__main__":
    main()
