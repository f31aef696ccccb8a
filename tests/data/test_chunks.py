"""Documents as tasks: chunks that predict every token once, streams, windows by counting."""

import itertools
import logging

import numpy as np
import pytest
from tokenizers import processors

from metajax.data import (
    StreamSpec,
    TokenizedDocument,
    count_chunks,
    cut_chunks,
    fingerprint,
    load_documents,
    sample_streams,
    split_documents,
    stream_tasks,
    support_chunks,
    tokenize_documents,
)
from metajax.errors import InputError
from tests.data.test_documents import BEGIN, END, byte_level, make_tokenizer  # noqa: F401

TEXT = "na\u00efve \u65e5\u672c \U0001f600! And a second line.\n"


def document_of(size, first=1):
    """A document of `size` different tokens with one byte each."""
    return TokenizedDocument(np.arange(first, first + size, dtype=np.int32), np.ones(size, int))


@pytest.mark.parametrize(
    ("size", "length"), list(itertools.product((2, 5, 9, 10, 11), (2, 3, 5, 16)))
)
def test_every_token_but_the_first_is_predicted_once(size, length):
    document = document_of(size)
    chunks = cut_chunks(document, length)
    assert len(chunks.input_ids) == count_chunks(document, length)
    assert chunks.input_ids[chunks.predicted].tolist() == list(range(2, size + 1))
    before = np.roll(chunks.predicted, -1, axis=1)
    assert chunks.input_ids[before].tolist() == list(range(1, size))
    assert chunks.num_bytes[chunks.predicted].sum() == chunks.num_bytes.sum() == size - 1
    assert not chunks.input_ids[chunks.attention_mask == 0].any()
    assert chunks.input_ids.dtype == chunks.attention_mask.dtype == chunks.num_bytes.dtype


def test_windows_begin_and_end_where_they_are_told():
    chunks = cut_chunks(document_of(20), 4, begin=5, most=2)
    assert chunks.input_ids.tolist() == [[6, 7, 8, 9], [9, 10, 11, 12]]
    assert cut_chunks(document_of(6), 4, most=9).input_ids.tolist() == [[1, 2, 3, 4], [4, 5, 6, 0]]
    with pytest.raises(InputError, match="chunks of 1 tokens leave nothing to predict"):
        cut_chunks(document_of(6), 1)


@pytest.mark.parametrize("length", [2, 7, 500])
def test_bytes_of_the_chunks_are_those_of_the_text(byte_level, length):  # noqa: F811
    """The first token, which nothing predicts, is one byte here."""
    [document] = tokenize_documents([TEXT], byte_level)
    assert document.num_bytes.sum() == len(TEXT.encode())
    assert document.input_ids[-1] == byte_level.eos_token_id
    assert cut_chunks(document, length).num_bytes.sum() == len(TEXT.encode()) - 1


def test_a_token_that_begins_texts_lets_all_bytes_be_predicted():
    beginning = make_tokenizer(bos_token="<s>")
    beginning.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A", None, [("<s>", BEGIN)]
    )
    [document] = tokenize_documents(["w0 w1 w2"], beginning)
    assert document.input_ids.tolist() == [BEGIN, 2, 3, 4, END]
    assert cut_chunks(document, 3).num_bytes.sum() == 8


def test_short_documents_are_padded_with_chunks_that_predict_nothing():
    """Before the stream, so that the steps on them come first, and after the query set."""
    spec = StreamSpec(support=3, query=2, length=3)
    documents = [cut_chunks(document_of(size), 3, most=5) for size in (5, 7, 9, 30)]
    assert [len(chunks.input_ids) for chunks in documents] == [2, 3, 4, 5]
    assert [support_chunks(count, spec) for count in (2, 3, 4, 5)] == [1, 2, 3, 3]
    task = stream_tasks(documents, spec)
    first = task.support["input_ids"][:, :, 0, 0].tolist()
    assert first == [[0, 0, 1], [0, 1, 3], [1, 3, 5], [1, 3, 5]]
    assert task.query["input_ids"][:, :, 0].tolist() == [[3, 0], [5, 0], [7, 0], [7, 9]]
    assert task.support["input_ids"].shape == (4, 3, 1, 3)
    for batch in task:
        assert ((batch["input_ids"] > 0) == batch["attention_mask"]).all()
    alone = stream_tasks(documents[:1], StreamSpec(support=4, query=0, length=3))
    assert alone.query is None
    assert alone.support["input_ids"][0, :, 0, 0].tolist() == [0, 0, 1, 3]


def test_samples_are_a_function_of_seed_and_step():
    documents = [document_of(8), *(document_of(300, first=1000 * n) for n in (1, 2, 3))]
    spec = StreamSpec(support=2, query=1, length=4)
    draws = {
        (seed, step): sample_streams(documents, spec, seed, step, 4).support["input_ids"][:, :, 0]
        for seed, step in itertools.product(range(3), range(3))
    }
    for drawn in draws.values():  # An epoch a step: each document once.
        assert sorted(drawn[:, -1, 0] // 1000) == [0, 1, 2, 3]
        assert [1, 4] in drawn[:, -2:, 0].tolist()  # The short one is used from its begin.
    orders = {tuple(draws[seed, 0][:, -1, 0] // 1000) for seed in range(3)}
    assert len(orders) > 1
    # The windows of a step begin at different places, too.
    begins = [drawn[drawn[:, 0, 0] >= 1000, 0, 0] % 1000 for drawn in draws.values()]
    assert all(len(set(own)) == 3 for own in begins)
    assert len(set(np.concatenate(begins))) > 22
    again = sample_streams(documents, spec, 2, 1, 4, slice(1, 3))
    assert (again.support["input_ids"][:, :, 0] == draws[2, 1][1:3]).all()


def test_a_window_may_be_anywhere_in_its_document():
    spec = StreamSpec(support=1, query=1, length=3)
    draws = [sample_streams([document_of(7)], spec, 0, step, 1) for step in range(60)]
    assert {int(each.support["input_ids"].flat[0]) for each in draws} == {1, 2, 3}
    assert all(each.query["attention_mask"].all() for each in draws)


def test_documents_are_held_out_by_the_seed():
    documents = [document_of(size) for size in range(2, 12)]
    splits = {seed: split_documents(documents, seed, 3) for seed in range(4)}
    for training, held_out in splits.values():
        sizes = [[len(each.input_ids) for each in part] for part in (training, held_out)]
        assert sorted(sizes[0] + sizes[1]) == list(range(2, 12))
        assert len(held_out) == 3
        assert all(part == sorted(part) for part in sizes)
    assert len({tuple(len(each.input_ids) for each in held) for _, held in splits.values()}) > 1


def write_folder(directory):
    for name, content in {
        "b.txt": b"second",
        "a/z.md": b"first\r\n",
        "c.rst": "\ufeffthird \u20ac".encode(),
        "blank.txt": b"\n",
        "picture.png": b"\x89PNG\0",
        ".hidden.txt": b"hidden",
        ".git/config": b"hidden",
    }.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def test_a_directory_has_a_document_a_text_file(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "metajax"):
        texts = load_documents(write_folder(tmp_path))
    assert texts == ["first\r\n", "second", "third \u20ac"]
    [message] = caplog.messages
    assert "4 of 7 files are left out; they are hidden, empty or not UTF-8 text" in message


def test_the_fingerprint_is_that_of_the_texts(tmp_path):
    spec = f"documents:{write_folder(tmp_path)}"
    known = fingerprint(spec)
    (tmp_path / "picture.png").write_bytes(b"\xff")
    (tmp_path / "b.txt").rename(tmp_path / "bb.txt")
    assert fingerprint(spec) == known
    (tmp_path / "bb.txt").write_text("seconD")
    changed = fingerprint(spec)
    (tmp_path / "bb.txt").write_text("second")
    (tmp_path / "bb.txt").rename(tmp_path / "z.txt")
    assert len({known, changed, fingerprint(spec)}) == 3
    assert fingerprint(f"documents:{tmp_path / 'z.txt'}") not in {known, changed}


def test_files_are_a_document_or_a_table(tmp_path):
    text, rows = tmp_path / "text.txt", tmp_path / "rows.jsonl"
    text.write_text("one\n\ndocument\n")
    rows.write_text('{"text": "one"}\n{"text": "two", "label": 3}\n')
    assert load_documents(text) == ["one\n\ndocument\n"]
    assert load_documents(str(rows)) == ["one", "two"]
    rows.write_text('{"content": "one"}\n')
    with pytest.raises(InputError, match=r"rows\.jsonl: has no column 'text' or 'sentence'"):
        load_documents(rows)


def test_nothing_to_read(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: has no text file, and 0 files that are hidden"):
        load_documents(tmp_path / "empty")
    (tmp_path / "empty" / ".a").write_text("text")
    with pytest.raises(InputError, match="has no text file, and 1 files that are hidden"):
        load_documents(tmp_path / "empty")
    with pytest.raises(InputError, match=r"none\.txt: no such file"):
        load_documents(tmp_path / "none.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"binary\.txt:1: byte 0xff is not UTF-8"):
        load_documents(tmp_path / "binary.txt")
