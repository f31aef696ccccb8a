"""Tokens come from the cache as tokenization gives them, or the cache does not matter."""

import copy
import errno
import itertools
import logging
import os
import runpy
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from transformers import BertTokenizer

from metajax import data
from metajax.data.tokens import JoinedRows
from metajax.errors import InputError
from metajax.runs import task_data, token_cache
from metajax.runs.task_data import tokenized
from metajax.runs.token_cache import TokenCache, content_hash, tokenizer_hash, tokens_directory
from metajax.runs.workdir import cache_directory

TASK = data.TaskData(
    "films", ["w1 w2", "w3", "w4 w5 w6 w7 w8", "w1  w2"], None, np.array([0, 1, 1, 0]), ("-", "+")
)
PAIRS = TASK._replace(pairs=["w1", "w2 w3", "w4", "w5"])
HIDDEN = TASK._replace(
    texts=["w1 [MASK]", "[MASK]", "w1 w2 w3 w4 [MASK] w5 w6 w7 w8", "w2 [MASK]"], hides_words=True
)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(20))]


def make_tokenizer():
    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})


@pytest.fixture
def tokenizer():
    return make_tokenizer()


def once(task, tokenizer, directory, max_length=6):
    return TokenCache(tokenizer, max_length, directory).tokenize(task, lambda count: None)


def name_of(task, tokenizer, max_length):
    return content_hash(task, tokenizer_hash(tokenizer, max_length))


def assert_same(found, expected):
    every = np.arange(len(expected.labels))
    for a, b in zip(found.tokens[:3], expected.tokens[:3], strict=True):
        np.testing.assert_array_equal(a[every], b[every])
        assert a[every].dtype == b[every].dtype
    assert found.tokens.input_ids.shape == expected.tokens.input_ids.shape
    assert found.tokens.truncated == expected.tokens.truncated
    assert (found.name, found.label_names) == (expected.name, expected.label_names)
    np.testing.assert_array_equal(found.labels, expected.labels)
    for a, b in zip(found.rows_by_class, expected.rows_by_class, strict=True):
        np.testing.assert_array_equal(a, b)


def no_tokenization(*_, **__):
    raise AssertionError("tokenized again")


@pytest.mark.parametrize("task", [TASK, PAIRS, HIDDEN])
def test_tokens_are_read_as_they_were_written(task, tokenizer, tmp_path, monkeypatch):
    expected = data.tokenize_task(task, tokenizer, 6)
    assert expected.tokens.truncated
    assert_same(once(task, tokenizer, tmp_path), expected)
    monkeypatch.setattr(token_cache, "join_tokens", no_tokenization)
    assert_same(once(task, tokenizer, tmp_path), expected)
    # Labels and names are not in the file.
    other = task._replace(name="other", labels=1 - task.labels)
    found = once(other, tokenizer, tmp_path)
    assert found.name == "other"
    np.testing.assert_array_equal(found.labels, other.labels)
    (file,) = tmp_path.iterdir()
    assert len(datasets.Dataset.from_file(str(file))) == 4


def test_each_text_is_counted_once(tokenizer, tmp_path):
    for _ in range(2):
        counts = []
        TokenCache(tokenizer, 6, tmp_path).tokenize(TASK, counts.append)
        assert sum(counts) == 4


def test_whatever_changes_the_tokens_changes_the_name(tokenizer):
    def changed(**attributes):
        other = copy.deepcopy(tokenizer)
        for name, value in attributes.items():
            setattr(other, name, value)
        return other

    added = copy.deepcopy(tokenizer)
    added.add_tokens(["film"])
    hashes = [
        name_of(TASK, tokenizer, 6),
        name_of(TASK, tokenizer, 7),
        name_of(TASK, added, 6),
        name_of(TASK, changed(pad_token="w9"), 6),
        name_of(TASK, changed(mask_token="w9"), 6),
        name_of(TASK, changed(truncation_side="left"), 6),
        name_of(TASK, changed(split_special_tokens=True), 6),
        name_of(TASK._replace(hides_words=True), tokenizer, 6),
        name_of(TASK._replace(texts=TASK.texts[:3]), tokenizer, 6),
        name_of(TASK._replace(texts=["w1 w", "2w3", *TASK.texts[2:]]), tokenizer, 6),
        name_of(TASK._replace(pairs=[""] * 4), tokenizer, 6),
        name_of(PAIRS, tokenizer, 6),
        name_of(PAIRS._replace(texts=PAIRS.pairs, pairs=PAIRS.texts), tokenizer, 6),
    ]
    assert len(set(hashes)) == len(hashes)


def test_what_leaves_the_tokens_alone_leaves_the_name(tokenizer):
    """Earlier calls, labels, chunks of hashing, and another process."""
    expected = name_of(PAIRS, tokenizer, 6)
    tokenizer(["w1 w2"], padding="max_length", truncation=True, max_length=4)
    assert name_of(PAIRS._replace(name="x", labels=PAIRS.labels * 0), tokenizer, 6) == expected
    script = """
from tests.runs.test_token_cache import PAIRS, make_tokenizer, name_of
print(name_of(PAIRS, make_tokenizer(), 6))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == expected


def test_a_lone_surrogate_has_a_name(tokenizer):
    assert name_of(TASK._replace(texts=["\ud800"] * 4), tokenizer, 6)


@pytest.mark.parametrize("place", ["start", "middle", "truncated", "end"])
def test_a_changed_byte_is_noticed(tokenizer, tmp_path, caplog, place):
    expected = data.tokenize_task(TASK, tokenizer, 6)
    once(TASK, tokenizer, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = bytearray(file.read_bytes())
    where = {
        "start": 0,
        "middle": len(whole) // 2,
        "truncated": whole.index(b"truncated") + 20,
        "end": len(whole) - 1,
    }[place]
    damaged = bytearray(whole)
    damaged[where] ^= 1
    file.write_bytes(damaged)
    with caplog.at_level(logging.WARNING, "metajax"):
        assert_same(once(TASK, tokenizer, tmp_path), expected)
    assert caplog.messages == [f"{file}: is damaged; it is written again"]
    assert file.read_bytes() == whole
    caplog.clear()
    with caplog.at_level(logging.WARNING, "metajax"):
        assert_same(once(TASK, tokenizer, tmp_path), expected)
    assert not caplog.messages


@pytest.mark.parametrize("left", [0, 1, 31, 32, 33, 0.5, -1])
def test_a_file_cut_short_is_noticed(tokenizer, tmp_path, caplog, left):
    expected = data.tokenize_task(TASK, tokenizer, 6)
    once(TASK, tokenizer, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: int(left * len(whole)) if left == 0.5 else left])
    with caplog.at_level(logging.WARNING, "metajax"):
        assert_same(once(TASK, tokenizer, tmp_path), expected)
    assert len(caplog.messages) == 1
    assert file.read_bytes() == whole


def test_mapped_tokens_outlive_a_damaged_and_rewritten_file(tokenizer, tmp_path):
    first = once(TASK, tokenizer, tmp_path)
    (file,) = tmp_path.iterdir()
    file.unlink()
    once(TASK, tokenizer, tmp_path)
    assert_same(first, data.tokenize_task(TASK, tokenizer, 6))


def test_two_may_write_at_once(tokenizer, tmp_path):
    barrier = threading.Barrier(2)

    def write(own):
        found = []
        for turn in range(20):
            task = TASK._replace(texts=[f"w{turn}", "w1", "w2 w3", "w4 w5 w6 w7 w8"])
            barrier.wait(60)
            found.append((once(task, own, tmp_path), data.tokenize_task(task, own, 6)))
        return found

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(write, [tokenizer, copy.deepcopy(tokenizer)]))
    for found, expected in itertools.chain(*both):
        assert_same(found, expected)
    assert len(list(tmp_path.glob("*.arrow"))) == len(list(tmp_path.iterdir())) == 20


def test_a_full_disk_costs_one_warning(tokenizer, tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tasks = [TASK, PAIRS, HIDDEN]
    monkeypatch.setattr(token_cache.os, "replace", full)
    cache = TokenCache(tokenizer, 6, tmp_path)
    for task in tasks:
        found = cache.tokenize(task, lambda count: None)
        assert_same(found, data.tokenize_task(task, tokenizer, 6))
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}: tokens cannot be kept (")
    assert message.endswith("No space left on device); free space, or set HF_DATASETS_CACHE")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_fills_while_arrow_writes(tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(token_cache.Path, "with_name", lambda path, name: path.parent / "full")
    (tmp_path / "full").symlink_to("/dev/full")
    task = TASK._replace(texts=["w1 w2 w3"] * 5000, labels=np.arange(5000) % 2)
    assert_same(once(task, tokenizer, tmp_path), data.tokenize_task(task, tokenizer, 6))
    assert "No space left on device" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_made(tokenizer, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    expected = data.tokenize_task(TASK, tokenizer, 6)
    assert_same(once(TASK, tokenizer, tmp_path / "file" / "metajax"), expected)
    assert len(caplog.messages) == 1


def test_what_was_kept_is_read_after_a_failure(tokenizer, tmp_path, monkeypatch):
    once(PAIRS, tokenizer, tmp_path)
    cache = TokenCache(tokenizer, 6, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "_write", lambda path, tokens: False)
        cache.tokenize(TASK, lambda count: None)
    monkeypatch.setattr(token_cache, "join_tokens", no_tokenization)
    expected = data.tokenize_task(PAIRS, tokenizer, 6)
    assert_same(cache.tokenize(PAIRS, lambda count: None), expected)


def test_what_killed_processes_left_is_removed_in_time(tokenizer, tmp_path):
    """But not what another process may be writing."""
    old, new, other = (tmp_path / name for name in ("a.partial", "b.partial", "c.arrow"))
    now = time.time()
    for path, age in ((old, 25), (new, 23), (other, 100)):
        path.write_text("")
        os.utime(path, (now, now - 3600 * age))
    once(TASK, tokenizer, tmp_path)
    assert not old.exists()
    assert new.exists()
    assert other.exists()


def test_a_writer_that_loses_its_file_keeps_no_tokens(tokenizer, tmp_path, caplog, monkeypatch):
    replace = os.replace

    def lose(source, target):
        os.unlink(source)
        replace(source, target)

    monkeypatch.setattr(token_cache.os, "replace", lose)
    assert_same(once(TASK, tokenizer, tmp_path), data.tokenize_task(TASK, tokenizer, 6))
    assert "tokens cannot be kept (" in caplog.text
    assert not list(tmp_path.iterdir())


def test_only_many_texts_are_kept(tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    model = SimpleNamespace(tokenizer=tokenizer, prompt="", siamese=False)
    small = TASK._replace(texts=TASK.texts[:3], labels=TASK.labels[:3])
    monkeypatch.setattr(task_data, "MANY", 7)
    expected = tokenized([small], model, 6) + tokenized([TASK], model, 6)
    tokenized([small, TASK], model, 6, keep=False)
    assert not list(tmp_path.iterdir())
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            found = tokenized([small, TASK], model, 6)
            for a, b in zip(found, expected, strict=True):
                assert_same(a, b)
    assert len(list((tmp_path / "metajax").iterdir())) == 2
    where = f"tokens are read from, or kept in, {tmp_path / 'metajax'}"
    assert [text for text in caplog.messages if "kept" in text] == [where] * 2


def test_tokens_of_pairs_apart_are_not_kept(tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(task_data, "MANY", 1)
    model = SimpleNamespace(tokenizer=tokenizer, prompt="", siamese=True)
    for tasks, kept in (([PAIRS], False), ([PAIRS, TASK], True)):
        with caplog.at_level(logging.INFO):
            tokenized(tasks, model, 6)
        assert any("kept" in text for text in caplog.messages) == kept
        assert len(list(tmp_path.rglob("*.arrow"))) == kept


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
def test_mapped_files_are_not_open(tokenizer, tmp_path):
    def files():
        return len(os.listdir("/proc/self/fd"))

    once(TASK, tokenizer, tmp_path)
    before = files()
    held = [once(TASK, tokenizer, tmp_path) for _ in range(10)]
    assert files() == before
    assert isinstance(held[0].tokens.input_ids, JoinedRows)


def test_an_impossible_length_is_refused_first(tokenizer, tmp_path):
    with pytest.raises(InputError, match="leaves no room for text"):
        once(TASK, tokenizer, tmp_path, 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"XDG_CACHE_HOME": "/x"},
        {"XDG_CACHE_HOME": "/x", "HF_HOME": "~/h"},
        {"HF_HOME": "/h", "HF_DATASETS_CACHE": "/d"},
    ],
)
def test_the_directory_is_that_of_datasets(monkeypatch, variables):
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = runpy.run_path(datasets.config.__file__)
    assert tokens_directory() == config["HF_DATASETS_CACHE"] / "metajax"


def test_without_a_home_the_directory_is_a_temporary_one(monkeypatch):
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(token_cache.os.path, "expanduser", lambda path: path)
    assert tokens_directory() == cache_directory() / "tokens"
    assert tokens_directory().is_absolute()
