r"""Find out why meta-training on some data sets can harm the accuracy on another.

Claim: harm depends on the scale of the logits and on the data sets. With logits of ten times a
cosine, training on CLINC150 raises the accuracy of a sentence encoder there and lowers it on
BANKING77; 40 ways raise both changes. With fifty times a cosine it rises on both. (On HWU64,
after training on the two others, both scales gain, and ten times gains more.)
Paper: prototypical networks (Snell et al. 2017, arXiv:1703.05175); averages of the weights before
and after training (Wortsman et al. 2022, arXiv:2109.01903); a pull to the start (Li et al. 2018,
arXiv:1802.01483); LoRA (Hu et al. 2021, arXiv:2106.09685).
Command: python -m experiments.drift --model MINILM --data DATA --root runs/drift \
    --train CLINC150 --held-out BANKING77 --variants tutorial "40 ways" "logit scale 50"
Hardware and time: two CPU cores, 140 s of CPU time per variant. On a machine with many other jobs a
variant took ten to fifteen minutes.
Expect: BANKING77 with 5 examples per class: 76.45 at the start, 74.19 after 40 steps, 77.20 at a
logit scale of 50.

A variant changes a setting of a prototypical network. Before, during and after its training, for
the mean of the weights after each step, and for averages of the last with the start, the nearest
prototype classifies among the first 77 classes of each data set: 20 draws of 1, 5 and 10 examples
per class, from 15 texts per class; the other texts are the queries. All rows have the same draws. A
finished run is kept in `--root`.
RESULTS.md explains DATA and MINILM.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from experiments.runs import SETS, command, digest, intent_sets, parser, percent
from experiments.transfer import write_sources
from metajax import data, lora
from metajax.data.seeding import generator
from metajax.models import Transformer
from metajax.models.contracts import Pooling
from metajax.runs.described import pooling_of
from metajax.runs.episodes import episode_sampler
from metajax.runs.features import features_of
from metajax.runs.similar_classes import with_similar_classes
from metajax.training.evaluation import estimate, nearest_prototype
from metajax.training.optimizer import adamw, learning_rate
from metajax.training.outer import global_norm
from metajax.tree import is_norm_or_bias
from metajax.types import Params

SHOTS = (1, 5, 10)
COSINES = ("within", "between", "nearest")  # Of texts of the data set left out.
CLASSES, PER_CLASS = 77, 15  # Of the texts to measure on.
TEXTS = 120  # Of a step.
Row = dict[str, Any]
SHARES = (0.25, 0.5)  # Of the end, in averages with the start.


class Variant(NamedTuple):
    """A training run.

    Attributes:
        learning_rate: the peak.
        ways: classes per episode. Several numbers alternate from step to step.
        shots: support examples per class. Several numbers alternate too.
        queries: query examples per class.
        logit_scale: the logits are about this many times a cosine.
        norms: train only normalizations and biases.
        lora: rank of adapters, which are trained instead of the weights. 0: no adapters. It does
            not go with `norms`, `block_rates` and `pull`.
        block_rates: the learning rate of a block relative to the next higher one, and of the
            embeddings relative to the first block.
        pull: share of the distance to the start that each step takes back.
        similar_classes: as for `metatrain`.
        mixed: an episode has classes of all data sets, not of one. Needs two data sets.
        names: the support example of a class is its name, as in zero-shot classification. Not with
            `mixed`.
    """

    learning_rate: float = 5e-5
    ways: tuple[int, ...] = (5,)
    shots: tuple[int, ...] = (1,)
    queries: int = 5
    logit_scale: float = 10.0
    norms: bool = False
    lora: int = 0
    block_rates: float = 1.0
    pull: float = 0.0
    similar_classes: int = 0
    mixed: bool = False
    names: bool = False

    def episodes(self, ways: int, shots: int) -> int:
        """Return the number of episodes of a step, all of which have `TEXTS` texts together."""
        return TEXTS // (ways * (shots + self.queries))


VARIANTS = {
    "tutorial": Variant(),
    "rate 2e-5": Variant(learning_rate=2e-5),
    "rate 1e-5": Variant(learning_rate=1e-5),
    "rate 2e-6": Variant(learning_rate=2e-6),
    "5 shots": Variant(shots=(5,), queries=1),
    "1 and 5 shots": Variant(shots=(1, 5), queries=3),
    "20 ways": Variant(ways=(20,)),
    "40 ways": Variant(ways=(40,), queries=2),
    "logit scale 5": Variant(logit_scale=5.0),
    "logit scale 20": Variant(logit_scale=20.0),
    "logit scale 50": Variant(logit_scale=50.0),
    "norms only": Variant(norms=True),
    "norms only, rate 5e-4": Variant(norms=True, learning_rate=5e-4),
    "5 to 20 ways": Variant(ways=(5, 10, 20)),
    "lora 8, rate 5e-4": Variant(lora=8, learning_rate=5e-4),
    "block rates 0.7": Variant(block_rates=0.7),
    "pull 0.05": Variant(pull=0.05),
    "mixed sets": Variant(mixed=True),
    "label names": Variant(names=True),
    "label names, logit scale 20": Variant(names=True, logit_scale=20.0),
    "similar classes, label names, logit scale 20": Variant(
        similar_classes=10, names=True, logit_scale=20.0
    ),
    "similar classes": Variant(similar_classes=10),
    "similar classes, logit scale 20": Variant(similar_classes=10, logit_scale=20.0),
    "similar classes, logit scale 50": Variant(similar_classes=10, logit_scale=50.0),
    "40 ways, logit scale 50": Variant(ways=(40,), queries=2, logit_scale=50.0),
    "40 ways, logit scale 50, rate 1e-5": Variant(1e-5, (40,), queries=2, logit_scale=50.0),
}


class Pool(NamedTuple):
    """Texts to measure on, grouped by class.

    Attributes:
        examples: C * `PER_CLASS` texts.
        classes: C.
    """

    examples: data.TokenizedTask
    classes: int


def pool(examples: data.TokenizedTask) -> Pool:
    """Choose `PER_CLASS` texts of each of the first `CLASSES` classes."""
    rng, by_class = generator(0, "pool"), examples.rows_by_class[:CLASSES]
    rows = [rng.choice(rows, PER_CLASS, replace=False) for rows in by_class]
    return Pool(data.take_examples(examples, np.concatenate(rows)), len(rows))


def accuracies(features_CxNxH: np.ndarray, shots: int, draws: int) -> list[float]:
    """Return the accuracy of the nearest prototype for each draw of the support set.

    Args:
        features_CxNxH: N texts of each of C classes.
        shots: support examples per class; the other texts are the queries.
        draws: number of draws. Each is a function of its number, so that all weights have the same.
    """
    classes, texts, size = features_CxNxH.shape
    found = []
    for draw in range(draws):
        rows_CxN = generator(0, "draw", shots, draw).permuted(
            np.tile(np.arange(texts), (classes, 1)), axis=1
        )
        mixed_CxNxH = np.take_along_axis(features_CxNxH, rows_CxN[:, :, None], axis=1)
        support, query = mixed_CxNxH[:, :shots], mixed_CxNxH[:, shots:]
        labels = np.arange(classes)
        guesses = nearest_prototype(
            support.reshape(-1, size), np.repeat(labels, shots), query.reshape(-1, size)
        )
        found.append(float(np.mean(guesses == np.repeat(labels, texts - shots))))
    return found


def measure(
    model: Transformer, params: Params, pools: dict[str, Pool], draws: int
) -> dict[str, Any]:
    """Measure weights on data sets.

    Args:
        model: with features of unit length.
        params: the weights.
        pools: texts of each data set.
        draws: number of draws.

    Returns:
        By data set: the accuracies of the draws by number of shots, the mean cosines of two texts
        of a class (`within`), of different classes (`between`), and of a class and the most similar
        one (`nearest`).
    """
    measured = {}
    for name, (examples, classes) in pools.items():
        flat = features_of(model, params, examples)
        features = flat.reshape(classes, PER_CLASS, -1)
        means = features.mean(1)
        within = (np.mean(np.sum(means**2, 1)) * PER_CLASS - 1) / (PER_CLASS - 1)
        apart = (means @ means.T)[~np.eye(classes, dtype=bool)].reshape(classes, classes - 1)
        cosines = {"within": within, "between": apart.mean(), "nearest": apart.max(1).mean()}
        measured[name] = cosines | {
            str(shots): accuracies(features, shots, draws) for shots in SHOTS
        }
    return measured


def train(
    model: Transformer,
    start: Params,
    examples: list[data.TokenizedTask],
    variant: Variant,
    steps: int,
    seed: int,
) -> Iterator[tuple[Params, Any]]:
    """Meta-train a prototypical network; yield the parameters and the metrics of each step."""
    examples = [mix(examples)] if variant.mixed else examples
    if variant.names:
        examples = [with_names(task, model.tokenizer) for task in examples]
    examples = with_similar_classes(model, start, examples, variant.similar_classes)
    model = model.replace(feature_norm=math.sqrt(variant.logit_scale))
    key = jax.random.key(seed)
    combine: Callable[[Params], Params] = lambda params: params  # noqa: E731
    frozen: Callable[[str], bool] | None = None
    if variant.norms:
        frozen = lambda path: not is_norm_or_bias(path)  # noqa: E731
    elif variant.lora:
        start = lora.init(start, rank=variant.lora, target=is_block_kernel, rng=key)
        combine, frozen = lora.merge, lora.is_base
    optimizer = optimizer_of(variant, start, steps)
    loops = []
    for ways, shots in itertools.product(variant.ways, variant.shots):
        algorithm = metajax.protonet(
            lambda params, batch, rng: model.features(combine(params), batch), ways
        )
        spec, count = data.EpisodeSpec(ways, shots, variant.queries), variant.episodes(ways, shots)
        if variant.names:
            sampler = name_sampler(examples, spec, seed, count, steps)
        else:
            sampler = episode_sampler(examples, spec, seed, count, steps, slice(0, count))
        loops.append((metajax.outer_loop(algorithm, optimizer, frozen=frozen), sampler))
    state = loops[0][0].init(start, key)
    for step in range(steps):
        outer, sampler = loops[step % len(loops)]
        state, metrics = outer.step(state, sampler(step))
        yield combine(state.meta_params), metrics


def is_block_kernel(path: str) -> bool:
    """Whether a path leads to a kernel of the blocks."""
    return path.startswith("layers/") and path.endswith("/kernel")


def optimizer_of(variant: Variant, start: Params, steps: int) -> optax.GradientTransformation:
    """Return the optimizer of `metatrain`, with the pull and the rates of a variant."""

    def pulled(updates: Params, params: Params | None = None) -> Params:
        back = lambda update, now, begin: update - variant.pull * (now - begin)  # noqa: E731
        return jax.tree.map(back, updates, params, start)

    def by_block(updates: Params, params: Params | None = None) -> Params:
        count = len(jax.tree.leaves(updates["layers"])[0])
        rates = variant.block_rates ** jnp.arange(count - 1.0, -1.0, -1.0)
        blocks = jax.vmap(optax.tree.scale)(rates, updates["layers"])
        lower = optax.tree.scale(variant.block_rates**count, updates["embeddings"])
        return {**updates, "layers": blocks, "embeddings": lower}

    schedule = learning_rate(variant.learning_rate, steps, math.ceil(0.1 * steps))
    parts = [adamw(schedule, weight_decay=0.01, clip_norm=1.0)]  # As `metatrain`.
    if variant.block_rates != 1:
        parts.append(optax.stateless(by_block))
    if variant.pull:
        parts.append(optax.stateless(pulled))
    return optax.chain(*parts)


def mix(examples: list[data.TokenizedTask]) -> data.TokenizedTask:
    """Return the classes of all data sets as those of one."""
    firsts = np.cumsum([0] + [len(task.labels) for task in examples])
    classes = np.cumsum([0] + [len(task.label_names) for task in examples])
    return data.TokenizedTask(
        "mixed",
        join_tokens([task.tokens for task in examples]),
        np.concatenate([task.labels + first for task, first in zip(examples, classes)]),
        tuple(f"{task.name} {label}" for task in examples for label in task.label_names),
        tuple(rows + first for task, first in zip(examples, firsts) for rows in task.rows_by_class),
    )


def join_tokens(parts: Sequence[data.Tokens]) -> data.Tokens:
    """Return the texts of all parts, padded to the same length."""
    width = max(part.input_ids.shape[1] for part in parts)

    def stacked(name: str) -> np.ndarray:
        arrays = [getattr(part, name) for part in parts]
        return np.concatenate([np.pad(a, [(0, 0), (0, width - a.shape[1])]) for a in arrays])

    return parts[0]._replace(
        input_ids=stacked("input_ids"),
        token_type_ids=stacked("token_type_ids"),
        lengths=np.concatenate([part.lengths for part in parts]),
    )


def with_names(task: data.TokenizedTask, tokenizer: Any) -> data.TokenizedTask:
    """Append the names of a data set's classes to its texts, for `name_sampler` only."""
    names = [name.replace("_", " ") for name in task.label_names]
    classes = np.arange(len(names))
    named = data.TaskData(task.name, names, None, classes, task.label_names)
    tokens = join_tokens([task.tokens, data.tokenize_task(named, tokenizer, 32).tokens])
    return task._replace(tokens=tokens, labels=np.concatenate([task.labels, classes]))


def name_sampler(
    examples: list[data.TokenizedTask], spec: data.EpisodeSpec, seed: int, count: int, steps: int
) -> Callable[[int], Any]:
    """Return a function from a step to its episodes, with names as support examples.

    Args:
        examples: the data sets, from `with_names`.
        spec: the size of an episode, with one support example per class, and no more classes than
            the smallest data set.
        seed: of the episodes.
        count: number of episodes per step.
        steps: number of steps.
    """
    firsts = np.array([len(task.labels) - len(task.label_names) for task in examples])

    def sample(step: int) -> data.Episodes:
        episodes = data.sample_episodes(examples, spec, seed, step, count)
        return episodes._replace(support=firsts[episodes.task][:, None] + episodes.classes)

    # The first steps show how long names and texts are, as in `plan_episodes`.
    plan = data.plan_drawn(examples, [sample(step) for step in range(8)], steps)

    def episodes(step: int) -> Any:
        drawn = sample(step)
        return data.gather(examples, drawn, [data.fit_episodes(examples, drawn, plan)])

    return episodes


class Material(NamedTuple):
    """What all variants share.

    Attributes:
        model: the network, with features of unit length.
        start: the original weights.
        examples: the data sets to train on.
        pools: texts to measure on, by data set. The last one is left out of the training.
    """

    model: Transformer
    start: Params
    examples: list[data.TokenizedTask]
    pools: dict[str, Pool]


def run(options: argparse.Namespace, material: Material, variant: Variant, seed: int) -> list[Row]:
    """Train a variant, and measure along the way, its mean, and between the start and the end."""
    model, start, examples, pools = material
    rows: list[Row] = []

    def add(at: str, params: Params, metrics: Sequence[Any]) -> None:
        moved = global_norm(jax.tree.map(jnp.subtract, params, start)) / global_norm(start)
        row: Row = {"at": at, "distance": float(moved)}
        if metrics:
            row["loss"] = float(np.mean([m.query_loss for m in metrics]))
            row["accuracy"] = float(np.mean([m.query_aux["accuracy"] for m in metrics]))
        rows.append(row | measure(model, params, pools, options.draws))

    recent: list[Any] = []
    params = mean = start
    for step, (params, metrics) in enumerate(
        train(model, start, examples, variant, options.steps, seed), start=1
    ):
        mean = optax.incremental_update(params, mean, 1 / step)
        recent.append(metrics)
        if step in (options.steps // 2, options.steps):
            add(f"step {step}", params, recent)
            recent = []
    add("mean of all steps", mean, ())
    for share in SHARES:
        add(f"{share:g} of the way", optax.incremental_update(params, start, share), ())
    return rows


def kept(
    options: argparse.Namespace, name: str, make: Callable[[], list[Row]], **settings: Any
) -> list[Row]:
    """Return rows, from `--root` if they have been made before with the same settings."""
    names = ("model", "train", "held_out", "draws")
    key = digest({each: getattr(options, each) for each in names} | settings)
    file = Path(options.root) / f"{name.replace(' ', '-')}-{key}.json"
    if not file.is_file():
        print(f"run {name}", flush=True)
        file.write_text(json.dumps(make()), encoding="utf-8")
    rows: list[Row] = json.loads(file.read_text(encoding="utf-8"))
    return rows


def show(title: str, rows: list[Row], sets: Sequence[str]) -> None:
    """Print how a run went: its loss, its distance from the start, and the accuracies."""
    heads = [f"{name[:6]} {shots}" for name in sets for shots in SHOTS]
    header = ["loss", "accuracy", "distance", *COSINES, *heads]
    print(f"{title:<40}" + "".join(f"{head:>11}" for head in header))
    for row in rows:
        last = row[sets[-1]]
        cells = [
            f"{row['loss']:.3f}" if "loss" in row else "-",
            f"{100 * row['accuracy']:.1f}" if "accuracy" in row else "-",
            f"{row['distance']:.4f}",
            *(f"{last[name]:.3f}" for name in COSINES),
            *(f"{100 * np.mean(row[name][str(n)]):.2f}" for name in sets for n in SHOTS),
        ]
        print(f"{row['at']:<40}" + "".join(f"{cell:>11}" for cell in cells), flush=True)


def summary(found: dict[str, list[list[Row]]], name: str) -> None:
    """Print how far each variant is ahead of the start on a data set, over its seeds and draws."""
    heads = "".join(f"{f'{shots}-shot':>16}" for shots in SHOTS)
    print(f"{f'ahead of the start on {name}':<40}{'weights':>20}{heads}")
    for variant, runs in found.items():
        for number, row in list(enumerate(runs[0]))[1:]:
            gains = [
                [np.subtract(rows[number][name][str(n)], rows[0][name][str(n)]) for rows in runs]
                for n in SHOTS
            ]
            cells = "".join(f"{percent(estimate(np.mean(gain, 0))):>16}" for gain in gains)
            print(f"{variant:<40}{row['at']:>20}{cells}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Train the variants, and print what happens to the accuracy on a data set left out."""
    made = parser(__doc__, "drift", steps=40)
    made.add_argument("--train", nargs="+", choices=SETS, default=["CLINC150"])
    made.add_argument("--held-out", choices=SETS, default="BANKING77")
    made.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: all that apply")
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    made.add_argument("--draws", type=int, default=20)
    options = made.parse_args(arguments)
    if options.held_out in options.train:
        made.error(f"--held-out {options.held_out}: is in --train; remove it there")
    apply = [name for name in VARIANTS if len(options.train) > 1 or not VARIANTS[name].mixed]
    for name in options.variants or ():
        if name not in apply:
            made.error(f"--variants {name}: needs two data sets; name two in --train")
    root = Path(options.root)
    root.mkdir(parents=True, exist_ok=True)
    files = write_sources(intent_sets(options), options.train, [options.held_out], root)
    files.append(str(intent_sets(options) / options.held_out / "full.jsonl"))
    pooling = cast(Pooling, pooling_of(options.model, "mean"))
    model, start = metajax.from_pretrained(options.model, pooling=pooling, feature_norm=1.0)
    examples = [
        data.tokenize_task(task, model.tokenizer, 32)._replace(name=name)
        for task, name in zip(data.load_tasks(files), (*options.train, options.held_out))
    ]
    pools = {task.name: pool(task) for task in examples}
    material = Material(model, start, examples[:-1], pools)
    unit = {"at": "start", "distance": 0.0}
    begin = kept(options, "start", lambda: [unit | measure(model, start, pools, options.draws)])
    found: dict[str, list[list[Row]]] = {}
    for name, seed in itertools.product(options.variants or apply, options.seeds):
        settings = VARIANTS[name]._asdict() | {"steps": options.steps, "seed": seed}
        make = partial(run, options, material, VARIANTS[name], seed)
        rows = begin + kept(options, f"{name} seed {seed}", make, **settings)
        show(f"{name}, seed {seed}", rows, list(pools))
        found.setdefault(name, []).append(rows)
    for name in pools:
        summary(found, name)


if __name__ == "__main__":
    command(main)
