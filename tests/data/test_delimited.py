"""Tables of text: delimiters, quotation marks and what spreadsheets leave."""

import os
from pathlib import Path

import pytest

from metajax.data import load_tasks
from metajax.data.readers import read_lines, read_table
from metajax.errors import InputError


def table(tmp_path, name, content, *columns):
    """The columns of a file, by default the texts and labels."""
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_table(tmp_path / name)
    return [found.column(column) for column in columns or ("text", "label")]


def refusal(tmp_path, name, content):
    with pytest.raises(InputError) as caught:
        table(tmp_path, name, content)
    return str(caught.value).removeprefix(f"{tmp_path}/")


STRAY = 'text\tlabel\n"hello there\tpos\nit was fine\tneg\nbye"\tneg\nok\tpos\n'


def test_a_tsv_with_stray_quotation_marks_has_a_row_a_line(tmp_path, caplog):
    texts, labels = table(tmp_path, "a.tsv", STRAY)
    assert texts == ['"hello there', "it was fine", 'bye"', "ok"]
    assert labels == ["pos", "neg", "neg", "pos"]
    assert table(tmp_path, "b.tsv", STRAY.replace("\n", "\r\n")) == [texts, labels]
    assert not caplog.messages


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # One field that does not end as it begins, and all quotation marks are text.
        ('"fine"\ta\n"B" \'s\tb\n', ['"fine"', '"B" \'s']),
        ('"a" and "b"\ta\nc\tb\n', ['"a" and "b"', "c"]),
        # As spreadsheets and pandas write it: quoted where the text needs it, marks doubled.
        ('"a, b"\ta\n"He said ""no"""\tb\n', ["a, b", 'He said "no"']),
        ('"a\tb"\ta\n"c\nd"\tb\nsay "e"\tb\n', ["a\tb", "c\nd", 'say "e"']),
        ('say "no"\ta\n""\tb\n', ['say "no"', ""]),
    ],
)
def test_a_tsv_is_unquoted_where_it_is_quoted_throughout(tmp_path, caplog, rows, expected):
    assert table(tmp_path, "a.tsv", f"text\tlabel\n{rows}")[0] == expected
    assert not caplog.messages


def test_a_tsv_that_is_mostly_quoted_says_where_it_is_not(tmp_path, caplog):
    rows = '"a"\tx\n"b"\ty\n\n"c" d\tx\n'
    texts, _ = table(tmp_path, "a.tsv", f"text\tlabel\n{rows}")
    assert texts == ['"a"', '"b"', '"c" d']
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}/a.tsv:5: a field starts with a quotation mark")
    assert "(2 fields start and end with one)" in message


def test_rows_of_a_tsv_that_are_even_in_no_reading(tmp_path):
    found = refusal(tmp_path, "a.tsv", 'text\tlabel\n"a\tb\nc\td\te\n')
    assert found.startswith("a.tsv:3: has 3 fields where the header has 2; quote fields that")
    found = refusal(tmp_path, "c.tsv", 'text\tlabel\n"a\tb"\tq\tr\nc\td\n')
    assert found.startswith("c.tsv:2: has 4 fields")
    assert refusal(tmp_path, "b.tsv", "text\tlabel\na\tb\nc\n").startswith("b.tsv:3: has 1 fields")


@pytest.mark.skipif("METAJAX_DATA" not in os.environ, reason="METAJAX_DATA is not set")
@pytest.mark.parametrize("name", ["MRPC", "RTE", "SST-2", "STS-B"])
@pytest.mark.parametrize("part", ["train", "dev"])
def test_glue_as_plain_tsv_has_a_row_a_line(name, part):
    path = Path(os.environ["METAJAX_DATA"], "glue", name, f"{part}.tsv")
    header, *lines = [line.split("\t") for line in read_lines(path)]
    found = read_table(path)
    for number, column in enumerate(header):
        if number not in (0, len(header) - 1):  # The lines are stripped.
            assert found.column(column) == [line[number] for line in lines]


JOINED = 'text,label\n"hello there,pos\nit was fine,neg\nbye",neg\nok,pos\n'


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
def test_a_field_that_holds_rows_is_reported(tmp_path, caplog, name, delimiter):
    content = f'{JOINED}"one{delimiter}two",pos\n'.replace(",", delimiter)
    assert len(table(tmp_path, name, content)[0]) == 3
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / name}:2: a quoted field contains 'hello there")
    assert "(2 lines like this)" in message


@pytest.mark.parametrize(
    "text",
    [
        "Dear all, hello\nwith one comma, each line\nbye, me",  # No known label at a line's end.
        "first\nit is pos\nneg",
        "a,pos,c\nneg,pos,neg",
    ],
)
def test_a_text_of_several_lines_is_no_row(tmp_path, caplog, text):
    texts, _ = table(tmp_path, "a.csv", f'text,label\n"{text}",pos\nok,neg\nfine,pos\n')
    assert texts == [text, "ok", "fine"]
    assert not caplog.messages


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text;label\na, b;x\n"c; d";y\n'),
        ("b.csv", "text\tlabel\na, b\tx\nc; d\ty\n"),
        ("c.csv", "text|label\na, b|x\nc; d|y\n"),
        ("d.csv", 'sep=;\r\ntext;label\r\na, b;x\r\n"c; d";y\r\n'),
        ("e.csv", b"\xef\xbb\xbfsep=\t\ntext\tlabel\na, b\tx\nc; d\ty\n"),
        ("f.tsv", 'text,label\n"a, b",x\nc; d,y\n'),
        ("g.csv", '"one, two";text;label\n-;a, b;x\n-;"c; d";y\n'),
        ("h.csv", 'text,label\r"a, b",x\rc; d,y\r'),
        # What Excel leaves at the end of rows.
        ("i.csv", 'text,label,,\n"a, b",x,,\n\nc; d,y\n'),
        ("j.csv", 'text,label\n"a, b",x,,\nc; d,y,,\n'),
        ("k.csv", 'text,label;x;y\n"a, b",x\nc; d,y\n'),
    ],
)
def test_what_separates_columns_is_read_off_the_header(tmp_path, name, content):
    columns = ("text", "label;x;y") if name == "k.csv" else ()
    assert table(tmp_path, name, content, *columns) == [["a, b", "c; d"], ["x", "y"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sep=;\ntext;label\na;x\nb\n", r"a.csv:4: has 1 fields where the header has 2; quote"),
        ("text;label\na;x\nb;c;y\n", "a.csv:3: has 3 fields where the header has 2; quote fields "
         "that contain the delimiter ';'"),
        # A value below no name is no empty cell of Excel's.
        ("text,label,,\na,x,,\nb,c,y,\n", "a.csv:3: has 4 fields where the header has 2"),
        ("sep=;\n", "a.csv: has no header"),
        (",,\n,,\n", "a.csv: has no header"),
        ("text,label\na,x\n\ufefftext,label\nb,y\n", "a.csv:3: repeats the header; remove"),
        ("sep=;\ntext;label\n\"a\nb\";x\ntext;label\n", "a.csv:5: repeats the header"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_with_its_line(tmp_path, content, message):
    assert refusal(tmp_path, "a.csv", content).startswith(message)


def test_a_row_may_have_the_name_of_a_column(tmp_path):
    assert table(tmp_path, "a.csv", "text,label\na,label\ntext,b\n")[1] == ["label", "b"]
    assert table(tmp_path, "b.csv", "text\na\ntext\n", "text") == [["a", "text"]]


def test_lone_carriage_returns_end_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\rtwo\r\r")
    assert read_lines(tmp_path / "a.txt") == ["one", "two"]
    (tmp_path / "b.txt").write_bytes(b"on\re\ntwo\n")  # As long as nothing else ends any.
    assert read_lines(tmp_path / "b.txt") == ["on\re", "two"]


def test_the_rows_of_case_nine(tmp_path):
    (tmp_path / "q.tsv").write_text(STRAY)
    (task,) = load_tasks([str(tmp_path / "q.tsv")])
    assert [task.label_names[label] for label in task.labels] == ["pos", "neg", "neg", "pos"]
