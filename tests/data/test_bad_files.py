"""Readers refuse bad data files; for commands see tests/commands/test_bad_input.py.

test_tasks.py and test_text.py test the formats. This file has the faults that commands meet.
"""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from metajax.commands.predict import label, read_texts
from metajax.data import TaskData, held_out, load_tasks, pack_blocks, read_lines
from metajax.errors import InputError
from metajax.models import Transformer
from metajax.runs.classifier import Classifier
from metajax.runs.task_data import relabel

ROW = b'{"text": "w1", "label": "a"}\n'


def check_refusal(message, read, *arguments, **settings):
    """The message is one line: where, what is wrong, and how to fix it."""
    with pytest.raises(InputError, match=message) as caught:
        read(*arguments, **settings)
    (line,) = str(caught.value).splitlines()
    assert re.search(r"[;:,] [a-z]+ ", line), line


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("e.csv", b"", "^e.csv: the file is empty"),
        ("c.csv", b"one,two\n1,2\n", "^c.csv: has no column 'text' or 'sentence', only 'one', 't"),
        ("c.csv", b"text,two\n1,2\n", "^c.csv: has no column 'label', only 'text', 'two'"),
        ("c.csv", b"text,label\n", "^c.csv: has a header but no rows"),
        ("c.csv", b"text,label\nw1,a\n,b\n", "^c.csv:3: no 'text'; fill it in or remove the row"),
        ("c.jsonl", ROW + b'{"text": "w1"}\n', "^c.jsonl:2: no 'label'"),
        ("c.csv", b"text,label\nw1,a\nw\xe9,b\n", "^c.csv:3: byte 0xe9 is not UTF-8"),
        ("c.jsonl", ROW + b"oops\n", "^c.jsonl:2: is not JSON"),
        ("c.parquet", b"PAR1oops", "^c.parquet: is a damaged Parquet file"),
        ("c.docx", ROW, "^c.docx: unknown extension '.docx'; give one of .csv, "),
        ("c.jsonl", ROW * 20, "^c.jsonl: has examples of only 1 of the chosen classes"),
    ],
)
def test_tasks(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    check_refusal(message, load_tasks, [name])


def test_names_of_tasks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "material").mkdir()
    check_refusal("^none.csv: no such file", load_tasks, ["none.csv"])
    check_refusal("^material: is a directory|^material: unknown ext", load_tasks, ["material"])
    check_refusal("^glue:nope: unknown GLUE task", load_tasks, ["glue:nope"])
    tiny.write_glue(tmp_path / "glue")
    check_refusal("^glue: has no folder RTE", load_tasks, ["glue:rte"], glue_dir="glue")
    check_refusal("^hub:oops: is not a hub data set", load_tasks, ["hub:oops"])


def test_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new = tiny.write_rows(tmp_path / "new.tsv", tiny.examples(3, 2, first=8))
    three = tiny.write_rows(tmp_path / "three.csv", tiny.examples(3, 8))
    specs = [str(new), str(three)]
    (tmp_path / "classes.txt").write_text("topic1\nnope\n")
    message = "^classes.txt:2: no task has the label 'nope'"
    check_refusal(message, load_tasks, specs, classes="classes.txt")
    check_refusal("^nowhere.txt: no such file", load_tasks, specs, classes="nowhere.txt")
    (tmp_path / "classes.txt").write_text("topic8\ntopic9\n")
    message = "three.csv: has none of the chosen classes"
    check_refusal(message, load_tasks, specs, classes="classes.txt")


def test_a_few_kilobytes_that_hold_gigabytes(tmp_path):
    bomb = tmp_path / "bomb.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int8()), ["w1 " * 20_000])
    names = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int8()), ["a"])
    pq.write_table(pa.table({"text": text, "label": names}), bomb, compression="zstd")
    assert bomb.stat().st_size < 100_000
    check_refusal("bomb.parquet: is a damaged Parquet file", load_tasks, [str(bomb)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "^t.txt: no such file"),
        (b"", "^t.txt: the file is empty"),
        (b"\n  \n", "^t.txt: the file is empty"),
        (b"w1\n\xff\n", "^t.txt:2: byte 0xff is not UTF-8"),
    ],
)
def test_text(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "t.txt").write_bytes(content)
    check_refusal(message, read_lines, "t.txt")


def test_text_that_is_too_short(tokenizer):
    blocks = pack_blocks(["w1 w2"], tokenizer, 16)
    check_refusal("^the text fills only one block of 16 tokens", held_out, blocks, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "^t.txt: no such file"),
        (b"", "^t.txt: is empty"),
        (b"w1\n\nw2\n", "^t.txt:2: is empty; write a text or remove the line"),
        (b"\xff\n", "^t.txt:1: is not UTF-8"),
        (b"a\tb\tc\n", "^t.txt:1: is not one text; give one text per line"),
        (b"a\na\tb\n", "^t.txt:2: has 2 texts, unlike the first"),
    ],
)
def test_texts_to_label(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "t.txt").write_bytes(content)
    check_refusal(message, read_texts, "t.txt")


def test_blank_lines_after_the_texts_to_label(tmp_path):
    (tmp_path / "t.txt").write_text("w1\nw2\n\n \n")
    assert read_texts(str(tmp_path / "t.txt")) == (["w1", "w2"], None)


def test_a_dev_set_of_another_kind():
    classes = TaskData("dev", ["w1"], None, np.array([0]), ("a",))
    scores = classes._replace(labels=np.array([1.5]), label_names=())
    pairs, more = classes._replace(pairs=["w2"]), classes._replace(label_names=("a", "b"))
    check_refusal("^dev: has scores and no classes", relabel, scores, classes)
    check_refusal("^dev: has classes and the training file scores", relabel, classes, scores)
    check_refusal("^dev: has pairs and the training file single texts", relabel, pairs, classes)
    check_refusal("^dev: has single texts and the training file pairs", relabel, classes, pairs)
    message = "^dev: has the label 'b', but the training file does not"
    check_refusal(message, relabel, more, classes)


@pytest.mark.parametrize(
    ("learned", "given", "message"),
    [
        (True, None, "has single texts, but the model was trained on pairs"),
        (False, ["w2"], "has pairs, but the model was trained on single texts"),
    ],
)
def test_texts_unlike_those_learned_from(learned, given, message):
    classifier = Classifier(Transformer(tiny.CONFIG), {}, 0, 16, pairs=learned)
    check_refusal(message, lambda: next(label(classifier, ["w1"], given, 8)))
