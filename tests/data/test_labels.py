"""Labels have one spelling each; similar labels are named, missing ones refused."""

import json

import numpy as np
import pytest

from metajax.data import load_tasks
from metajax.data.normalization import lookalike_key, normalize
from metajax.errors import InputError


def load(tmp_path, labels, texts=None, **settings):
    """A CSV of these labels."""
    texts = texts or [f"t{row}" for row in range(len(labels))]
    rows = "".join(f"{text},{label}\n" for text, label in zip(texts, labels))
    (tmp_path / "l.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    (task,) = load_tasks([str(tmp_path / "l.csv")], **settings)
    return task


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("card lost", "card\u00a0lost"),
        ("card lost", "card  lost"),
        ("caf\u00e9", "cafe\u0301"),
        ("caf\u00e9", "cafe\u200b\u0301"),
        ("bill", "bill\u200b"),
        ("bill", "\u200dbill \u200c"),
        ("bill", "bi\u00adll"),
        ("bill", "\ufeffbill\u200e"),
    ],
)
def test_labels_that_differ_in_what_nobody_sees_are_one(tmp_path, caplog, one, other):
    task = load(tmp_path, [other, "x", one])
    assert task.label_names == (one, "x")
    assert task.labels.tolist() == [0, 1, 0]
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}/l.csv: the labels ")
    assert " count as one: " in message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Card", "card"),
        ("1", "1.0"),
        ("-2", "-2."),
        ("\uff21", "A"),  # Full width.
        ("a\u200db", "ab"),  # Spelling in some scripts, so it stays.
    ],
)
def test_labels_that_look_alike_are_named(tmp_path, caplog, one, other):
    task = load(tmp_path, [one, other, "x"])
    assert set(task.label_names) == {one, other, "x"}
    (message,) = caplog.messages
    assert "look alike but are different classes" in message
    assert repr(one) in message
    assert repr(other) in message
    assert "'x'" not in message


def test_only_some_of_many_are_named(tmp_path, caplog):
    load(tmp_path, [label for n in range(7) for label in (f"a{n}", f"A{n}")])
    (message,) = caplog.messages
    assert "'A4' and 'a4' and 2 more look alike" in message
    assert "a5" not in message


@pytest.mark.parametrize(
    "labels", [["a b", "ab", "a-b"], ["1", "10", "1.5"], ["caf\u00e9", "cafe"]]
)
def test_labels_that_look_different_are_left_in_peace(tmp_path, caplog, labels):
    assert set(load(tmp_path, labels).label_names) == set(labels)
    assert not caplog.messages


def test_what_is_written_stays_as_it_looks():
    assert normalize(" \u0645\u06cc\u200c\u062e ") == "\u0645\u06cc\u200c\u062e"
    assert normalize("a\n\tb\u2003c") == "a b c"
    assert lookalike_key("\uff11.0") == lookalike_key("1")


@pytest.mark.parametrize("label", ["nan", "NaN", "<NA>", "#N/A", " nan"])
def test_a_missing_label_is_refused_with_its_line(tmp_path, label):
    with pytest.raises(InputError, match=r"l.csv:3: 'label' is '.*', which means a missing"):
        load(tmp_path, ["x", label, "y", "nan", "NaN", "#n/a"])


@pytest.mark.parametrize("label", ["\u200b", "\u00a0", "\ufeff\u200d"])
def test_a_label_of_nothing_to_see_is_none(tmp_path, label):
    with pytest.raises(InputError, match=r"l\.csv:3: no 'label'; fill it in"):
        load(tmp_path, ["x", label, "y"])
    with pytest.raises(InputError, match=r"l\.csv:3: no 'text'; fill it in"):
        load(tmp_path, ["x", "y", "z"], ["a", label, "b"])


def test_what_may_be_a_missing_value_is_named(tmp_path, caplog):
    task = load(tmp_path, ["x", "None", "y", "None"], ["nan", "a", "NaN", "n/a b"])
    assert task.label_names == ("None", "x", "y")
    assert caplog.messages == [
        f"{tmp_path}/l.csv:2: 'text' is 'nan' (2 rows like this), which often means a missing "
        "value; remove the rows if it does",
        f"{tmp_path}/l.csv:3: 'label' is 'None' (2 rows like this), which often means a "
        "missing value; remove the rows if it does",
    ]


def test_a_number_that_is_none_is_missing(tmp_path):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": float("nan")}]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=r"l\.jsonl:2: no 'label'; fill it in"):
        load_tasks([str(tmp_path / "l.jsonl")])


def test_a_file_of_classes_is_read_like_the_labels(tmp_path):
    (tmp_path / "classes.txt").write_text("card\u00a0lost\ncafe\u0301\u200b\n", encoding="utf-8")
    labels = ["card lost", "caf\u00e9", "x", "card  lost"]
    task = load(tmp_path, labels, classes=tmp_path / "classes.txt")
    assert task.label_names == ("caf\u00e9", "card lost")
    np.testing.assert_array_equal(task.labels, [1, 0, 1])
