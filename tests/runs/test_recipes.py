"""How a network is trained on one task's examples."""

import numpy as np
import pytest

from metajax.data import TokenizedTask, Tokens
from metajax.models import contrastive_loss, cosine_loss
from metajax.runs.recipes import RECIPES, class_rows


def examples_of(labels, apart=False):
    ids = np.ones((len(labels), 1), np.int32)
    tokens = Tokens(ids, np.zeros_like(ids, np.int8), ids[:, 0], truncated=0, apart=apart)
    return TokenizedTask("texts", tokens, np.asarray(labels), (), ())


@pytest.mark.parametrize(
    ("classes", "shots", "steps"),
    [
        (2, 8, 10),
        (2, 63, 10),
        (2, 64, 160),
        (2, 1000, 250),
        (3, 64, 12),
        (32, 5, 10),
        (150, 10, 94),
    ],
)
def test_contrastive_takes_steps_by_examples_and_by_examples_of_a_class(classes, shots, steps):
    examples, count = examples_of(np.repeat(np.arange(classes), shots)), classes * shots
    usual, longer = RECIPES["contrastive"], RECIPES["contrastive"].longer(2)
    assert usual.for_examples(examples).num_steps(count) == steps
    assert longer.for_examples(examples).num_steps(count) == pytest.approx(2 * steps, abs=1)
    assert RECIPES["finetune"].num_steps(count) == max(20, -(-count // 16))


@pytest.mark.parametrize(
    ("counts", "many"), [((100, 10), False), ((100, 28), True), ((64, 0, 64), True)]
)
def test_the_mean_number_of_examples_of_the_two_classes_that_have_some_counts(counts, many):
    examples = examples_of(np.repeat(np.arange(len(counts)), counts))
    recipe = RECIPES["contrastive"].for_examples(examples)
    assert recipe.make_loss is (cosine_loss if many else contrastive_loss)
    assert (recipe.learning_rate, recipe.batch_size) == ((2e-5, 16) if many else (1e-4, 64))


def test_pairs_that_are_read_apart_have_the_usual_recipe():
    recipe = RECIPES["contrastive"].for_examples(examples_of([0, 1] * 64, apart=True))
    assert recipe.make_loss is contrastive_loss


def test_two_networks_learn_many_examples_of_two_classes():
    usual = RECIPES["contrastive"]
    for recipe in (usual, usual.longer(2), usual.at_rate(1e-5)):
        for shots, networks in ((63, 1), (64, 2)):
            examples = examples_of(np.repeat([0, 1], shots))
            assert recipe.for_examples(examples).networks == networks


def test_a_part_of_the_examples_can_have_the_recipe_of_all():
    labels = np.repeat(np.arange(2), 64)
    for own, part in ((labels, labels[:96]), (labels[:96], labels)):
        recipe = RECIPES["contrastive"].for_examples(examples_of(own))
        assert recipe.for_examples(examples_of(part)) is recipe


def test_contrastive_trains_common_encoders_at_these_rates():
    sizes, recipe = (128, 384, 768, 1024), RECIPES["contrastive"]
    rates = [recipe.rate_for(size) for size in sizes]
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 5e-5, 3.75e-5])
    examples = examples_of([0, 1] * 64)
    many = recipe.for_examples(examples)
    assert {many.rate_for(size) for size in sizes} == {2e-5}
    for each in (recipe.at_rate(3e-5), recipe.at_rate(3e-5).for_examples(examples)):
        assert {each.rate_for(size) for size in sizes} == {3e-5}


def test_contrastive_batches_have_several_examples_of_a_class():
    labels = np.repeat(np.arange(30), 6).astype(np.int32)
    seen = set()
    for step in range(40):
        rows = class_rows(labels, seed=1, step=step, batch_size=24)
        assert len(set(rows)) == 24
        assert sorted(np.bincount(labels[rows])[np.bincount(labels[rows]) > 0]) == [4] * 6
        np.testing.assert_array_equal(rows, class_rows(labels, 1, step, 24))
        seen |= set(rows.tolist())
    assert len(seen) == len(labels)
    few = class_rows(np.array([0, 1, 0], np.int32), seed=0, step=0, batch_size=3)
    assert sorted(few) == [0, 1, 2]
