"""Compare the steps of adapt on parts of the examples with steps on all of them at once."""

import jax
import numpy as np
import pytest
import tiny

from metajax import data
from metajax.config.groups import ModelSettings
from metajax.config.inner import InnerSettings
from metajax.runs import descent as descending
from metajax.runs.descent import Descent, fold
from metajax.runs.few_shot import open_few_shot
from metajax.runs.task_data import tokenized

RATE, CLASSES = 0.02, 4
RISES_LATER = 0.005  # Only the third step raises the loss.


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Ten examples of four classes. One class has a single example."""
    rows = [*tiny.examples(3, 3, seed=2), ("w40 w41 w42 w43 w44 w45 w46 w47 w48 w49", "topic9")]
    return tiny.write_rows(tmp_path_factory.mktemp("descent") / "tasks.csv", rows)


def opened(material, tasks, **inner):
    settings = ModelSettings(model=str(material.bert))
    inner = {"inner_lr": RATE, "inner_steps": 2} | inner
    few_shot = open_few_shot(settings.model, settings, InnerSettings(**inner), CLASSES)
    return few_shot, *tokenized(data.load_tasks([str(tasks)]), few_shot.model, 16)


def at_once(few_shot, examples):
    """Return parameters and losses after steps on some rows, and the logits of all examples."""
    batch = tiny.batch_of(examples)

    @jax.jit
    def run(weights):
        support = batch | {"example_mask": weights}
        adapted, info = few_shot.algorithm().adapt(few_shot.start, support, None)
        logits = few_shot.model(few_shot.merge(adapted), batch).logits
        return adapted, info.support_loss, logits

    return lambda rows: run(np.isin(np.arange(len(batch["labels"])), rows).astype(np.float32))


def rows_of_parts(examples, count):
    order = np.argsort(examples.labels, kind="stable")
    return [order[part::count] for part in range(count)]


CASES = {
    "all": {},
    "a block": {"layers": 1},
    "the head": {"layers": 0},
    "adapters": {"lora": 2},
    # Adapters begin at zero. Only a large rate moves the features enough to show in the loss.
    "adapters at a large rate": {"lora": 2, "inner_lr": 3.0},
    "adapters on a frozen base": {"lora": 2, "inner_lr": 3.0, "freeze": True},
    "a prefix": {"prefix": 2, "inner_lr": 0.5},
    "norms and biases": {"trainable": "norms"},
    "upper MLPs on a frozen base": {"trainable": "mlps", "freeze": True},
    "momentum": {"inner_optimizer": "momentum", "inner_steps": 3},
    "adam": {"inner_optimizer": "adam", "inner_clip_norm": 0.5},
    "a head of zeros": {"head": "zero"},
    "the checkpoint's head": {"head": "checkpoint"},
}


@pytest.mark.parametrize("case", CASES)
def test_parts_of_the_examples_make_the_steps_that_all_make_at_once(
    case, material, tasks, monkeypatch
):
    monkeypatch.setattr(descending, "_PART", 16)  # Two parts a fold.
    few_shot, examples = opened(material, tasks, **CASES[case])
    parts, folds = fold(examples)
    assert (len(parts["labels"]), folds) == (8, 4)
    descent = Descent(few_shot, parts, folds)
    found, losses = descent.descend(descent.begin(descent.parts), few_shot.inner["inner_lr"])
    wanted, before, logits = at_once(few_shot, examples)(np.arange(10))
    np.testing.assert_allclose(losses[:-1], before, rtol=1e-5)
    after = -np.asarray(jax.nn.log_softmax(logits))[np.arange(10), examples.labels].mean()
    assert losses[-1] == pytest.approx(after, rel=1e-4)
    assert losses[-1] != pytest.approx(losses[0], rel=1e-2)
    close = lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5)  # noqa: E731
    jax.tree.map(close, descent.undo(found), dict(wanted))


def test_each_example_is_in_one_part_and_each_class_in_many(material, tasks):
    _, examples = opened(material, tasks)
    parts, folds = fold(examples)
    assert (len(parts["labels"]), folds) == (4, 4)
    for part, rows in enumerate(rows_of_parts(examples, 4)):
        count = int(parts["example_mask"][part].sum())
        assert count == len(rows)
        np.testing.assert_array_equal(parts["labels"][part, :count], examples.labels[rows])
        for place, row in enumerate(rows):
            ids = parts["input_ids"][part][parts["example_ids"][part] == place]
            np.testing.assert_array_equal(ids, examples.tokens.input_ids[row][: len(ids)])
            assert len(ids) == examples.tokens.lengths[row]
        assert parts["example_ids"][part].max() == count - 1


@pytest.mark.parametrize(("count", "folds"), [(1, 1), (3, 3), (16, 4), (45, 3), (135, 2), (999, 2)])
def test_as_many_folds_as_take_about_the_time_of_the_steps(count, folds):
    lengths = np.full(count, 8, np.int32)
    tokens = data.Tokens(np.ones((count, 8), np.int32), np.zeros((count, 8), np.int8), lengths, 0)
    task = data.TokenizedTask("task", tokens, np.arange(count) % 2, ("a", "b"), ())
    parts, found = fold(task)
    assert found == folds
    assert len(parts["labels"]) == folds * max(1, -(-8 * count // (512 * folds)))
    assert parts["example_mask"].sum() == count


def test_examples_are_left_out_as_if_they_had_never_been_there(material, tasks, monkeypatch):
    """An example that is alone in its class is not counted. There is one program for all."""
    traced, adder = [], descending._adder
    count = lambda loss_fn: lambda *args: traced.append(1) or loss_fn(*args)  # noqa: E731
    monkeypatch.setattr(descending, "_adder", lambda loss_fn: adder(count(loss_fn)))
    monkeypatch.setattr(descending, "_PART", 16)  # Two parts a fold.
    rate = 0.3
    few_shot, examples = opened(material, tasks, inner_lr=rate)
    descent = Descent(few_shot, *fold(examples))
    right = []
    for steps in (0, 2):
        model = few_shot._replace(inner=few_shot.inner | {"inner_steps": steps})
        run, hits = at_once(model, examples), 0
        for held in rows_of_parts(examples, 4):
            rows = np.setdiff1d(np.arange(10), held)
            logits = np.array(run(rows)[2])
            logits[:, ~np.isin(np.arange(CLASSES), examples.labels[rows])] = -np.inf
            hits += (logits.argmax(1) == examples.labels)[held].sum()
        right.append((hits, 9))
    assert [descent.left_out(None), descent.left_out(rate)] == right
    assert right[0] != right[1]
    descent.descend(descent.begin(descent.parts), 2 * rate)
    assert (len(traced), descent._features._cache_size()) == (1, 1)


def test_steps_end_with_the_first_that_raises_the_loss(material, tasks):
    few_shot, examples = opened(material, tasks, inner_steps=3)
    descent = Descent(few_shot, *fold(examples))
    begin = descent.begin(descent.parts)
    for rate, last in ((0.5, 1), (RISES_LATER, 3)):
        all_losses = descent.descend(begin, rate)[1]
        assert int(np.argmax(np.diff(all_losses) > 0)) + 1 == last
        stopped = descent.descend(begin, rate, stop=True)[1]
        np.testing.assert_allclose(stopped, all_losses[: last + 1], rtol=1e-5)
