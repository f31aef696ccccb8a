"""`evaluate --splits`: published draws, compared with adapt on each draw."""

import json

import numpy as np
import pytest
import tiny

from metajax import data
from metajax.data import draws
from metajax.errors import InputError

RATE = ("--inner-lr", 0.001)  # With 0.1 these weights give every text the same label.
ROWS = tiny.examples(3, 8, seed=4)


@pytest.fixture
def splits(tmp_path):
    """Two draws: one of the task's examples, one of other examples with uneven classes."""
    (tmp_path / "draws").mkdir()
    own = [next(row for row in ROWS if row[1] == label) for label in sorted({y for _, y in ROWS})]
    others = sorted(tiny.examples(3, 2, seed=6), key=lambda row: row[1])
    tiny.write_rows(tmp_path / "draws" / "0.csv", own)
    tiny.write_rows(tmp_path / "draws" / "1.csv", list(reversed(others[:-1])))
    (tmp_path / "draws" / ".notes").write_text("not a draw")
    tiny.write_rows(tmp_path / "task.csv", ROWS)
    tiny.write_rows(tmp_path / "rest0.csv", [row for row in ROWS if row not in own])
    tiny.write_rows(tmp_path / "rest1.csv", ROWS)
    return tmp_path / "draws"


def evaluated(model, splits, *more):
    command = ("--tasks", splits.parent / "task.csv", "--splits", splits, *RATE, *more)
    output = splits.parent / "rows.json"
    out = tiny.succeed("evaluate", "--model", model, *command, "--output", output)
    return out, json.loads(output.read_text())


@pytest.mark.slow
def test_each_draw_counts_as_adapt_does(chain, splits, monkeypatch):
    monkeypatch.setattr(draws, "_MOST_QUERIES", 5)  # A draw's queries are several episodes.
    out, rows = evaluated(chain.metatrain, splits, "--curve", 2)
    maml = rows[0]
    for number, accuracy in enumerate(maml["accuracies"]):
        run = splits.parent / f"run{number}"
        dev = splits.parent / f"rest{number}.csv"
        command = ("--model", chain.metatrain, "--tasks", splits / f"{number}.csv", "--dev", dev)
        tiny.succeed("adapt", *command, *RATE, "--workdir", run)
        found = json.loads((run / "results.json").read_text())["dev"]
        assert accuracy == pytest.approx(found["accuracy"], abs=1e-6)
        assert accuracy > 0.4
    assert len(maml["accuracies"]) == maml["episodes"] == 2
    assert (maml["ways"], maml["shots"], maml["queries"]) == (3, 2, len(ROWS))
    assert maml["curve"][maml["inner_steps"]] == pytest.approx(maml["accuracy"])
    first, *_ = out.splitlines()
    assert first.startswith(f"2 published draws of {splits}: 3 ways, 1 to 2 shots")


@pytest.mark.slow
def test_cutting_a_draw_changes_nothing(chain, splits, monkeypatch):
    """test_evaluation_numbers.py compares a split draw with PyTorch in a quick test."""
    _, whole = evaluated(chain.metatrain, splits)
    monkeypatch.setattr(draws, "_MOST_QUERIES", 5)
    _, cut = evaluated(chain.metatrain, splits)
    assert [row["method"] for row in whole] == [
        "checkpoint",
        "same-steps",
        "prototypes",
        "linear",
        "knn",
    ]
    for one, other in zip(whole, cut):
        np.testing.assert_allclose(one["accuracies"], other["accuracies"], atol=1e-12)


def test_an_example_of_a_draw_is_no_query_whatever_its_white_space():
    task = data.TaskData("task", ["a  b ", "c", "d", "e"], None, np.array([0, 1, 0, 1]), ("x", "y"))
    draw = data.TaskData("draw", ["a b", "c"], None, np.array([0, 1]), ("x", "y"))
    (query,) = data.join_draws(task, [draw]).query
    assert query.tolist() == [2, 3]


def test_what_is_given_may_be_what_the_draws_hold(chain, splits):
    sizes = ("--ways", 3, "--episodes", 2, "--whole-tasks", "--methods", "knn")
    _, rows = evaluated(chain.metatrain, splits, *sizes)
    assert rows == [
        row | {"seconds": rows[0]["seconds"]}
        for row in evaluated(chain.metatrain, splits, "--methods", "knn")[1]
    ]


TASK = data.TaskData("task", ["a", "b", "b", "c"], None, np.array([0, 0, 1, 1]), ("x", "y"))


def draw_of(name, texts, labels, pairs=None):
    return data.TaskData(name, texts, pairs, np.array(labels), ("x", "y"))


def test_a_text_that_the_task_has_with_both_labels_may_have_either():
    texts = ["a", "b"]
    draws = data.join_draws(TASK, [draw_of("0", texts, [0, 1]), draw_of("1", ["b", "c"], [0, 1])])
    assert [rows.tolist() for rows in draws.query] == [[3], [0]]


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        ([(["b", " c"], [1, 0])], r"0: 'c' has the label 'x', but in task 'y'; fix one"),
        ([(["d" * 99, "d" * 99], [1, 0])], r"0: 'd{40}' has the labels 'x' and 'y'; remove"),
        (
            [(["d", "c"], [0, 1]), (["c", "d "], [1, 0])],
            "1: has the same examples as 0; remove one",
        ),
    ],
)
def test_draws_that_contradict_the_task_themselves_or_nothing(draws, message):
    with pytest.raises(InputError, match=f"^{message}"):
        data.join_draws(TASK, [draw_of(f"{n}", *each) for n, each in enumerate(draws)])


def test_of_pairs_both_texts_count():
    task = TASK._replace(pairs=["p", "p", "q", "q"])
    draw = draw_of("0", ["a", "a"], [1, 0], ["q", "p"])
    assert data.join_draws(task, [draw]).query[0].tolist() == [1, 2, 3]
    with pytest.raises(InputError, match=r"^0: 'c' with 'q' has the label 'x', but in task 'y'"):
        data.join_draws(task, [draw_of("0", ["c", "d"], [0, 1], ["q", "q"])])


def test_draws_that_cannot_be_used(refused, chain, splits):
    task = splits.parent / "task.csv"

    def command(*tasks):
        return ("evaluate", "--model", chain.metatrain, "--splits", splits, "--tasks", *tasks)

    refused("draws belong to one task, but --tasks has 2", *command(task, splits / "0.csv"))
    for name, given, held in (
        ("--ways", 5, "3"),  # The value without draws.
        ("--shots", 1, "1 to 2"),
        ("--queries", 8, "7 to 8"),
        ("--episodes", 600, "2"),
    ):
        message = f"{name} {given}: the draws of --splits {splits} have {held}; remove it"
        refused(message, *command(task), name, given)
    tiny.write_rows(splits / "1.csv", [("a text", ROWS[0][1]), ("another", "nowhere")])
    refused("1.csv: has other classes than .*'nowhere'", *command(task))
    tiny.write_rows(splits / "1.csv", ROWS)
    refused("1.csv: has all examples of .*, which leaves none", *command(task))
    pairs = "".join(f"a,b,topic{number}\n" for number in range(3))
    (splits / "1.csv").write_text("text,text_pair,label\n" + pairs)
    refused("1.csv: has two texts per example but .* has one text", *command(task))
    (splits / "1.csv").unlink()
    refused("has 1 files; give two draws or more", *command(task))
    refused("is not a directory", *command(task)[:-4], "--splits", task, "--tasks", task)
