"""A second-order LoRA step with merged kernels and with shared, frozen ones, in one process.

    python -m benchmarks.lora_step

MiniLM's shape (6 layers, 384 wide), rank 8 on the attention's query, key and value, four tasks of
5-way 5-shot with random texts of 16 tokens, three inner steps. `merged` adds each task's factors
to a copy of the kernels and trains the base too. `shared` keeps the kernels and freezes the base.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from metajax.algorithms import lora
from metajax.models import Transformer, TransformerConfig, classification_loss, prototype_init

SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
WAYS, SHOTS, TOKENS, TASKS, STEPS, RANK = 5, 5, 16, 4, 3, 8


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


def step_of(model: Transformer, combine: lora.Combine) -> Callable[..., Any]:
    """Compiles the mean meta-gradient of the tasks, all under one `vmap`."""
    loss_fn, begin = classification_loss(model), prototype_init(model)
    algorithm = metajax.maml(
        lora.loss(lambda params, batch, rng: loss_fn(params, batch, None), combine),
        optax.sgd(0.1),
        STEPS,
        trainable=lambda path: lora.is_adapter(path) or path.startswith("base/classifier"),
        init_fn=lora.init_fn(begin, combine),
    )

    def mean(params: Any, tasks: metajax.Task) -> Any:
        grads = jax.vmap(lambda task: algorithm.meta_grad(params, task, None)[0])(tasks)
        kept = grads if combine is lora.merge else grads["adapters"]
        return jax.tree.map(lambda leaf: leaf.mean(0), kept)

    return jax.jit(mean)


def main() -> None:
    """Times both in turn and prints the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed pairs")
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
    steps = {"merged": lora.merge, "shared": lora.freeze(lora.attach)}
    compiled = {
        name: step_of(model, combine).lower(adapted, tasks).compile()
        for name, combine in steps.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.repeats + 1):
        for name, step in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(step(adapted, tasks))
            seconds[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values[1:])) for name, values in seconds.items()}
    for name, value in medians.items():
        memory = compiled[name].memory_analysis().temp_size_in_bytes / 1e6
        print(f"{name:8} {value:7.3f} s   {memory:8.1f} MB of working memory")
    print(f"shared / merged: {medians['shared'] / medians['merged']:.2f}")


if __name__ == "__main__":
    main()
