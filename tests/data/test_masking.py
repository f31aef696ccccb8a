import copy

import numpy as np
import pytest

from metajax.data import held_out, mask_rule, mask_tokens, pack_blocks, pretraining_batch, take
from metajax.data.seeding import generator, shuffled_rows
from metajax.errors import InputError

LENGTH = 64


@pytest.fixture(scope="module")
def blocks(tokenizer):
    rng = np.random.default_rng(0)
    words = [*(f"w{i}" for i in range(40)), "unbelievable", "uns", "zzz", ","]
    lines = [" ".join(rng.choice(words, n)) for n in rng.integers(5, 20, 300)]
    return pack_blocks(lines, tokenizer, LENGTH)


def restored(batch):
    """The batch's tokens with every target put back."""
    ids = batch["input_ids"].copy()
    rows, columns = np.nonzero(batch["targets"] >= 0)
    ids[rows, batch["positions"][rows, columns]] = batch["targets"][rows, columns]
    return ids


def chosen(batch):
    """bool [B, L]: what was chosen."""
    result = np.zeros(batch["input_ids"].shape, bool)
    rows, columns = np.nonzero(batch["targets"] >= 0)
    result[rows, batch["positions"][rows, columns]] = True
    return result


@pytest.mark.parametrize("whole_word", [False, True])
def test_masks_are_a_function_of_seed_and_step(tokenizer, blocks, whole_word):
    rule = mask_rule(tokenizer, whole_word=whole_word)
    first, again = mask_tokens(blocks, rule, 3, 7), mask_tokens(blocks, rule, 3, 7)
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    for seed, step in ((3, 8), (4, 7)):
        other = mask_tokens(blocks, rule, seed, step)
        differs = (chosen(first) != chosen(other)).any(axis=1)
        assert differs[:-1].all()  # the last block is short, and may repeat itself


@pytest.mark.parametrize("whole_word", [False, True])
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_layout(tokenizer, blocks, whole_word, rate):
    before = blocks.input_ids.copy()
    batch = mask_tokens(blocks, mask_rule(tokenizer, rate=rate, whole_word=whole_word), 0, 0)
    B, M = len(blocks.input_ids), int(np.ceil(rate * LENGTH))
    assert {key: value.shape for key, value in batch.items()} == {
        "input_ids": (B, LENGTH),
        "attention_mask": (B, LENGTH),
        "token_type_ids": (B, LENGTH),
        "positions": (B, M),
        "targets": (B, M),
    }
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int32)}
    np.testing.assert_array_equal(blocks.input_ids, before)
    np.testing.assert_array_equal(restored(batch), before)
    assert chosen(batch).sum() == (batch["targets"] >= 0).sum()  # no position twice
    assert not (chosen(batch) & ~blocks.maskable).any()
    assert not batch["positions"][batch["targets"] < 0].any()
    used = batch["targets"] >= 0
    assert (np.diff(used.astype(int), axis=1) <= 0).all()  # Unused places are the last ones.
    assert (np.diff(batch["positions"], axis=1)[used[:, 1:]] > 0).all()
    np.testing.assert_array_equal(batch["attention_mask"], blocks.attention_mask)
    assert not batch["token_type_ids"].any()


def test_exactly_the_rounded_share_is_chosen_of_every_row(tokenizer, blocks):
    for rate in (0.15, 0.4):
        batch = mask_tokens(blocks, mask_rule(tokenizer, rate=rate), 0, 0)
        expected = np.maximum(np.rint(rate * blocks.maskable.sum(1)), 1)
        np.testing.assert_array_equal(chosen(batch).sum(1), expected)


@pytest.mark.parametrize("missing", ["cls_token", "sep_token"])
def test_a_tokenizer_without_the_ends_of_a_block_is_refused(tokenizer, missing):
    other = copy.deepcopy(tokenizer)
    setattr(other, missing, None)
    with pytest.raises(InputError, match=r"has no \[CLS\] or no \[SEP\] token"):
        pack_blocks(["w1 w2"], other, LENGTH)


def test_short_rows_have_at_least_one_and_empty_rows_none(tokenizer):
    rule = mask_rule(tokenizer)
    short = mask_tokens(pack_blocks(["w1 w2"], tokenizer, LENGTH), rule, 0, 0)
    assert chosen(short).sum() == 1
    for whole_word in (False, True):
        rule = mask_rule(tokenizer, whole_word=whole_word)
        empty = mask_tokens(pack_blocks(["zzz zzz"], tokenizer, LENGTH), rule, 0, 0)
        assert (empty["targets"] == -1).all()


def test_eighty_ten_ten_and_evenly_over_positions(tokenizer, blocks):
    rule = mask_rule(tokenizer)
    counts = np.zeros(LENGTH)
    fates = []
    replaced = np.zeros(len(tokenizer))
    special = tokenizer.all_special_ids
    for step in range(200):
        batch = mask_tokens(blocks, rule, 0, step)
        counts += chosen(batch).sum(0)
        now = batch["input_ids"][chosen(batch)]
        then = blocks.input_ids[chosen(batch)]
        fates.append((np.mean(now == rule.mask_id), np.mean(now == then)))
        changed = now[(now != rule.mask_id) & (now != then)]
        assert not np.isin(changed, special).any()
        replaced += np.bincount(changed, minlength=len(tokenizer))
    masked, kept = np.mean(fates, axis=0)
    ordinary = len(tokenizer) - len(special)
    assert masked == pytest.approx(0.8, abs=0.004)
    assert kept == pytest.approx(0.1 + 0.1 / ordinary, abs=0.003)
    assert replaced[rule.replacements] / replaced.sum() == pytest.approx(1 / ordinary, rel=0.3)
    shares = counts / (200 * np.maximum(blocks.maskable.sum(0), 1))
    assert shares[1:-1] == pytest.approx(0.15, abs=0.02)
    assert shares[[0, -1]].tolist() == [0, 0]


def test_random_replacements_are_all_ordinary_tokens(tokenizer):
    rule = mask_rule(tokenizer)
    expected = set(range(len(tokenizer))) - set(tokenizer.all_special_ids)
    assert set(rule.replacements.tolist()) == expected


def test_whole_words_are_chosen_whole(tokenizer, blocks):
    rule = mask_rule(tokenizer, whole_word=True)
    word = np.cumsum(blocks.word_start, axis=1)
    target = np.rint(0.15 * blocks.maskable.sum(1))
    shares = []
    for step in range(20):
        now = chosen(mask_tokens(blocks, rule, 0, step))
        for row in range(len(now)):
            touched = np.isin(word[row], word[row][now[row]]) & blocks.maskable[row]
            np.testing.assert_array_equal(touched, now[row])
        assert (now.sum(1) <= np.maximum(target, 3)).all()
        shares.append(now.sum() / target.sum())
    assert np.mean(shares) > 0.98
    # Long words get their share too: they are not merely what fits least.
    middle = (blocks.input_ids == tokenizer.convert_tokens_to_ids("##believ")) & blocks.maskable
    hits = [chosen(mask_tokens(blocks, rule, 0, step))[middle].mean() for step in range(200)]
    assert np.mean(hits) == pytest.approx(0.15, abs=0.03)


def test_a_single_long_word_is_chosen_though_it_exceeds_the_share(tokenizer):
    rule = mask_rule(tokenizer, whole_word=True)
    batch = mask_tokens(pack_blocks(["unbelievable"], tokenizer, LENGTH), rule, 0, 0)
    assert chosen(batch).sum() == 3
    tight = mask_tokens(pack_blocks(["unbelievable"], tokenizer, 6), rule, 0, 0)
    assert tight["targets"].tolist() == [[-1]]  # no room for it


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_rates_that_make_no_sense(tokenizer, rate):
    with pytest.raises(InputError, match="not between 0 and 1"):
        mask_rule(tokenizer, rate=rate)


@pytest.mark.parametrize(("size", "batch_size"), [(10, 5), (10, 3), (3, 10), (7, 7), (1, 4)])
def test_every_row_once_an_epoch(size, batch_size):
    epochs = 4
    steps = -(-epochs * size // batch_size)
    stream = np.concatenate([shuffled_rows(5, step, batch_size, size) for step in range(steps)])
    stream = stream[: epochs * size].reshape(epochs, size)
    np.testing.assert_array_equal(np.sort(stream, axis=1), np.tile(np.arange(size), (epochs, 1)))
    if size > 5:
        assert len({tuple(epoch) for epoch in stream}) == epochs


def test_pretraining_batches(tokenizer, blocks):
    rule = mask_rule(tokenizer)
    size = len(blocks.input_ids)
    rows = np.concatenate([restored(pretraining_batch(blocks, rule, 1, n, 4)) for n in range(size)])
    key = blocks.input_ids.tolist()
    seen = [key.index(row) for row in rows.tolist()]
    assert [sorted(seen[i * size : (i + 1) * size]) for i in range(4)] == [list(range(size))] * 4
    late = pretraining_batch(blocks, rule, 1, size - 1, 4)  # whatever came before
    np.testing.assert_array_equal(restored(late), rows[-4:])


def test_masks_differ_from_epoch_to_epoch(tokenizer, blocks):
    rule = mask_rule(tokenizer)
    one = take(blocks, slice(0, 1))
    masks = [tuple(pretraining_batch(one, rule, 0, n, 1)["positions"][0]) for n in range(20)]
    assert len(set(masks)) == 20


def test_held_out(blocks):
    train, held = held_out(blocks, 0, 0.1)
    size = len(blocks.input_ids)
    assert len(held.input_ids) == round(0.1 * size)
    both = np.concatenate([train.input_ids, held.input_ids])
    assert sorted(both.tolist()) == sorted(blocks.input_ids.tolist())
    np.testing.assert_array_equal(held_out(blocks, 0, 0.1)[1].input_ids, held.input_ids)
    assert not np.array_equal(held_out(blocks, 1, 0.1)[1].input_ids, held.input_ids)
    two = take(blocks, slice(0, 2))
    for share in (0.0, 1.0):
        assert [len(part.input_ids) for part in held_out(two, 0, share)] == [1, 1]
    with pytest.raises(InputError, match="fills only one block of 64 tokens"):
        held_out(take(blocks, slice(0, 1)), 0)


def test_generators_of_other_purposes_are_other_streams():
    draws = {
        (seed, purpose, step): generator(seed, purpose, step).random()
        for seed in (0, 1)
        for purpose in ("mask", "episode")
        for step in (0, 1)
    }
    assert len(set(draws.values())) == len(draws)
    # The same on every machine: a checkpoint may be resumed on another.
    assert generator(0, "mask", 0).integers(1_000_000, size=3).tolist() == [806445, 808228, 936339]
