import numpy as np
import pytest

from metajax.data.packing import BUCKETS, Shape, bucket, fit_shapes, pack, place, plan_shapes


def test_buckets():
    assert [bucket(n, 700) for n in (1, 16, 17, 33, 129, 512)] == [16, 16, 32, 48, 192, 512]
    assert [bucket(n, 700) for n in (513, 640, 641)] == [640, 640, 700]
    assert {bucket(n, 50) for n in range(1, 51)} == {*BUCKETS[:3], 50}


@pytest.mark.parametrize("seed", range(5))
def test_texts_are_placed_whole_and_apart(seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 33, 40)
    rows, columns = place(lengths, 32)
    assert (columns + lengths <= 32).all()
    taken = np.zeros((rows.max() + 1, 32), int)
    for row, column, length in zip(rows, columns, lengths):
        taken[row, column : column + length] += 1
    assert taken.max() == 1
    assert taken[:, 0].all()  # no row is left empty
    # The bound of first-fit decreasing (Dosa 2007), on the least there can be.
    assert rows.max() + 1 <= 11 / 9 * np.ceil(lengths.sum() / 32) + 6 / 9 + 11 / 9


def padded(lengths, width=12, seed=0):
    mask = np.arange(width) < np.array(lengths)[:, None]
    ids = np.random.default_rng(seed).integers(1, 99, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask * 1, "token_type_ids": (ids % 2) * mask}


def test_packed_tokens_are_those_of_the_texts():
    lengths = [3, 7, 0, 12, 4]
    batch = padded(lengths)
    packed = pack(batch, Shape(3, 12))
    assert packed["input_ids"].shape == (3, 12)
    for text, length in enumerate(lengths):
        mine = packed["example_ids"].reshape(-1) == text
        assert mine.sum() == length
        for key in ("input_ids", "token_type_ids"):
            found = packed[key].reshape(-1)[mine]
            np.testing.assert_array_equal(found, batch[key][text, :length])
        np.testing.assert_array_equal(packed["position_ids"].reshape(-1)[mine], np.arange(length))
        if length:
            assert np.flatnonzero(mine)[0] == packed["first_token"][text]
    assert {value.dtype for value in packed.values()} == {np.dtype(np.int32)}
    assert not packed["input_ids"][packed["example_ids"] < 0].any()


def test_a_plan_is_short_fits_and_saves():
    random = np.random.default_rng(0)
    draw = lambda: np.minimum(random.geometric(1 / 10, (2, 25)) + 2, 60)  # noqa: E731
    drawn = [(draw(), draw()) for _ in range(40)]
    plan = plan_shapes(drawn, longest=60, steps=1000)
    assert 2 <= len(plan) <= 3
    assert plan[-1] == (Shape(25, 60), Shape(25, 60))  # whatever comes
    cells = [sum(shape.rows * shape.length for shape in shapes) for shapes in plan]
    assert cells[0] <= cells[1] < cells[2] / 2
    later = [(draw(), draw()) for _ in range(40)]
    taken = [plan.index(fit_shapes(parts, plan)) for parts in later]
    assert taken.count(0) > 20
    assert sum(fit_shapes(parts, plan) == plan[0] for parts in drawn) >= 30
    assert all(fit_shapes(parts, plan) != plan[-1] for parts in drawn)
    for parts, choice in zip(later, taken):
        for part, shape in zip(parts, plan[choice]):
            for lengths in part:
                packed = pack(padded(lengths, width=60), shape)
                assert (packed["example_ids"] >= 0).sum() == lengths.sum()


def test_a_shape_that_saves_less_than_compiling_it_takes_is_left_out():
    random = np.random.default_rng(0)
    samples = [(random.integers(5, 24, (2, 25)),) for _ in range(40)]
    short, long = (plan_shapes(samples, longest=24, steps=steps) for steps in (20, 10**6))
    assert long[1:] == short
    saved = 1 - long[0][0].rows / long[1][0].rows  # All rows have 24 tokens.
    enough = int(10 / (0.75 * saved)) + 1
    assert plan_shapes(samples, longest=24, steps=enough) == long
    assert plan_shapes(samples, longest=24, steps=enough - 1) == short


def test_of_shapes_with_as_many_tokens_the_one_of_short_rows_is_taken():
    plan = plan_shapes([(np.full((2, 4), 16),)] * 3, longest=64, steps=1000)
    assert plan[0] == (Shape(4, 16),)


def test_the_largest_of_samples_of_different_sizes_fits_the_last_choice():
    for order in (1, -1):
        samples = [(np.full((1, count), 5),) for count in (4, 9)][::order]
        assert plan_shapes(samples, longest=40, steps=1000)[-1] == (Shape(9, 40),)


def test_a_text_of_every_length_fits_the_last_choice():
    plan = plan_shapes([(np.full((1, 4), 5),)] * 3, longest=40, steps=1000)
    assert plan[0][0].rows * plan[0][0].length < 4 * 16
    assert fit_shapes((np.full((1, 4), 40),), plan) == (Shape(4, 40),)
