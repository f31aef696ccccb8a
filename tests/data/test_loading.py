"""Loading of `--tasks` in the stages."""

import hashlib
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from metajax.config.groups import TaskSettings
from metajax.data import TaskData, tokenize
from metajax.runs.task_data import fingerprints, load, relabel, tokenized

COLUMNS = "text,text_pair,label,body,second,kind"
RTE = "index\tsentence1\tsentence2\tlabel\n"


@pytest.fixture
def settings(tmp_path):
    """Settings that all differ from the defaults."""
    rows = "t0,p0,a,b0,s0,x\nt1,p1,a,b1,s1,y\nt2,p2,b,b2,s2,entailment\nt3,p3,b,b3,s3,y\n"
    (tmp_path / "rows.csv").write_text(f"{COLUMNS}\n{rows}")
    (tmp_path / "other.csv").write_text(f"{COLUMNS}\n{rows.replace('b1', 'c1')}")
    (tmp_path / "classes.txt").write_text("y\nentailment\nnot_entailment\n")
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "train.tsv").write_text(f"{RTE}0\ta\tb\tnot_entailment\n1\tc\td\t0\n")
    (tmp_path / "RTE" / "dev.tsv").write_text(f"{RTE}0\te\tf\tentailment\n")
    return TaskSettings(
        tasks=(str(tmp_path / "rows.csv"), "glue:rte"),
        glue_dir=str(tmp_path),
        text_column="body",
        pair_column="second",
        label_column="kind",
        classes=str(tmp_path / "classes.txt"),
    )


def test_every_setting_reaches_the_data_sets(settings):
    rows, rte = load(settings, split="train")
    assert (rows.texts, rows.pairs) == (["b1", "b2", "b3"], ["s1", "s2", "s3"])
    assert (rows.label_names, rows.labels.tolist()) == (("entailment", "y"), [1, 0, 1])
    assert (rte.texts, rte.labels.tolist()) == (["a", "c"], [1, 0])
    (dev,) = load(settings, split="validation", specs=["glue:rte"])
    assert dev.texts == ["e"]
    specs = [settings.tasks[0].replace("rows", "other")]
    (other,) = load(settings, split="validation", specs=specs)
    assert (other.texts, other.pairs) == (["c1", "b2", "b3"], ["s1", "s2", "s3"])


def test_fingerprints_are_of_the_data_sets_and_the_classes(settings, tmp_path):
    def sha256(name):
        return hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()

    assert fingerprints(settings) == {
        f"--tasks {settings.tasks[0]}": sha256("rows.csv"),
        "--tasks glue:rte": sha256("RTE/train.tsv"),
        f"--classes {settings.classes}": sha256("classes.txt"),
    }
    plain = TaskSettings(tasks=settings.tasks[:1])
    assert fingerprints(plain) == {f"--tasks {settings.tasks[0]}": sha256("rows.csv")}


def data_set(labels, names, texts=None):
    texts = texts or [f"w{row}" for row in range(len(labels))]
    return TaskData("dev", texts, None, np.array(labels, np.int32), names)


def test_relabelled_examples_keep_their_classes():
    training = data_set([0, 1, 2, 3], ("c", "a", "d", "b"))
    dev = data_set([0, 1, 2, 1, 0], ("b", "c", "a"))  # Some of them, in another order.
    found = relabel(dev, training)
    assert found.label_names == training.label_names
    assert [found.label_names[label] for label in found.labels] == ["b", "c", "a", "c", "b"]
    assert found.labels.dtype == np.int32
    assert (found.name, found.texts) == (dev.name, dev.texts)
    np.testing.assert_array_equal(relabel(training, training).labels, training.labels)


def test_texts_are_cut_to_the_length_given_and_counted_once(tokenizer, caplog):
    model = SimpleNamespace(tokenizer=tokenizer, prompt="", siamese=False)
    tasks = [
        data_set([0, 1, 0], ("a", "b"), ["w1 w2 w3 w4", "w5", "w6 w7 w8 w9"]),
        data_set([1, 0], ("a", "b"), ["w1", "w2 w3 w4"]),
    ]
    with caplog.at_level(logging.WARNING):
        found = tokenized(tasks, model, 4)
    assert caplog.messages == ["3 of 5 texts were cut to 4 tokens"]
    assert [task.tokens.lengths.tolist() for task in found] == [[4, 3, 4], [3, 4]]
    caplog.clear()
    tokenized(tasks, model, 6)
    assert not caplog.messages


@pytest.mark.parametrize("pairs", [None, ["w5", "w6 w7"]])
def test_a_prompt_is_put_before_each_text(tokenizer, caplog, pairs):
    model = SimpleNamespace(tokenizer=tokenizer, prompt="w8 w9: ", siamese=False, source="encoder")
    task = data_set([0, 1], ("a", "b"), ["w1 w2", "w3"])._replace(pairs=pairs)
    with caplog.at_level(logging.INFO):
        (found,) = tokenized([task], model, 16)
    assert caplog.messages == ["encoder: its prompt 'w8 w9: ' is put before each text"]
    texts = ["w8 w9: w1 w2", "w8 w9: w3"]
    expected = tokenize(texts, pairs, tokenizer, 16)
    np.testing.assert_array_equal(found.tokens.input_ids, expected.input_ids)


def test_a_batch_of_a_data_set_has_all_its_examples(make_task):
    task = make_task("a", [5, 6, 7])
    batch = tiny.batch_of(task)
    np.testing.assert_array_equal(batch["labels"], task.labels)
    assert batch["example_mask"].tolist() == [1] * 18
    np.testing.assert_array_equal(batch["input_ids"].max(1), task.tokens.input_ids.max(1))
