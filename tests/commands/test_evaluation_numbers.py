"""Compare every number of `evaluate` with PyTorch and scikit-learn, on each episode."""

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import stats

from metajax import data
from metajax.commands import evaluate as stage
from metajax.commands.evaluate import Row, evaluate, table
from metajax.config.settings import EvaluateSettings
from metajax.data import draws
from metajax.models import from_pretrained, read_model
from metajax.runs.eval_set import EvalSet, choose_protocol
from metajax.runs.few_shot import FewShot, open_as_trained, open_few_shot
from metajax.types import MetaAlgorithm, MetaInfo
from tests.reference import Reference, meta_trained, one_thread, uneven_examples

pytestmark = pytest.mark.xdist_group("evaluation numbers")  # These tests share their results.

EPISODES, SEED, WAYS, SHOTS, QUERIES = 11, 3, 3, 2, 4  # Two chunks, the second one not full.
LENGTH = 10  # Some texts have more tokens.
STEPS, RATE = 2, 0.003  # Neither is the default. With this rate each step changes the accuracies.
METHODS = ("checkpoint", "same-steps", "prototypes", "linear", "knn")
ADAPT, JUDGE, FEATURES = 10.0, 1.0, 1000.0  # Seconds of these methods, on the tests' clock.


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A meta-trained model, two data sets, and the settings of an evaluation on both."""
    root = tmp_path_factory.mktemp("numbers")
    models = meta_trained(root, inner_steps=STEPS, inner_lr=RATE)
    rows = [uneven_examples(5, 7, 1), uneven_examples(4, 8, 2, first=5)]
    tasks = [tiny.write_rows(root / f"{n}.jsonl", each) for n, each in enumerate(rows)]
    settings = EvaluateSettings(
        model=str(models.workdir),
        tasks=tuple(map(str, tasks)),
        ways=WAYS,
        shots=SHOTS,
        queries=QUERIES,
        episodes=EPISODES,
        seed=SEED,
        max_length=LENGTH,
        output=str(root / "rows.json"),
    )
    directories = {"checkpoint": models.tuned, "same-steps": models.original}
    references = {name: Reference(path, LENGTH) for name, path in directories.items()}
    return SimpleNamespace(settings=settings, root=root, models=models, references=references)


def judged(references, method, support, labels, query, truths, **inner):
    """Return a method's accuracy on an episode, or its accuracies after 0, 1, ... steps."""
    if method in references:
        return references[method].adapted(support, labels, query, truths, **inner)
    return np.mean(references["same-steps"].baseline(method, support, labels, query) == truths)


@pytest.fixture(scope="module")
def expected(material):
    """Return the accuracies of each method: [E], or [E, steps + 1] if it adapts."""
    tasks = data.load_tasks(material.settings.tasks)
    tokenizer = material.references["checkpoint"].tokenizer
    examples = [data.tokenize_task(task, tokenizer, LENGTH) for task in tasks]
    spec = data.EpisodeSpec(WAYS, SHOTS, QUERIES)
    drawn = zip(*data.sample_episodes(examples, spec, SEED, 0, EPISODES))
    found = {method: [] for method in METHODS}
    with one_thread():
        for each in itertools.starmap(data.Episodes, drawn):
            texts = tasks[each.task].texts
            support, query = ([texts[row] for row in rows] for rows in (each.support, each.query))
            labels = each.support_labels, each.query_labels
            for method in METHODS:
                accuracy = judged(
                    *(material.references, method, support, labels[0], query, labels[1]),
                    rate=RATE,
                    steps=STEPS,
                )
                found[method].append(accuracy)
    return {method: np.array(values) for method, values in found.items()}


@pytest.fixture(scope="module")
def rows(material):
    """Results of `evaluate`, with a curve of fewer steps than are taken, on the tests' clock."""
    now = [0.0]

    def taking(seconds, function):
        def timed(*arguments, **settings):
            now[0] += seconds
            return function(*arguments, **settings)

        return timed

    with tiny.one_device(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "time", SimpleNamespace(perf_counter=lambda: now[0]))
        patch.setattr(EvalSet, "score", taking(ADAPT, EvalSet.score))
        patch.setattr(stage, "_run_baseline", taking(JUDGE, stage._run_baseline))
        patch.setattr(stage, "_frozen_features", taking(FEATURES, stage._frozen_features))
        return evaluate(dataclasses.replace(material.settings, curve=1))


def test_each_accuracy_is_what_pytorch_and_scikit_learn_find(rows, expected):
    assert [row.method for row in rows] == list(METHODS)
    for row in rows:
        wanted = expected[row.method]
        after = wanted if wanted.ndim == 1 else wanted[:, STEPS]
        np.testing.assert_allclose(row.accuracies, after, atol=1e-6, err_msg=row.method)
        assert row.accuracy == pytest.approx(after.mean(), abs=1e-6)
    # All methods and all steps differ, so equal numbers are not a coincidence. (Before the first
    # step, same-steps equals prototypes.)
    different = {tuple(expected[name]) for name in METHODS[2:]}
    different |= {tuple(after) for name in METHODS[:2] for after in expected[name].T}
    assert len(different) == len(METHODS) - 2 + 2 * (STEPS + 1) - 1


def test_the_curve_is_of_the_first_steps_in_order(rows, expected):
    for row in rows[:2]:
        by_step = expected[row.method][:, :2]
        error = stats.sem(by_step) * stats.t.ppf(0.975, EPISODES - 1)
        np.testing.assert_allclose(row.curve, by_step.mean(0), atol=1e-6)
        np.testing.assert_allclose(row.curve_ci95, error, atol=1e-6)
        assert row.inner_steps == STEPS
    assert all(row.curve == row.curve_ci95 == () and row.inner_steps == 0 for row in rows[2:])


def test_a_row_says_what_it_is_of_and_how_sure_it_is(material, rows):
    first = np.array(rows[0].accuracies)
    for row in rows:
        mine = np.array(row.accuracies)
        for values, mean, interval in (
            (mine, row.accuracy, row.ci95),
            (first - mine, row.behind, row.behind_ci95),
        ):
            assert mean == pytest.approx(values.mean(), abs=1e-12)
            wanted = stats.t.ppf(0.975, EPISODES - 1) * stats.sem(values)
            assert interval == pytest.approx(wanted, abs=1e-12)
        assert (row.ways, row.shots, row.queries, row.episodes) == (WAYS, SHOTS, QUERIES, EPISODES)
        assert row.tasks == " ".join(material.settings.tasks)
        assert row.protocol == (
            "11 episodes drawn at random with seed 3: 3 ways, 2 shots, 4 queries per class, each "
            "classified by itself"
        )
    assert [row.seconds for row in rows] == [ADAPT] * 2 + [FEATURES + JUDGE] * 3
    written = json.loads((material.root / "rows.json").read_text())
    assert written == json.loads(json.dumps([row._asdict() for row in rows]))


def test_methods_stand_in_the_order_given_each_once(material, rows):
    """The other methods are compared with the first one."""
    methods = ("knn", "linear", "knn")
    found = evaluate(dataclasses.replace(material.settings, methods=methods))
    assert [row.method for row in found] == ["knn", "linear"]
    known = {row.method: row for row in rows}
    for row in found:
        assert row.accuracies == known[row.method].accuracies
        behind = known["knn"].accuracy - known[row.method].accuracy
        assert row.behind == pytest.approx(behind, abs=1e-12)


def test_published_draws_are_what_pytorch_and_scikit_learn_find(material, tmp_path, monkeypatch):
    """With other settings of the inner loop than the model's."""
    monkeypatch.setattr(draws, "_MOST_QUERIES", 20)  # Each draw's queries are two episodes.
    given = {"inner_steps": 1, "inner_lr": 2 * RATE}
    [path] = material.settings.tasks[:1]
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    own = [[row for row in lines if row["label"] == f"topic{n}"][: 1 + n % 2] for n in range(5)]
    others = dict(uneven_examples(5, 2, 9)[:-1])
    supports = [
        [(row["text"], row["label"]) for rows in own for row in rows],
        list(others.items()),
    ]
    (tmp_path / "draws").mkdir()
    for number, support in enumerate(supports):
        tiny.write_rows(tmp_path / "draws" / f"{number}.csv", support)
    methods = ("same-steps", "checkpoint", "linear", "prototypes")
    sizes = dict.fromkeys(("ways", "shots", "queries", "episodes"))
    changes = {"tasks": (path,), "splits": str(tmp_path / "draws"), "methods": methods}
    rows = evaluate(dataclasses.replace(material.settings, **changes, **sizes, **given))
    assert [row.method for row in rows] == list(methods)
    for number, support in enumerate(supports):
        query = [row for row in lines if row["text"] not in {text for text, _ in support}]
        assert len(query) == len(lines) - (0 if number else len(support))
        texts, truths = [[row[key] for row in query] for key in ("text", "label")]
        labels, truths = ([int(y[-1]) for y in each] for each in ([y for _, y in support], truths))
        for row in rows:
            with one_thread():
                wanted = judged(
                    *(material.references, row.method, [x for x, _ in support]),
                    *(np.array(labels), texts, np.array(truths)),
                    rate=given["inner_lr"],
                    steps=1,
                )
            assert row.accuracies[number] == pytest.approx(np.ravel(wanted)[-1], abs=1e-6)
    for row in rows:
        assert (row.ways, row.shots, row.queries, row.episodes) == (5, 2, len(lines), 2)
        assert row.accuracy == pytest.approx(np.mean(row.accuracies), abs=1e-12)
        assert row.protocol == (
            f"2 published draws of {tmp_path / 'draws'}: 5 ways, 1 to 2 shots, queries all other "
            f"examples of {path}, each classified by itself"
        )


def test_each_episode_has_the_key_of_its_number(material, monkeypatch):
    """So dropout, if an algorithm has it, does not depend on the chunk."""

    def meta_grad(params, task, rng):
        accuracy = jax.random.uniform(rng)
        return None, MetaInfo(jnp.zeros(()), {"accuracy": accuracy}, jnp.zeros(0))

    algorithm = MetaAlgorithm(lambda params: params, None, meta_grad)
    monkeypatch.setattr(FewShot, "algorithm", lambda self: algorithm)
    [row] = evaluate(dataclasses.replace(material.settings, methods=("same-steps",)))
    keys = (jax.random.fold_in(jax.random.key(SEED), number) for number in range(EPISODES))
    wanted = [float(jax.random.uniform(key)) for key in keys]
    np.testing.assert_allclose(row.accuracies, wanted, rtol=1e-6)


def test_the_original_weights_are_opened_as_the_model_is(material):
    """The same network and inner loop, but other weights."""
    given = {"dtype": "bfloat16", "remat": True, "lora": 2, "inner_steps": 7}
    settings = dataclasses.replace(material.settings, **given)
    trained = open_few_shot(settings.model, settings, settings, WAYS)
    plain = open_as_trained(str(material.models.original), settings, trained, WAYS)
    networks = [each.model.replace(source=None) for each in (trained, plain)]
    assert networks[0] == networks[1]
    assert (networks[0].remat, networks[0].dtype) == (True, jnp.bfloat16)
    assert plain.inner == trained.inner
    assert (plain.inner["lora"], plain.inner["inner_steps"]) == (2, 7)
    for each, directory in ((trained, "tuned"), (plain, "original")):
        stored = from_pretrained(str(material.root / directory), head="encoder")[1]["embeddings"]
        tiny.assert_same_bits(each.params["embeddings"], stored)


def test_the_episodes_are_those_of_the_seed_whatever_the_chunk(material):
    """By default 600 episodes with five ways, one shot and five queries."""
    changes = dict.fromkeys(("ways", "shots", "queries", "episodes"))
    settings = dataclasses.replace(material.settings, **changes, tasks=material.settings.tasks[:1])
    tasks = data.load_tasks(settings.tasks)
    choice = choose_protocol(settings, tasks)
    model = read_model(str(material.models.original), head="encoder")
    found = choice.open(model, LENGTH)
    examples = [data.tokenize_task(tasks[0], model.tokenizer, LENGTH)]
    wanted = data.sample_episodes(examples, data.EpisodeSpec(5, 1, 5), SEED, 0, 600)
    for field, one in zip(zip(*found.episodes), wanted):
        np.testing.assert_array_equal(np.concatenate(field), one)
    assert (choice.ways, *found.size) == (5, 5, 1, 5)
    np.testing.assert_array_equal(found.draw, np.arange(600))
    assert found.description.startswith(
        "600 episodes drawn at random with seed 3: 5 ways, 1 shots, 5 que"
    )
    np.testing.assert_array_equal(found.examples[0].tokens.input_ids, examples[0].tokens.input_ids)


def test_whole_tasks_have_all_classes_whatever_the_ways(material):
    settings = dataclasses.replace(material.settings, whole_tasks=True)
    tasks = data.load_tasks(settings.tasks)
    choice = choose_protocol(settings, tasks)
    found = choice.open(read_model(str(material.models.original), head="encoder"), LENGTH)
    assert (choice.ways, *found.size) == (5, 5, SHOTS, QUERIES)
    classes = np.concatenate([each.class_mask.sum(1) for each in found.episodes])
    which = np.concatenate([each.task for each in found.episodes])
    np.testing.assert_array_equal(classes, np.array([5, 4])[which])
    assert {0, 1} == set(which)
    assert len(found.draw) == len(which) == EPISODES
    assert ": all classes of a data set, 2 shots, 4 queries per class" in found.description


def test_a_draw_counts_its_queries_alike():
    """Whichever of its episodes they are in."""

    def chunk(*queries):
        mask = np.arange(3) < np.array(queries)[:, None]
        return data.Episodes(*[None] * 6, mask.astype(np.float32), None, None)

    drawn = [chunk(3, 1), chunk(2), chunk(1)]
    protocol = EvalSet("", None, (), drawn, (), np.array([0, 0, 1, 1]))
    curve = np.array([[1, 0], [0, 1], [0.5, 1], [0, 0]])
    wanted = [[3 / 4, 1 / 4], [1 / 3, 2 / 3]]
    np.testing.assert_allclose(protocol.by_draw(list(curve)), wanted, atol=1e-12)
    np.testing.assert_allclose(protocol.by_draw(curve[:, 0]), [3 / 4, 1 / 3], atol=1e-12)


def test_the_table_is_best_first_in_percent():
    def row(method, accuracy, behind, seconds):
        return Row(
            *("tasks", "of these", method, 3, 2, 4, 1, 2, accuracy, accuracy / 10),
            *(behind, behind / 4, seconds, (0.1, 0.2)),
        )

    rows = [
        row("checkpoint", 0.5, 0.0, 1.5),
        row("knn", 0.25, 0.25, 20),
        row("linear", 0.75, -0.25, 3),
    ]
    said, header, *lines = table(rows).splitlines()
    assert (said, header.split()) == (
        "of these",
        ["method", "accuracy", "95%", *header.split()[3:]],
    )
    assert [line.split() for line in lines[:3]] == [
        ["linear", "75.00%", "±", "7.50", "3.0"],
        ["checkpoint", "50.00%", "±", "5.00", "1.5"],
        ["knn", "25.00%", "±", "2.50", "20.0"],
    ]
    assert lines[3:] == [
        "checkpoint ahead of linear by -25.00 ± -6.25, episode by episode",
        "checkpoint ahead of knn by 25.00 ± 6.25, episode by episode",
    ]
