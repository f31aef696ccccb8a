import collections
import itertools

import numpy as np
import pytest

from metajax.data import (
    EpisodeSpec,
    Shape,
    TaskData,
    check_episodes,
    draw_sources,
    fit_episodes,
    gather,
    plan_episodes,
    sample_episodes,
)
from metajax.errors import InputError

SPEC = EpisodeSpec(ways=3, shots=2, queries=4)
WHOLE = EpisodeSpec(ways=None, shots=2, queries=3)


@pytest.fixture(scope="module")
def intents(make_task):
    return [make_task("a", [8] * 6), make_task("b", [9] * 4)]


@pytest.fixture(scope="module")
def glue(make_task):
    """Data sets of 2 and 3 classes; the second one's texts are longer, and pairs."""
    two, three = make_task("two", [10, 12], longest=4), make_task("three", [9, 7, 11], longest=20)
    second = np.arange(three.tokens.input_ids.shape[1]) >= three.tokens.lengths[:, None] // 2
    pairs = three.tokens._replace(token_type_ids=second.astype(np.int8))
    return [two, three._replace(tokens=pairs)]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_episodes_are_a_function_of_seed_and_step(intents):
    episodes = sample_episodes(intents, SPEC, 1, 2, 8)
    assert_same(episodes, sample_episodes(intents, SPEC, 1, 2, 8))
    for seed, step in ((1, 3), (2, 2)):
        other = sample_episodes(intents, SPEC, seed, step, 8)
        assert (other.support != episodes.support).any(axis=1).all()


def test_the_sources_are_those_of_the_episodes(intents):
    """They are drawn again for each episode, so most steps see several."""
    sources = draw_sources(intents, 1, 2, 8)
    np.testing.assert_array_equal(sources, sample_episodes(intents, SPEC, 1, 2, 8).task)
    steps = np.stack([draw_sources(intents, 0, step, 2) for step in range(2000)])
    share = (steps == 1).mean()
    assert share == pytest.approx(6 / (6 + 48**0.5), abs=0.02)  # Of 36 and 48 examples.
    assert (steps[:, 0] != steps[:, 1]).mean() == pytest.approx(2 * share * (1 - share), abs=0.03)


def test_similar_classes_share_an_episode(intents):
    """Each class is the centre of as many episodes, and an episode has only its similar classes."""
    similar = np.array(
        [[0, 1, 2, 3], [1, 0, 2, 3], [2, 1, 0, 5], [3, 4, 5, 0], [4, 3, 5, 1], [5, 4, 3, 2]]
    )
    task = intents[0]._replace(similar=similar)
    episodes = sample_episodes([task], SPEC, 0, 0, 6000)
    sets = [frozenset(classes) for classes in episodes.classes.tolist()]
    allowed = [
        {frozenset(three) for three in itertools.combinations(row, 3)} for row in similar.tolist()
    ]
    expected = collections.Counter()
    for row in allowed:
        for three in row:
            expected[three] += 6000 / (6 * 4)
    found = collections.Counter(sets)
    assert found.keys() == expected.keys()
    for three, count in expected.items():
        assert found[three] == pytest.approx(count, abs=5 * count**0.5)


@pytest.mark.parametrize("weights", [(1, 3), (0.5, 1.5), (2, 0), (0, 0.1)])
def test_sources_are_drawn_by_their_weights(intents, weights):
    weighted = [task._replace(weight=weight) for task, weight in zip(intents, weights)]
    sources = draw_sources(weighted, 0, 0, 4000)
    shares = np.bincount(sources, minlength=2) / 4000
    assert shares == pytest.approx(np.array(weights) / sum(weights), abs=0.03 * all(weights))


def test_only_examples_that_episodes_use_count(intents):
    """Such as those that are not held out, and one of each text."""
    few = intents[0]._replace(rows_by_class=tuple(r[:1] for r in intents[0].rows_by_class))
    sources = draw_sources([few, intents[1]], 0, 0, 4000)
    assert (sources == 0).mean() == pytest.approx(6**0.5 / (6**0.5 + 6), abs=0.03)


def test_shares_make_up_the_whole(intents):
    whole = sample_episodes(intents, SPEC, 1, 2, 8)
    shares = [sample_episodes(intents, SPEC, 1, 2, 2, first=first) for first in (0, 2, 4, 6)]
    assert_same(whole, [np.concatenate(parts) for parts in zip(*shares)])


@pytest.mark.parametrize("spec", [SPEC, WHOLE])
def test_support_and_query_are_disjoint_and_labelled_rightly(intents, spec):
    episodes = sample_episodes(intents, spec, 0, 0, 50)
    for t, task in enumerate(episodes.task):
        support = episodes.support[t][episodes.support_mask[t] > 0]
        query = episodes.query[t][episodes.query_mask[t] > 0]
        rows = np.concatenate([support, query])
        assert len(set(rows.tolist())) == len(rows)
        classes = episodes.classes[t][episodes.class_mask[t] > 0]
        assert len(set(classes.tolist())) == len(classes) == (spec.ways or [6, 4][task])
        labels = intents[task].labels
        ours = episodes.support_labels[t][: len(support)]
        np.testing.assert_array_equal(labels[support], classes[ours])
        np.testing.assert_array_equal(np.bincount(ours), [spec.shots] * len(classes))
        ours = episodes.query_labels[t][: len(query)]
        np.testing.assert_array_equal(labels[query], classes[ours])
        np.testing.assert_array_equal(np.bincount(ours), [spec.queries] * len(classes))


def test_classes_and_examples_are_drawn_uniformly(intents):
    episodes = sample_episodes(intents[:1], SPEC, 0, 0, 3000)
    counts = np.stack([np.bincount(way, minlength=6) for way in episodes.classes.T])
    assert counts / 3000 == pytest.approx(1 / 6, abs=0.03)  # in every place
    for rows in (episodes.support, episodes.query):
        shares = np.bincount(rows.ravel(), minlength=48) / rows.size
        assert shares == pytest.approx(1 / 48, rel=0.2)


def test_data_sets_are_drawn_by_the_root_of_their_size(make_task):
    # 288 texts, none of them twice, and 32: 3 to 1.
    tasks = [make_task("large", [72] * 4, longest=11), make_task("small", [8] * 4)]
    task = sample_episodes(tasks, EpisodeSpec(2, 1, 1), 0, 0, 4000).task
    assert np.mean(task == 0) == pytest.approx(0.75, abs=0.025)


def test_two_and_three_classes_in_one_batch(glue):
    episodes = sample_episodes(glue, WHOLE, 0, 0, 20)
    assert episodes.support.shape == (20, 6)
    assert episodes.query.shape == (20, 9)
    assert episodes.class_mask.shape == (20, 3)
    assert set(episodes.task.tolist()) == {0, 1}
    for t, task in enumerate(episodes.task):
        ways = len(glue[task].label_names)
        assert episodes.class_mask[t].tolist() == [1.0] * ways + [0.0] * (3 - ways)
        assert episodes.support_mask[t].tolist() == [1.0] * 2 * ways + [0.0] * 2 * (3 - ways)
        assert episodes.query_mask[t].tolist() == [1.0] * 3 * ways + [0.0] * 3 * (3 - ways)
        assert (episodes.support[t][2 * ways :] == episodes.support[t, 0]).all()
        assert not episodes.support_labels[t][2 * ways :].any()
        assert sorted(episodes.classes[t]) == sorted([-1] * (3 - ways) + list(range(ways)))
    orders = {tuple(row) for row in episodes.classes[episodes.task == 0]}
    assert orders == {(0, 1, -1), (1, 0, -1)}  # labels mean nothing beyond the episode


def test_a_batch_of_few_classes_has_the_shape_of_all(glue):
    for step in range(20):
        assert sample_episodes(glue, WHOLE, 0, step, 1).class_mask.shape == (1, 3)


def test_gather_takes_the_rows(glue):
    episodes = sample_episodes(glue, WHOLE, 0, 1, 6)
    batch = gather(glue, episodes, plan_episodes(glue, WHOLE, 0, 6, 100))
    for name in ("support", "query"):
        part, rows = getattr(batch, name), getattr(episodes, name)
        tokens = {"input_ids", "token_type_ids", "position_ids", "example_ids", "first_token"}
        assert set(part) == tokens | {"labels", "example_mask", "class_mask"}
        assert rows.shape == part["first_token"].shape
        mask = getattr(episodes, f"{name}_mask")
        for t, task in enumerate(episodes.task):
            texts = glue[task].tokens
            for b, row in enumerate(rows[t]):
                length = int(texts.lengths[row] * mask[t, b])  # padding takes no room
                for key in ("input_ids", "token_type_ids"):
                    found = part[key][t][part["example_ids"][t] == b]
                    np.testing.assert_array_equal(found, getattr(texts, key)[row, :length])
        np.testing.assert_array_equal(part["labels"], getattr(episodes, f"{name}_labels"))
        np.testing.assert_array_equal(part["example_mask"], mask)
        np.testing.assert_array_equal(part["class_mask"], episodes.class_mask)
        integers = [part[k].dtype for k in part if not k.endswith("mask")]
        assert set(integers) == {np.dtype(np.int32)}
        assert part["example_mask"].dtype == part["class_mask"].dtype == np.float32


def test_classes_that_an_episode_does_not_have_need_no_room(glue):
    for step in range(20):
        episodes = sample_episodes(glue, WHOLE, 0, step, 1)
        tokens = glue[episodes.task[0]].tokens
        sizes = [
            tokens.lengths[rows[0]][mask[0] > 0].sum()
            for rows, mask in (
                (episodes.support, episodes.support_mask),
                (episodes.query, episodes.query_mask),
            )
        ]
        exact = tuple(Shape(1, int(size)) for size in sizes)
        assert fit_episodes(glue, episodes, [exact, (Shape(9, 99),) * 2]) == exact


def test_few_shapes_serve_all_steps(glue):
    assert len({plan_episodes(glue, WHOLE, seed, 2, 100) for seed in range(3)}) > 1
    plan = plan_episodes(glue, WHOLE, 0, 2, 100)
    assert plan_episodes(glue, WHOLE, 0, 2, 1) == plan[1:]
    shapes = set()
    for step in range(100):
        episodes = sample_episodes(glue, WHOLE, 0, step, 2)
        batch = gather(glue, episodes, plan)
        shapes.add((batch.support["input_ids"].shape[1:], batch.query["input_ids"].shape[1:]))
        assert (batch.query["input_ids"] > 0).sum() == (batch.query["example_ids"] >= 0).sum()
    assert shapes <= set(plan)
    assert len(plan) <= 3


def test_hosts_pack_their_shares_as_the_whole(glue):
    plan = plan_episodes(glue, WHOLE, 0, 8, 100)
    whole = sample_episodes(glue, WHOLE, 0, 0, 8)
    shapes = fit_episodes(glue, whole, plan)
    expected = gather(glue, whole, plan)
    samples = [sample_episodes(glue, WHOLE, 0, 0, 1, first=first) for first in range(8)]
    shares = [gather(glue, sample, [shapes]) for sample in samples]
    for name in ("support", "query"):
        for key, value in getattr(expected, name).items():
            parts = [getattr(share, name)[key] for share in shares]
            np.testing.assert_array_equal(np.concatenate(parts), value)


def test_check_episodes(glue, intents):
    check_episodes(intents, SPEC)
    check_episodes(glue, WHOLE)
    data = TaskData("d.csv", list("tuvwx"), None, np.array([0, 0, 0, 1, 1], np.int32), ("p", "q"))
    check_episodes([data], EpisodeSpec(2, 1, 1))
    with pytest.raises(
        InputError, match=r"d\.csv: has 2 classes, fewer than 3 ways; ask for fewer"
    ):
        check_episodes([data], EpisodeSpec(3, 1, 1))
    for ways in (2, None):
        with pytest.raises(
            InputError, match="class 'q' has 2 examples, fewer than 1 shots and 2 q"
        ):
            check_episodes([data], EpisodeSpec(ways, 1, 2))
    absent = data._replace(label_names=("p", "q", "r"))
    with pytest.raises(InputError, match="class 'r' has 0 examples"):
        check_episodes([absent], EpisodeSpec(None, 1, 1))
    regression = TaskData("s", ["t"], None, np.zeros(1, np.float32), ())
    with pytest.raises(InputError, match="s: is a regression"):
        check_episodes([regression], EpisodeSpec(None, 1, 1))


def test_data_sets_with_fewer_classes_than_ways_train_beside_others(glue):
    """All of their classes are in each episode. (`glue` has data sets of two and three.)"""
    spec = EpisodeSpec(3, 1, 1)
    with pytest.raises(InputError, match=r"two: has 2 classes, fewer than 3 ways"):
        check_episodes(glue, spec)
    check_episodes(glue, spec, mixed=True)
    for alone in (glue[:1], glue[:1] * 2):
        with pytest.raises(InputError, match=r"two: has 2 classes, fewer than 3 ways"):
            check_episodes(alone, spec, mixed=True)
    episodes = sample_episodes(glue, spec, 0, 0, 20)
    two = episodes.task == 0
    assert 0 < two.sum() < 20
    assert (episodes.class_mask.sum(1) == np.where(two, 2, 3)).all()
    assert (np.sort(episodes.classes[two]) == [-1, 0, 1]).all()
    assert not episodes.query_mask[two][:, 2].any()
