r"""Meta-train a small Llama to write key-value pairs into a few vectors by gradient descent.

Claim: after two inner steps, second order retrieves most of 16 pairs from 4 vectors. First order
does not, and a model that was trained without inner steps guesses.
Paper: GradMem, Kuratov et al. 2026 (arXiv:2603.13875), associative key-value retrieval.
Command: XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python -m experiments.gradmem
Hardware and time: one CPU core, while other jobs run: per seed 10 to 21 minutes for second order, 3
to 4 for first order, 2 to 3 without inner steps. The first two take 220 and 100 s of CPU time.
Expect: 95 to 98% for second order, 45 to 55% for first order, 4 to 6% without inner steps. With
`--vectors 1`: 57 and 15%. RESULTS.md has the table.

A task has N pairs of a key and a value. Inner loop: K steps of SGD on the vectors before the text
`k1 v1 k2 v2 ...`, with the loss on the values. The network does not change. Then the text is
removed. Query set: the vectors and one key, whose value is asked for, for each key on its own. The
outer loop trains the network and the initial vectors. Exact match is the share of values that the
model ranks first. A guess is right in 3.1% of the cases.

Each task draws N of 2N keys and N of 32 values, with replacement. A checksum keeps the tasks apart:
the sum of the values is a multiple of 32 in testing, and is not in training. Single keys and values
have the same distribution in both.

Different from the paper: a key or a value is one token instead of several letters; two blocks of 64
features and two heads instead of four of 128 and four heads; 32 tasks per step instead of 64; the
inner rate is 4 instead of 0.04; 16 pairs in 4 vectors instead of up to 96 in 8. All methods take
the same number of outer steps. The settings were chosen on seed 100.
"""

import argparse
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from experiments.numbers import check_numbers, steps_header
from experiments.orders import cosine, cosine_line
from experiments.runs import percent
from metajax import MetaAlgorithm
from metajax.models import TransformerConfig, causal_lm_loss, init_prefix, is_prefix
from metajax.training.evaluation import estimate, run_episodes
from metajax.types import Key, Params

VALUES = 32
METHODS = ("second order", "first order", "no inner steps")


class Sizes(NamedTuple):
    """What all methods of a comparison share.

    Attributes:
        pairs: N, the pairs of a task.
        vectors: before the text, where the pairs are written.
        inner_steps: K.
        inner_lr: their rate.
    """

    pairs: int
    vectors: int
    inner_steps: int
    inner_lr: float


def network(sizes: Sizes) -> metajax.Transformer:
    """Return a small Llama for texts of N pairs."""
    config = TransformerConfig(
        vocab_size=2 * sizes.pairs + VALUES,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=172,
        initializer_range=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=sizes.vectors + 2 * sizes.pairs,
        type_vocab_size=0,
        model_type="llama",
    )
    return metajax.Transformer(config, head="causal_lm")


def draw(rng: Key, count: int, pairs: int, *, held_out: bool) -> metajax.Task:
    """Sample tasks. Held-out tasks and others are disjoint.

    Returns:
        The support set of a task is one text of all pairs: leaves [count, 1, 2 pairs]. The query
        set has a text per pair: leaves [count, pairs, 2].
    """
    key_rng, value_rng, sum_rng = jax.random.split(rng, 3)
    choose = jax.vmap(lambda key: jax.random.permutation(key, 2 * pairs)[:pairs])
    keys = choose(jax.random.split(key_rng, count))
    values = jax.random.randint(value_rng, (count, pairs), 0, VALUES)
    checksum = 0 if held_out else jax.random.randint(sum_rng, (count,), 1, VALUES)
    values = values.at[:, -1].set((checksum - values[:, :-1].sum(1)) % VALUES)
    ids = jnp.stack([keys, 2 * pairs + values], axis=-1)

    def batch(input_ids: jax.Array) -> dict[str, jax.Array]:
        seen = jnp.ones_like(input_ids)
        is_value = seen * (jnp.arange(input_ids.shape[-1]) % 2)
        return {"input_ids": input_ids, "attention_mask": seen, "loss_mask": is_value}

    return metajax.Task(support=batch(ids.reshape(count, 1, 2 * pairs)), query=batch(ids))


def writer(sizes: Sizes, inner_steps: int, *, first_order: bool = False) -> MetaAlgorithm:
    """Return MAML whose inner steps update the vectors alone."""
    return metajax.maml(
        causal_lm_loss(network(sizes)),
        optax.sgd(sizes.inner_lr),
        inner_steps,
        first_order=first_order,
        unroll=True,  # On a CPU this and one task at a time are the fastest.
        trainable=is_prefix,
    )


def trainer(sizes: Sizes, method: str) -> metajax.OuterLoop:
    """Return the outer loop of a method."""
    algorithm = writer(
        sizes,
        0 if method == "no inner steps" else sizes.inner_steps,
        first_order=method == "first order",
    )
    rate = optax.schedules.linear_schedule(0.0, 1e-3, 100)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))
    return metajax.outer_loop(algorithm, optimizer, devices=jax.devices()[:1])


def train(
    outer: metajax.OuterLoop, sizes: Sizes, seed: int, num_steps: int, *, meta_batch_size: int = 32
) -> Params:
    """Meta-train a network and its vectors. Report progress on stderr."""
    init_rng, prefix_rng, data_rng, step_rng = jax.random.split(jax.random.key(seed), 4)
    params = init_prefix(network(sizes).init(init_rng), sizes.vectors, prefix_rng)
    state = outer.init(params, step_rng)
    sample = jax.jit(
        lambda step: draw(
            jax.random.fold_in(data_rng, step), meta_batch_size, sizes.pairs, held_out=False
        )
    )
    for step in range(num_steps):
        state, metrics = outer.step(state, sample(step))
        if step % 250 == 249:
            exact = 100 * float(metrics.query_aux["accuracy"])
            line = f"step {step + 1} of {num_steps}: exact match {exact:.1f} in training"
            print(line, file=sys.stderr, flush=True)
    return state.meta_params


def judge(
    algorithm: MetaAlgorithm, meta_params: Params, sizes: Sizes, seed: int, episodes: int
) -> np.ndarray:
    """Return the exact match (0..1) on held-out tasks, the same for all methods [episodes]."""
    task_rng, rng = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2026))
    tasks = draw(task_rng, episodes, sizes.pairs, held_out=True)
    result = run_episodes(algorithm, meta_params, tasks, rng)
    return np.asarray(result.query_aux["accuracy"])


def compare(sizes: Sizes, settings: argparse.Namespace) -> None:
    """Train with each method and seed, and print a row for each."""
    judges = [writer(sizes, k) for k in sorted({0, 1, sizes.inner_steps})]
    best: dict[int, np.ndarray] = {}  # By seed.
    cosines: list[str] = []
    for method in settings.methods:
        outer = trainer(sizes, method)
        for seed in settings.seed:
            print(f"{method}, {sizes.pairs} pairs, seed {seed}", file=sys.stderr, flush=True)
            began = time.perf_counter()
            meta_params = jax.block_until_ready(train(outer, sizes, seed, settings.steps))
            seconds = f"{time.perf_counter() - began:.0f} s"
            exact = [judge(each, meta_params, sizes, seed, settings.episodes) for each in judges]
            if method == "second order":
                best[seed] = exact[-1]
                start = train(outer, sizes, seed, 0)
                cosines.append(f"seed {seed}: {agreement(sizes, start, meta_params)}")
            ahead = "-"
            if seed in best and method != "second order":
                ahead = percent(estimate(best[seed] - exact[-1]))
            cells = "".join(f"{percent(estimate(values)):>16}" for values in exact)
            row = f"{method:<16}{sizes.pairs:>6}{seed:>6}{cells}{ahead:>22}{seconds:>12}"
            print(row, flush=True)
    for line in cosines:
        print(line, flush=True)


def agreement(sizes: Sizes, start: Params, end: Params) -> str:
    """Return a line on the cosine between the meta-gradients in second and first order."""
    second, first = (writer(sizes, sizes.inner_steps, first_order=order == 1) for order in (2, 1))
    tasks = draw(jax.random.key(2026), 32, sizes.pairs, held_out=True)
    return cosine_line(*(cosine(second, first, params, tasks) for params in (start, end)))


def main(arguments: list[str] | None = None) -> None:
    """Train with each method, and print the exact match after 0, 1 and K inner steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2], help="of each run")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--pairs", type=int, nargs="+", default=[16], help="pairs of a task")
    parser.add_argument("--vectors", type=int, default=4, help="vectors that pairs are written to")
    parser.add_argument("--inner-steps", type=int, default=2)
    parser.add_argument("--inner-lr", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--episodes", type=int, default=1000, help="number of tasks to test on")
    settings = parser.parse_args(arguments)
    for seed in settings.seed:
        check_numbers(
            parser,
            seed,
            vectors=settings.vectors,
            **{"inner-steps": settings.inner_steps},
            steps=settings.steps,
            episodes=settings.episodes,
        )
    if min(settings.pairs) < 2:
        parser.error(f"--pairs {min(settings.pairs)}: give 2 or more")
    if not 0 < settings.inner_lr < float("inf"):
        parser.error(f"--inner-lr {settings.inner_lr}: give a number above 0")
    steps = steps_header(sorted({0, 1, settings.inner_steps}))
    ahead = "second order ahead by"
    print(
        f"{'exact match':<16}{'pairs':>6}{'seed':>6}{steps}{ahead:>22}{'training':>12}", flush=True
    )
    for pairs in settings.pairs:
        compare(Sizes(pairs, settings.vectors, settings.inner_steps, settings.inner_lr), settings)


if __name__ == "__main__":
    main()
