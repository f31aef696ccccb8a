import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metajax.data import fingerprint, load_tasks
from metajax.errors import InputError

BOM = b"\xef\xbb\xbf"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def write_lines(path, *rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def load(spec, **settings):
    (task,) = load_tasks([spec], **settings)
    return task


def test_csv_with_all_that_csv_allows(tmp_path):
    rows = 'yes,"a, ""b""\r\nc",p,\r\n\r\nno,x\u2028y,q,n\r\n yes ,z,r,n'
    content = BOM + f"label, text ,text_pair,note\r\n{rows}".encode()
    task = load(write(tmp_path / "a.csv", content))
    assert task.texts == ['a, "b"\r\nc', "x\u2028y", "z"]
    assert task.pairs == ["p", "q", "r"]
    assert task.label_names == ("no", "yes")
    assert task.labels.tolist() == [1, 0, 1]
    assert task.labels.dtype == np.int32
    assert task.name == str(tmp_path / "a.csv")


def test_a_text_of_any_length(tmp_path):
    long = "word " * 40_000 + "end"
    task = load(write(tmp_path / "a.csv", f"text,label\n{long},a\nb,b\n"))
    assert task.texts == [long, "b"]


def test_tsv_json_lines_and_parquet_give_what_csv_gives(tmp_path):
    texts, labels = ["one", "two, three", "four"], ["b", "a", "b"]
    rows = [{"text": t, "label": x} for t, x in zip(texts, labels)]
    specs = [
        write(tmp_path / "t.csv", 'text,label\none,b\n"two, three",a\nfour,b\n'),
        write(tmp_path / "t.TSV", "text\tlabel\none\tb\ntwo, three\ta\nfour\tb\n"),
        write_lines(tmp_path / "t.jsonl", *rows),
        write(tmp_path / "t.json", BOM + b"\r\n\n".join(json.dumps(r).encode() for r in rows)),
        write(tmp_path / "array.json", BOM + b"\n " + json.dumps(rows, indent=1).encode()),
        str(tmp_path / "t.parquet"),
    ]
    pq.write_table(pa.Table.from_pylist(rows), specs[-1])
    for task in load_tasks(specs):
        assert task.texts == texts, task.name
        assert task.pairs is None
        assert task.labels.tolist() == [1, 0, 1]
        assert task.label_names == ("a", "b")


def test_numeric_labels_are_class_names_in_numeric_order(tmp_path):
    labels = ["10", "9", "-1", "2.5"]
    task = load(write(tmp_path / "a.csv", "text,label\n" + "".join(f"t,{x}\n" for x in labels)))
    assert task.label_names == ("-1", "2.5", "9", "10")
    assert task.labels.dtype == np.int32
    mixed = load(write(tmp_path / "b.csv", "text,label\nt,10\nt,9\nt,ten\n"))
    assert mixed.label_names == ("10", "9", "ten")
    integers = load(
        write_lines(tmp_path / "c.jsonl", *({"text": "t", "label": x} for x in (10, 9)))
    )
    assert integers.label_names == ("9", "10")


def test_columns_can_be_named_and_sentence_stands_in_for_text(tmp_path):
    path = write(tmp_path / "a.csv", "sentence,other,kind,label\nt,o,k,a\nu,p,l,b\n")
    assert load(path).texts == ["t", "u"]
    both = load(write(tmp_path / "b.csv", "sentence,text,label\ns,t,a\nr,u,b\n"))
    assert (both.texts, both.pairs) == (["t", "u"], None)
    named = load(path, text_column="other", pair_column="sentence", label_column="kind")
    assert (named.texts, named.pairs, named.label_names) == (["o", "p"], ["t", "u"], ("k", "l"))


def test_examples_that_come_again_stay(tmp_path):
    path = write(tmp_path / "a.tsv", 'label\ttext\na\t"t\t1"\nb\tu\na\t"t\t1"\n')
    task = load(path)
    assert task.texts == ["t\t1", "u", "t\t1"]
    assert task.labels.tolist() == [0, 1, 0]


def test_parquet_of_many_rows_keeps_their_order(tmp_path):
    texts = [f"text {n}" for n in range(10_000)]
    labels = [str(n % 3) for n in range(10_000)]
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": texts, "label": labels}), path, row_group_size=3000)
    task = load(path)
    assert task.texts == texts
    assert task.labels.tolist() == [n % 3 for n in range(10_000)]


def test_specs_keep_their_order(tmp_path):
    paths = [write(tmp_path / f"{n}.csv", f"text,label\n{n},a\n{n},b\n") for n in ("z", "y", "x")]
    assert [task.texts[0] for task in load_tasks(paths)] == ["z", "y", "x"]


# GLUE's classic layout. Fakes with each original's quirk.

SENTENCES = ("sentence1", "sentence2")
PREMISES = "index\tsentence1\tsentence2\tlabel\n"
MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\t"
)
GLUE_FILES = {
    "CoLA": 'gj04\t1\t\tOne more.\ngj04\t0\t*\tThe "more.\n',
    "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    '1\t1\t2\tHe said " no .\tNo , he said .\n0\t3\t4\t"B" \'s\t" c\n',
    "RTE": PREMISES + "0\ta\tb\tnot_entailment\n1\tc\td\tentailment\n",
    "SST-2": "sentence\tlabel\nbad film \t0\ngood film \t1\n",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\t"
    "sentence1\tsentence2\tscore\n"
    "0\tg\tf\t2012\t1\tnone\tnone\ta\tb\t5.000\n1\tg\tf\t2012\t2\tnone\tnone\tc\td\t3.800\n",
    "QNLI": "index\tquestion\tsentence\tlabel\n0\tq?\ts\tentailment\n1\tr?\tt\tnot_entailment\n",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    "0\t1\t2\ta?\tb?\t0\n9\tbroken\n3\t4\t5\tc?\t\t1\n1\t3\t4\tc?\td?\t1\n",
    "MNLI": MNLI + "label1\tgold_label\n" + "\t".join("0123****ab") + "\tneutral\tcontradiction\n"
    "1\t2\t3\tg\t*\t*\t*\t*\tc\td\tentailment\tentailment\n",
    "WNLI": PREMISES + "0\ta\tb\t1\n1\tc\td\t0\n",
}
EXPECTED = {
    "CoLA": (["One more.", 'The "more.'], None, [1, 0], ("unacceptable", "acceptable")),
    "MRPC": (
        ['He said " no .', '"B" \'s'],
        ["No , he said .", '" c'],
        [1, 0],
        ("not_equivalent", "equivalent"),
    ),
    "RTE": (["a", "c"], ["b", "d"], [1, 0], ("entailment", "not_entailment")),
    "SST-2": (["bad film ", "good film "], None, [0, 1], ("negative", "positive")),
    "STS-B": (["a", "c"], ["b", "d"], [5.0, 3.8], ()),
    "QNLI": (["q?", "r?"], ["s", "t"], [0, 1], ("entailment", "not_entailment")),
    "QQP": (["a?", "c?"], ["b?", "d?"], [0, 1], ("not_duplicate", "duplicate")),
    "MNLI": (["a", "c"], ["b", "d"], [2, 0], ("entailment", "neutral", "contradiction")),
    "WNLI": (["a", "c"], ["b", "d"], [1, 0], ("not_entailment", "entailment")),
}


@pytest.mark.parametrize("name", GLUE_FILES)
def test_glue_layout(tmp_path, name):
    write(tmp_path / name / "train.tsv", GLUE_FILES[name])
    texts, pairs, labels, names = EXPECTED[name]
    key = name.lower().replace("-", "")
    for spelling in (name, name.lower(), key.upper()):
        task = load(f"glue:{spelling}", glue_dir=tmp_path)
        assert (task.texts, task.pairs, task.label_names) == (texts, pairs, names)
        np.testing.assert_allclose(task.labels, labels, rtol=1e-6)
        assert task.labels.dtype == (np.int32 if names else np.float32)
        assert task.name == f"glue:{key}"


@pytest.mark.parametrize(("name", "file"), [("RTE", "dev.tsv"), ("MNLI", "dev_matched.tsv")])
def test_glue_development_files_and_folders_of_other_spelling(tmp_path, name, file):
    write(tmp_path / name.lower() / file, GLUE_FILES[name].replace("\n", "\r\n"))
    task = load(f"glue:{name}", glue_dir=tmp_path, split="validation")
    assert task.texts == ["a", "c"]
    assert task.label_names == EXPECTED[name][3]
    with pytest.raises(InputError, match=r"train\.tsv: no such file"):
        load(f"glue:{name}", glue_dir=tmp_path)
    with pytest.raises(InputError, match=r"test\.tsv: no such file"):
        load(f"glue:{name}", glue_dir=tmp_path, split="test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "RTE",
            PREMISES + "0\ta\tb\tentailment\n1\tc\tentailment\n",
            r"train\.tsv:3: has 3 fields",
        ),
        (
            "RTE",
            PREMISES + "0\ta\tb\tentailment\n\n1\tc\td\tperhaps\n",
            r"tsv:4: unknown label 'per",
        ),
        ("RTE", PREMISES + "0\ta\t \tentailment\n", r"tsv:2: no 'sentence2'"),
        ("RTE", PREMISES, "no rows"),
        (
            "RTE",
            "sentence1\tlabel\na\tentailment\n",
            r"no column 'sentence2', only 'sentence1', 'la",
        ),
        (
            "STS-B",
            GLUE_FILES["STS-B"].replace("3.800", "high"),
            r"tsv:3: 'score' is 'high', not a n",
        ),
        ("STS-B", GLUE_FILES["STS-B"].replace("3.800", "nan"), r"tsv:3: 'score' is 'nan'"),
        ("CoLA", "gj04\t1\tsentence\n", r"tsv:1: has 3 fields instead of 4"),
    ],
)
def test_broken_glue_files(tmp_path, name, content, message):
    write(tmp_path / name / "train.tsv", content)
    assert_complaint(message, lambda: load(f"glue:{name}", glue_dir=tmp_path))


def test_unknown_glue_names_and_places(tmp_path):
    assert_complaint("glue:SuperB: unknown GLUE task; use one of ", lambda: load("glue:SuperB"))
    assert_complaint("has no folder MRPC", lambda: load("glue:mrpc", glue_dir=tmp_path))
    assert_complaint("cannot be read", lambda: load("glue:mrpc", glue_dir=tmp_path / "none"))


# What bad files get.


def assert_complaint(message, call):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    assert "; " in str(caught.value), "what to do is missing"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", r"a\.csv: the file is empty"),
        ("a.csv", BOM, "empty"),
        ("a.csv", " \n\r\n", "empty"),
        ("a.jsonl", "\n", "empty"),
        ("a.parquet", "", "Parquet"),
        ("a.txt", "text,label\n", r"unknown extension '\.txt'; give one of \.csv"),
        ("a", "text,label\n", "unknown extension ''"),
        ("a.csv", "text,label\n", "no rows"),
        ("a.csv", "x,label\nt,a\n", "no column 'text' or 'sentence', only 'x', 'label'"),
        ("a.csv", "text,kind\nt,a\n", "no column 'label', only 'text', 'kind'"),
        ("a.csv", "text,label,text\nt,a,u\n", "two columns are named 'text'"),
        ("a.csv", "text,label\nt,a\n  ,b\n", r"a\.csv:3: no 'text'"),
        ("a.csv", "text,label\nt,a\nu,\n", r"a\.csv:3: no 'label'"),
        ("a.csv", "text,text_pair,label\nt,,a\n", r"a\.csv:2: no 'text_pair'"),
        ("a.csv", 'text,label\n"t\nt\nt",a\n\nu\n', r"a\.csv:6: has 1 fields where"),
        ("a.csv", 'text,label\n"t\nt",a\nu,b,c\n', r"a\.csv:4: has 3 fields"),
        ("a.csv", 'text,label\n"t\nt",a\n"u,b\nv,c\n', r"a\.csv:4: unexpected end of data"),
        ("a.csv", 'text,label\n"t" t,a\n', r"a\.csv:2: ',' expected after '\"'"),
        ("a.csv", b"text,label\nt,a\ncaf\xe9,b\n", r"a\.csv:3: byte 0xe9 is not UTF-8"),
        ("a.tsv", BOM + b"text\tlabel\n\xff\ta\n", r"a\.tsv:2: byte 0xff"),
        ("a.csv", "text,label\nt,a\nu\0,b\n", r"a\.csv:3: has a NUL byte"),
        ("a.csv", "text,label\nt,a\n".encode("utf-16"), r"a\.csv:1: byte 0xff"),
        ("a.csv", "text,label\nt,a\nu,a\n", "examples of only 1 of the chosen classes \\('a'\\)"),
        ("a.jsonl", '{"text": "t", "label": "a"}\n\n{"text": }\n', r"a\.jsonl:3: is not JSON"),
        ("a.jsonl", '{"text": "t", "label": ' + "1" * 5000 + "}\n", r"a\.jsonl:1: is not JSON"),
        (
            "a.jsonl",
            '{"text": "a", "label": "x", "text": "b"}',
            "1: is not JSON \\('text' is given",
        ),
        ("a.jsonl", "[" * 100_000 + "\n", r"a\.jsonl:1: is not JSON"),
        ("a.json", '["t", "a"]\n', r"a\.json row 1: is not a JSON object"),
        ("a.jsonl", '{"text": "t", "label": "a"}\n{"text": 5, "label": "b"}\n', "2: 'text' is int"),
        ("a.jsonl", '{"text": "t", "label": 0.5}\n', r"a\.jsonl:1: 'label' is float"),
        ("a.jsonl", '{"text": "t", "label": ["a"]}\n', "'label' is list"),
        ("a.jsonl", '{"text": "t", "label": "a"}\n{"text": "t"}\n', r"a\.jsonl:2: no 'label'"),
        ("a.jsonl", '{"text": null, "label": "a"}\n', r"a\.jsonl:1: no 'text'"),
        ("a.jsonl", '{"text": "\\ud800", "label": "a"}\n', r"a\.jsonl:1: 'text' holds half a"),
        ("a.jsonl", '{"text": "t"}\n{"text": "u", "label": "a"}\n', r"a\.jsonl:1: no 'label'"),
        ("a.jsonl", "[]\n", r"a\.jsonl:1: is not a JSON object"),
        ("a.json", "[]\n", r"a\.json: has no rows"),
        ("a.json", '[{"text": "t", "label": "a"}', r"a\.json: is not JSON .* one array of objects"),
        ("a.json", '[{"text": "t", "text": "u", "label": "a"}]', "'text' is given twice"),
        ("a.json", "[" * 100_000, r"a\.json: is not JSON \(it is nested too deeply\)"),
        ("a.json", '[\n{"text": "t", "label": "a"},\n5]', r"a\.json row 2: is not a JSON object"),
        (
            "a.json",
            '[\n{"text": "t", "label": "a"},\n{"label": "b"}]',
            r"a\.json row 2: no 'text'",
        ),
        ("a.parquet", b"PAR1 is how it begins", "is a damaged Parquet file"),
    ],
)
def test_bad_files_get_one_line(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    assert_complaint(message, lambda: load(path))


def test_bad_paths_get_one_line(tmp_path):
    assert_complaint("no such file", lambda: load(str(tmp_path / "none.csv")))
    assert_complaint("no such file", lambda: load(str(tmp_path / "none.txt")))
    assert_complaint("is a directory", lambda: load(str(tmp_path)))
    assert_complaint("cannot be read", lambda: load("x" * 5000 + ".csv"))


def test_named_columns_that_are_missing(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\nt,a\n")
    for which in ("text_column", "pair_column", "label_column"):
        assert_complaint("no column 'x', only 'text'", lambda w=which: load(path, **{w: "x"}))


def test_parquet_complaints(tmp_path):
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["t", None], "label": ["a", "b"]}), path)
    assert_complaint("a.parquet row 2: no 'text'", lambda: load(path))
    pq.write_table(pa.table({"text": ["t"] * 2, "label": [0.0, 1.0]}), path)
    assert_complaint("row 1: 'label' is float", lambda: load(path))
    pq.write_table(pa.table({"text": [b"t", b"\xff"], "label": ["a", "b"]}), path)
    assert_complaint("row 1: 'text' is bytes", lambda: load(path))
    invalid = pa.array([b"t", b"\xff"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": invalid, "label": ["a", "b"]}), path)
    assert_complaint("is a damaged Parquet file", lambda: load(path))
    pq.write_table(pa.table([["t"], ["a"], ["u"]], ["text", "label", "text"]), path)
    assert_complaint("two columns are named 'text'", lambda: load(path))
    pq.write_table(pa.table({"text": pa.array([], pa.string()), "label": []}), path)
    assert_complaint("no rows", lambda: load(path))
    content = (tmp_path / "a.parquet").read_bytes()
    assert_complaint("is a damaged", lambda: load(write(tmp_path / "b.parquet", content[:-20])))


# Classes.


def test_classes_keep_only_the_labels_listed(tmp_path):
    rows = "text,text_pair,label\nt0,p0,c\nt1,p1,a\nt2,p2,b\nt3,p3,c\n"
    path = write(tmp_path / "a.csv", rows)
    one = write(tmp_path / "1.txt", BOM + b"c\r\n\r\n")
    two = write(tmp_path / "2.txt", "b")
    task = load(path, classes=[one, two])
    assert (task.texts, task.pairs) == (["t0", "t2", "t3"], ["p0", "p2", "p3"])
    assert task.label_names == ("b", "c")
    assert task.labels.tolist() == [1, 0, 1]
    assert task.labels.dtype == np.int32
    assert load(path, classes=write(tmp_path / "3.txt", "a\nb\n")).label_names == ("a", "b")


def test_classes_may_belong_to_any_of_the_tasks(tmp_path):
    a = write(tmp_path / "a.csv", "text,label\nt,a\nt,b\nt,x\n")
    b = write(tmp_path / "b.csv", "text,label\nt,c\nt,d\nt,x\n")
    tasks = load_tasks([a, b], classes=write(tmp_path / "c.txt", "a\nb\nc\nd\n"))
    assert [task.label_names for task in tasks] == [("a", "b"), ("c", "d")]


def test_examples_to_judge_by_may_be_of_one_class(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\nt,a\nu,a\n")
    assert load(path, split="validation").label_names == ("a",)
    with pytest.raises(InputError, match="give at least two"):
        load(path)


def test_bad_classes(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\nt,a\nt,b\n")
    unknown = write(tmp_path / "c.txt", "a\n\nz\n")
    assert_complaint(r"c\.txt:3: no task has the label 'z'", lambda: load(path, classes=unknown))
    single = write(tmp_path / "d.txt", "a\n")
    assert_complaint("examples of only 1 of the chosen classes", lambda: load(path, classes=single))
    missing = tmp_path / "e.txt"
    assert_complaint("no such file", lambda: load(path, classes=missing))
    write(tmp_path / "STS-B" / "train.tsv", GLUE_FILES["STS-B"])
    both = lambda: load_tasks([path, "glue:stsb"], glue_dir=tmp_path, classes=single)  # noqa: E731
    assert_complaint("glue:stsb: is a regression and has no classes", both)


# Fingerprints.


def test_fingerprint_is_the_sha256_of_the_file(tmp_path):
    path = write(tmp_path / "corpus.txt", "abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert fingerprint(path) == abc
    write(tmp_path / "RTE" / "train.tsv", "abc")
    write(tmp_path / "RTE" / "dev.tsv", "abd")
    assert fingerprint("glue:rte", glue_dir=tmp_path) == abc
    assert fingerprint("glue:rte", glue_dir=tmp_path, split="validation") != abc
    with pytest.raises(InputError, match="no such file"):
        fingerprint(str(tmp_path / "none"))
