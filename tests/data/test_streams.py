"""Random streams are independent: one for each purpose, seed, step and episode."""

import itertools

import numpy as np
import pytest

from metajax.data import (
    Blocks,
    EpisodeSpec,
    MaskRule,
    TokenizedTask,
    Tokens,
    held_out,
    mask_tokens,
    pretraining_batch,
    sample_episodes,
    seeding,
    take,
)
from metajax.data.seeding import shuffled_rows

GRID = list(itertools.product(range(4), range(4)))  # Seeds and steps; equal sums occur.


def blocks_of(count, length):
    """Blocks of maskable one-token words, all different."""
    ids = np.arange(count * length, dtype=np.int32).reshape(count, length)
    words = np.ones((count, length), bool)
    return Blocks(ids, words.astype(np.int32), words, words)


def task_of(classes, each):
    """A task whose rows of class c are c * each and the following."""
    labels = np.repeat(np.arange(classes), each)
    tokens = Tokens(
        labels[:, None].astype(np.int32), np.zeros((len(labels), 1), np.int8), labels * 0 + 1, 0
    )
    rows = tuple(np.arange(label * each, (label + 1) * each) for label in range(classes))
    return TokenizedTask("task", tokens, labels, tuple(f"c{i}" for i in range(classes)), rows)


def assert_all_differ(outcomes):
    outcomes = [np.asarray(outcome).tobytes() for outcome in outcomes]
    assert len(set(outcomes)) == len(outcomes)


def test_no_two_draws_share_a_stream(monkeypatch):
    seeded = []
    original = np.random.default_rng

    def spy(seed):
        # The state, since trailing zeros do not change a seed.
        seeded.append(np.random.SeedSequence(seed).generate_state(4))
        return original(seed)

    monkeypatch.setattr(np.random, "default_rng", spy)
    blocks, tasks = blocks_of(6, 8), [task_of(3, 4)]
    rule = MaskRule(mask_id=99, replacements=np.arange(99), rate=0.25)
    seeding._permutation.cache_clear()
    for seed in (0, 1):
        held_out(blocks, seed)
        for step in range(3):
            pretraining_batch(blocks, rule, seed, step, batch_size=6)  # One epoch a step.
            sample_episodes(tasks, EpisodeSpec(2, 1, 1), seed, step, 3)
    assert len(seeded) >= 2 * (1 + 3 * (1 + 1 + 3))
    assert_all_differ(seeded)


def test_streams_are_the_same_in_every_version():
    """Checkpoints have no data state, so a resumed run depends on this."""
    assert shuffled_rows(3, 2, 4, 7).tolist() == [5, 3, 1, 6]
    _, held = held_out(blocks_of(20, 1), 3, 0.2)
    assert held.input_ids[:, 0].tolist() == [1, 4, 17, 18]
    rule = MaskRule(mask_id=99, replacements=np.arange(100, 200), rate=0.5)
    batch = mask_tokens(blocks_of(2, 8), rule, 3, 2)
    assert batch["input_ids"].tolist() == [
        [99, 99, 2, 166, 99, 5, 6, 7],
        [99, 99, 10, 99, 12, 99, 14, 15],
    ]
    episodes = sample_episodes([task_of(5, 4), task_of(4, 9)], EpisodeSpec(3, 1, 1), 3, 2, 3)
    found = [episodes.task, episodes.classes, episodes.support, episodes.query]
    assert [array.tolist() for array in found] == [
        [1, 1, 0],
        [[2, 1, 0], [2, 0, 3], [0, 4, 1]],
        [[19, 12, 5], [23, 4, 33], [2, 17, 5]],
        [[23, 15, 7], [24, 3, 28], [0, 18, 7]],
    ]


def test_every_episode_draws_its_own_classes_and_examples():
    many, large = [task_of(60, 2)], [task_of(2, 500)]
    classes, taken = [], []
    for seed, step in GRID:
        classes += [*sample_episodes(many, EpisodeSpec(5, 1, 1), seed, step, 4).classes]
        episodes = sample_episodes(large, EpisodeSpec(2, 10, 10), seed, step, 4)
        # The 20 of 500 examples of each class, counted from its first row.
        halves = (episodes.support.reshape(4, 2, 10), episodes.query.reshape(4, 2, 10))
        taken += [*(np.concatenate(halves, axis=2).reshape(8, 20) % 500)]
    assert_all_differ(classes)
    member = np.zeros((len(taken), 500), int)
    np.put_along_axis(member, np.array(taken), 1, axis=1)
    common = member @ member.T
    assert (np.diag(common) == 20).all()
    # Two random sets of 20 out of 500 share 0.8 on average.
    assert (common - 20 * np.eye(len(taken))).max() < 8


def test_which_data_set_an_episode_is_of_depends_on_seed_step_and_number():
    tasks = [task_of(3, 4), task_of(3, 4)]
    whole = [sample_episodes(tasks, EpisodeSpec(2, 1, 1), *at, 64).task for at in GRID]
    assert_all_differ(whole)
    assert np.mean(whole) == pytest.approx(0.5, abs=0.05)
    half = sample_episodes(tasks, EpisodeSpec(2, 1, 1), *GRID[5], 32, first=32).task
    np.testing.assert_array_equal(half, whole[5][32:])


def test_class_orders_of_whole_tasks_are_uniform():
    classes = sample_episodes([task_of(3, 2)], EpisodeSpec(None, 1, 1), 0, 0, 3000).classes
    _, counts = np.unique(classes, axis=0, return_counts=True)
    assert counts / 3000 == pytest.approx(np.full(6, 1 / 6), abs=0.02)


@pytest.mark.parametrize("whole_word", [False, True])
def test_masks_differ_from_row_to_row_step_to_step_and_seed_to_seed(whole_word):
    rule = MaskRule(99, np.arange(99), rate=0.2, whole_word=whole_word)
    positions = [mask_tokens(blocks_of(3, 100), rule, *at)["positions"] for at in GRID]
    assert_all_differ(np.concatenate(positions))


def test_fates_and_replacements_differ_from_step_to_step_and_seed_to_seed():
    rule = MaskRule(mask_id=-1, replacements=np.arange(9000, 9500), rate=1.0)
    blocks = blocks_of(4, 500)
    ids = [mask_tokens(blocks, rule, *at)["input_ids"] for at in GRID]
    assert_all_differ(np.concatenate([np.where(rows >= 9000, -2, rows) for rows in ids]))
    for one, other in itertools.combinations(ids, 2):
        both = (one >= 9000) & (other >= 9000)
        assert both.sum() > 5
        assert np.mean(one[both] == other[both]) < 0.3
    # Replacements are not a function of the position either.
    again = (ids[0][0] >= 9000) & (ids[0][1] >= 9000)
    assert not (ids[0][0] == ids[0][1])[again].all()


def test_the_seed_reaches_the_order_of_blocks_and_their_masks():
    rule = MaskRule(mask_id=-1, replacements=np.full(1, -1), rate=0.1)
    blocks = blocks_of(50, 100)
    batches = [pretraining_batch(blocks, rule, *at, 5) for at in GRID]
    assert_all_differ([batch["targets"] // 100 for batch in batches])
    one = take(blocks, slice(0, 1))
    assert_all_differ([pretraining_batch(one, rule, *at, 1)["positions"] for at in GRID])


def test_shuffles_differ_from_epoch_to_epoch_and_seed_to_seed():
    assert_all_differ([shuffled_rows(*at, 50, 50) for at in GRID])


def test_every_block_is_held_out_as_often():
    counts = np.zeros(20)
    for seed in range(200):
        train, held = held_out(blocks_of(20, 1), seed, 0.25)
        assert (np.diff(train.input_ids[:, 0]) > 0).all()  # In their order.
        assert (np.diff(held.input_ids[:, 0]) > 0).all()
        assert len(held.input_ids) == 5
        counts[held.input_ids[:, 0]] += 1
    assert counts / 200 == pytest.approx(np.full(20, 0.25), abs=0.12)
    assert len(held_out(blocks_of(40, 1), 0)[1].input_ids) == 2  # A share of 0.05.
