"""Compare methods on the same episodes."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import jax
import numpy as np

from metajax import data
from metajax.config.settings import EvaluateSettings
from metajax.errors import InputError, printable
from metajax.models import Transformer
from metajax.runs.document_eval import DocumentRow, choose_methods, compare, open_eval_windows
from metajax.runs.document_eval import table as document_table
from metajax.runs.document_tasks import are_documents
from metajax.runs.eval_set import Choice, EvalSet, Row, choose_protocol
from metajax.runs.features import features_of, logits_on
from metajax.runs.few_shot import FewShot, not_meta_trained, open_few_shot
from metajax.runs.methods import method_of, train_on
from metajax.runs.original import open_original
from metajax.runs.recipes import RECIPES
from metajax.runs.source import text_length
from metajax.runs.support_training import plan_steps
from metajax.runs.task_data import load
from metajax.runs.workdir import writable, write_atomically
from metajax.training.evaluation import BASELINES, estimate, run_episodes
from metajax.types import Params, Task

_ADAPTING = ("checkpoint", "same-steps")  # By the inner loop.


def evaluate(settings: EvaluateSettings) -> list[Row] | list[DocumentRow]:
    """Run each method on the same episodes, or on the same windows of documents.

    `checkpoint` adapts the meta-parameters of the checkpoint. The other methods start from the
    weights from before meta-training: `same-steps` adapts them in the same way; `finetune` and
    `contrastive` train them on each support set; `prototypes`, `linear` and `knn` classify on
    their frozen features, scaled to unit length. Of pairs that a sentence encoder reads text by
    text, features have the scale of `adapt`. On documents, `none` does not adapt them, and
    `context` reads the stream before the text to predict.

    Returns:
        One row per method, in the order of the settings.

    Raises:
        InputError: the input cannot be used.
    """
    inputs = [task.removeprefix("smlmt:").removeprefix("documents:") for task in settings.tasks]
    inputs += [settings.classes or ""]
    if settings.splits:
        inputs += map(str, Path(settings.splits).glob("*"))
    output = writable(settings.output, *inputs) if settings.output else None
    rows = (_on_documents if are_documents(settings) else _on_episodes)(settings)
    if output:
        write_atomically(output, json.dumps([row._asdict() for row in rows], indent=2) + "\n")
    return rows


def _on_documents(settings: EvaluateSettings) -> list[DocumentRow]:
    few_shot = open_few_shot(settings.model, settings, settings, None)
    windows = open_eval_windows(settings, few_shot)
    methods = choose_methods(settings, few_shot, windows.spec)
    plain = few_shot if methods == ("checkpoint",) else _plain(settings, few_shot, None)
    return compare(settings, few_shot, plain, windows, methods)


def _on_episodes(settings: EvaluateSettings) -> list[Row]:
    tasks = load(settings, split="train")
    choice = choose_protocol(settings, tasks)
    few_shot = open_few_shot(settings.model, settings, settings, choice.ways)
    if settings.curve is not None and not few_shot.has_stateless_steps:
        optimizer = few_shot.inner["inner_optimizer"]
        raise InputError(
            f"--curve: not available for {optimizer or few_shot.inner['algorithm']}; remove --curve"
        )
    methods = _methods(settings, few_shot)
    plain = few_shot if methods == ("checkpoint",) else _plain(settings, few_shot, choice.ways)
    apart = plain.source.encodes_texts and any(task.pairs is not None for task in tasks)
    eval_sets = _open_sets(settings, few_shot, choice, methods, apart=apart)
    begun = time.perf_counter()
    features: dict[int, np.ndarray] = {}
    if baseline := next((method for method in methods if method in BASELINES), None):
        features = _frozen_features(plain, eval_sets[baseline])
    feature_seconds = time.perf_counter() - begun
    adaptation, steps = _adaptation(few_shot, settings), few_shot.inner["inner_steps"]
    rows: list[Row] = []
    for method in methods:
        start, eval_set = time.perf_counter(), eval_sets[method]
        adapts = method in _ADAPTING
        params = (few_shot if method == "checkpoint" else plain).meta_params
        if adapts:
            scores = eval_set.score(method, partial(adaptation, params))
        elif method in RECIPES:
            scores = _run_trained(method, plain, eval_set)
        else:
            scores = _run_baseline(method, features, eval_set)
        curve = settings.curve if adapts else None
        accuracies = scores if curve is None else scores[:, steps]
        seconds = time.perf_counter() - start + (feature_seconds if method in BASELINES else 0)
        row = _row(settings, eval_set, method, accuracies, seconds, rows[:1])
        if adapts:
            row = row._replace(inner_steps=steps)
        if curve is not None:
            by_step = estimate(scores[:, : curve + 1])
            row = row._replace(
                curve=tuple(map(float, by_step.mean)), curve_ci95=tuple(map(float, by_step.ci95))
            )
        rows.append(row)
    return rows


def _open_sets(
    settings: EvaluateSettings,
    few_shot: FewShot,
    choice: Choice,
    methods: Sequence[str],
    *,
    apart: bool,
) -> dict[str, EvalSet]:
    """Return the same episodes for each method, with tokens as it reads them.

    Args:
        settings: the settings.
        few_shot: the weights of `--model`.
        choice: the episodes.
        methods: the methods.
        apart: whether the texts of pairs are tokenized each by itself, except for inner steps.
    """
    reads_apart = {method: apart and method not in _ADAPTING for method in methods}
    opened: dict[bool, EvalSet] = {}
    if not all(reads_apart.values()):
        length = few_shot.text_length(settings.max_length)
        opened[False] = choice.open(few_shot.model, length)
    if any(reads_apart.values()):
        siamese = few_shot.model.replace(siamese=True)
        opened[True] = choice.open(siamese, text_length(siamese, settings.max_length))
    return {method: opened[reads_apart[method]] for method in methods}


def _row(
    settings: EvaluateSettings,
    eval_set: EvalSet,
    method: str,
    accuracies: np.ndarray,
    seconds: float,
    first: Sequence[Row],
) -> Row:
    """Make the row of a method, compared with the first method if there is one."""
    accuracy = estimate(accuracies)
    behind = estimate((first[0].accuracies if first else accuracies) - accuracies)
    return Row(
        tasks=" ".join(settings.tasks),
        protocol=eval_set.description,
        method=method,
        **eval_set.size._asdict(),
        inner_steps=0,
        episodes=len(accuracies),
        accuracy=float(accuracy.mean),
        ci95=float(accuracy.ci95),
        behind=float(behind.mean),
        behind_ci95=float(behind.ci95),
        seconds=round(seconds, 3),
        accuracies=tuple(map(float, accuracies)),
    )


def _plain(settings: EvaluateSettings, few_shot: FewShot, classes: int | None) -> FewShot:
    """Open the weights from before meta-training, or the model itself if not meta-trained."""
    if not few_shot.is_meta_trained:
        return few_shot
    return open_original(few_shot, settings, classes)


def _methods(settings: EvaluateSettings, few_shot: FewShot) -> tuple[str, ...]:
    trained = few_shot.is_meta_trained
    for method in ("none", "context"):
        if method in settings.methods:
            raise InputError(
                f"--methods {method}: needs documents; remove it, or give --tasks documents:PATH"
            )
    if settings.methods:
        if "checkpoint" in settings.methods and not trained:
            raise InputError(not_meta_trained(settings.model))
        return tuple(dict.fromkeys(settings.methods))
    return ("checkpoint", "same-steps", *BASELINES) if trained else ("same-steps", *BASELINES)


def _adaptation(
    few_shot: FewShot, settings: EvaluateSettings
) -> Callable[[Params, int, Task], jax.Array]:
    """Make `(params, first, tasks) -> query accuracy`, [T], or [T, S + 1] by step with `--curve`.

    All methods that adapt share the function, so that it is compiled once.
    """
    if settings.curve is None:
        algorithm, rng = few_shot.algorithm(), jax.random.key(settings.seed)
        return lambda params, first, tasks: run_episodes(
            algorithm, params, tasks, rng, first=first
        ).query_aux["accuracy"]
    curve = few_shot.curve(max(settings.curve, few_shot.inner["inner_steps"]))
    return lambda params, first, tasks: curve(params, tasks)


def _run_trained(method: str, few_shot: FewShot, eval_set: EvalSet) -> np.ndarray:
    """Return the query accuracies [E] of a network that is trained on each support set."""
    supports = [_support(eval_set, episodes, t) for episodes, t in _each(eval_set.episodes)]
    plan = plan_steps(supports, RECIPES[method], few_shot.seed)
    accuracies: list[float] = []
    known: tuple[bytes, Params] = b"", {}
    for episodes in eval_set.progress(method):
        for t, task in enumerate(episodes.task):
            support = supports[len(accuracies)]
            key = np.asarray(support.tokens.input_ids).tobytes() + support.labels.tobytes()
            if key != known[0]:  # Published draws have several episodes with one support set.
                own = few_shot._replace(model=_network_for(support, few_shot))
                known = key, train_on(own, support, method_of(method), plan=plan).params
            rows = episodes.query[t][episodes.query_mask[t] > 0]
            query = data.take_examples(eval_set.examples[task], rows)
            logits = logits_on(_network_for(query, few_shot), known[1], query)
            labels = episodes.query_labels[t][episodes.query_mask[t] > 0]
            accuracies.append(float(np.mean(logits.argmax(1) == labels)))
    return eval_set.by_draw(accuracies)


def _each(chunks: Sequence[data.Episodes]) -> Iterator[tuple[data.Episodes, int]]:
    return ((episodes, t) for episodes in chunks for t in range(len(episodes.task)))


def _support(eval_set: EvalSet, episodes: data.Episodes, t: int) -> data.TokenizedTask:
    """Return the support set of an episode with the classes of the episode."""
    kept = episodes.support_mask[t] > 0
    rows, labels = episodes.support[t][kept], episodes.support_labels[t][kept]
    return data.take_examples(eval_set.examples[episodes.task[t]], rows)._replace(labels=labels)


def _network_for(examples: data.TokenizedTask, few_shot: FewShot) -> Transformer:
    """Return the network for some examples: a siamese one for pairs of texts apart."""
    return few_shot.model.replace(siamese=examples.tokens.apart)


def _frozen_features(few_shot: FewShot, eval_set: EvalSet) -> dict[int, np.ndarray]:
    """Return the frozen features of each data set of the episodes.

    They have unit length, but those of pairs apart have the scale of `adapt`, which says how much
    `u * v` weighs beside `|u - v|`.
    """
    unit = few_shot._replace(model=few_shot.model.replace(feature_norm=1.0))
    features = {}
    for number in {int(task) for chunk in eval_set.episodes for task in chunk.task}:
        examples = eval_set.examples[number]
        own = few_shot if examples.tokens.apart else unit
        features[number] = features_of(_network_for(examples, own), few_shot.params, examples)
    return features


def _run_baseline(method: str, features: dict[int, np.ndarray], eval_set: EvalSet) -> np.ndarray:
    """Return the query accuracies [E] of a classifier on frozen features."""
    classify = BASELINES[method]
    accuracies = []
    for episodes in eval_set.progress(method):
        for t, task in enumerate(episodes.task):
            support, query = episodes.support_mask[t] > 0, episodes.query_mask[t] > 0
            guesses = classify(
                features[int(task)][episodes.support[t][support]],
                episodes.support_labels[t][support],
                features[int(task)][episodes.query[t][query]],
            )
            accuracies.append(np.mean(guesses == episodes.query_labels[t][query]))
    return eval_set.by_draw(accuracies)


def table(rows: Sequence[Row] | Sequence[DocumentRow]) -> str:
    """Format the rows as text, best first, with the lead of the first method over the others."""
    if isinstance(rows[0], DocumentRow):
        return document_table(cast(Sequence[DocumentRow], rows))
    return _episode_table(cast(Sequence[Row], rows))


def _episode_table(rows: Sequence[Row]) -> str:
    best_first = sorted(rows, key=lambda row: -row.accuracy)
    return "\n".join(
        [
            printable(rows[0].protocol),
            "method      accuracy   95% interval   seconds",
            *(
                f"{row.method:<10}  {100 * row.accuracy:7.2f}%   "
                f"± {100 * row.ci95:5.2f}        {row.seconds:7.1f}"
                for row in best_first
            ),
            *(
                f"{rows[0].method} ahead of {row.method} by {100 * row.behind:.2f} "
                f"± {100 * row.behind_ci95:.2f}, episode by episode"
                for row in best_first
                if row is not rows[0]
            ),
        ]
    )
