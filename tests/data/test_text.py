import copy
import json

import numpy as np
import pytest
import transformers

from metajax.data import TaskData, pack_blocks, read_lines, tokenize, tokenize_task
from metajax.errors import InputError


def ids(tokenizer, text):
    return tokenizer.convert_tokens_to_ids(text.split())


def test_read_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf one \r\n\r\n \ntwo\xe2\x80\xa8still two")
    (tmp_path / "b.txt").write_text("three")
    paths = [tmp_path / "a.txt", str(tmp_path / "b.txt")]
    assert read_lines(paths) == ["one", "two\u2028still two", "three"]
    assert read_lines(paths[1]) == ["three"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\ntwo\n\xc3\n", r"a\.txt:3: byte 0xc3 is not UTF-8"),
        (b"one\n\0", r"a\.txt:2: has a NUL byte"),
        (b"", "empty"),
        (b" \n\n", "empty"),
    ],
)
def test_read_lines_complains(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_lines(tmp_path / "a.txt")


def test_tokenize_single_texts(tokenizer):
    tokens = tokenize(["w1 w2", "unbelievable", "w3 w4 w5 w6"], None, tokenizer, 64)
    assert tokens.input_ids.tolist() == [
        ids(tokenizer, "[CLS] w1 w2 [SEP] [PAD] [PAD]"),
        ids(tokenizer, "[CLS] un ##believ ##able [SEP] [PAD]"),
        ids(tokenizer, "[CLS] w3 w4 w5 w6 [SEP]"),
    ]
    assert tokens.lengths.tolist() == [4, 5, 6]
    assert tokens.truncated == 0
    assert not tokens.token_type_ids.any()
    assert tokens.input_ids.dtype == tokens.lengths.dtype == np.int32


def test_tokenize_pairs_and_count_what_is_truncated(tokenizer):
    texts = ["w1 w2 w3 w4 w5", "w1", "w1 w2", "w1"]
    pairs = ["w6 w7", "w8", "w3 w4", "w2 w3 w4 w5"]  # The last one is longer in its second text.
    tokens = tokenize(texts, pairs, tokenizer, 7)
    assert tokens.input_ids.tolist() == [
        ids(tokenizer, "[CLS] w1 w2 [SEP] w6 w7 [SEP]"),
        ids(tokenizer, "[CLS] w1 [SEP] w8 [SEP] [PAD] [PAD]"),
        ids(tokenizer, "[CLS] w1 w2 [SEP] w3 w4 [SEP]"),
        ids(tokenizer, "[CLS] w1 [SEP] w2 w3 w4 [SEP]"),
    ]
    assert tokens.token_type_ids.tolist()[0] == [0, 0, 0, 0, 1, 1, 1]
    assert tokens.token_type_ids.tolist()[1] == [0, 0, 0, 1, 1, 0, 0]
    assert tokens.token_type_ids.tolist()[3] == [0, 0, 0, 1, 1, 1, 1]
    assert tokens.truncated == 2


def test_tokenize_many_equals_one_by_one(tokenizer):
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(40, size=n)) for n in rng.integers(1, 12, 2500)]
    tokens = tokenize(texts, None, tokenizer, 9)
    assert tokens.truncated == sum(len(text.split()) > 7 for text in texts)
    for row in (0, 1023, 1024, 2047, 2048, 2499):
        expected = ids(tokenizer, " ".join(["[CLS]", *texts[row].split()[:7], "[SEP]"]))
        assert tokens.input_ids[row, : tokens.lengths[row]].tolist() == expected
    with_pairs = tokenize(texts, [text.split()[0] for text in texts], tokenizer, 8)
    for row in (1023, 1024, 2499):
        words = texts[row].split()
        expected = ids(tokenizer, " ".join(["[CLS]", *words[:4], "[SEP]", words[0], "[SEP]"]))
        found = with_pairs.input_ids[row, : with_pairs.lengths[row]]
        assert found.tolist() == expected


def test_each_chunk_is_counted(tokenizer):
    counts = []
    tokenize(["w1"] * 2500, None, tokenizer, 9, per_chunk_fn=counts.append)
    assert sum(counts) == 2500
    assert len(counts) > 2
    task = TaskData("name", ["w1", "w2"], None, np.array([0, 1], np.int32), ("no", "yes"))
    tokenize_task(task, tokenizer, 9, per_chunk_fn=counts.append)
    assert counts[-1] == 2


@pytest.mark.parametrize("split", [False, True])
def test_settings_that_the_tokenizer_kept_change_nothing(tokenizer, split):
    """Each call of transformers leaves its padding and truncation in the tokenizer."""
    other, texts = copy.deepcopy(tokenizer), ["w1 [SEP] w2 w3 w4", "w5"]
    other.split_special_tokens = split
    expected = other(texts)["input_ids"]
    other(texts, padding="max_length", truncation=True, max_length=4)
    other.backend_tokenizer.encode_special_tokens = not split
    tokens = tokenize(texts, None, other, 16)
    found = [row[:length].tolist() for row, length in zip(tokens.input_ids, tokens.lengths)]
    assert found == expected
    assert tokens.truncated == 0


def test_a_length_that_holds_no_text(tokenizer):
    with pytest.raises(InputError, match="2 tokens leaves no room for text; give 3 or more"):
        tokenize(["w1"], None, tokenizer, 2)
    with pytest.raises(InputError, match="give 4 or more"):
        tokenize(["w1"], ["w2"], tokenizer, 3)
    assert tokenize(["w1 w2"], None, tokenizer, 3).truncated == 1


def test_tokenize_task(tokenizer):
    labels = np.array([1, 0, 1], np.int32)
    task = TaskData("name", ["w1", "w2 w3", "w4"], None, labels, ("no", "yes"))
    tokenized = tokenize_task(task, tokenizer, 16)
    assert (tokenized.name, tokenized.label_names) == ("name", ("no", "yes"))
    assert [rows.tolist() for rows in tokenized.rows_by_class] == [[1], [0, 2]]
    regression = task._replace(labels=np.array([0.5, 1, 0], np.float32), label_names=())
    assert tokenize_task(regression, tokenizer, 16).rows_by_class == ()


def test_pack_blocks(tokenizer):
    blocks = pack_blocks(["w1 unbelievable w2", "w3 ' zzz [SEP] w4s"], tokenizer, 6)
    expected = [
        "[CLS] w1 un ##believ ##able [SEP]",
        "[CLS] w2 w3 ' [UNK] [SEP]",
        "[CLS] [SEP] w4 ##s [SEP] [PAD]",
    ]
    assert blocks.input_ids.tolist() == [ids(tokenizer, text) for text in expected]
    assert blocks.attention_mask.tolist() == [[1] * 6, [1] * 6, [1] * 5 + [0]]
    assert blocks.maskable.astype(int).tolist() == [
        [0, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0],
    ]
    assert blocks.word_start.astype(int).tolist() == [
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 1, 0, 0, 0],
    ]
    assert blocks.input_ids.dtype == blocks.attention_mask.dtype == np.int32


def test_a_word_cut_by_the_edge_begins_anew(tokenizer):
    blocks = pack_blocks(["w1 w2 unbelievable"], tokenizer, 5)
    assert blocks.input_ids[1].tolist() == ids(tokenizer, "[CLS] ##believ ##able [SEP] [PAD]")
    assert blocks.word_start[1].tolist() == [False, True, False, False, False]


def test_equal_words_in_a_row_and_lines_that_meet_are_words_apart(tokenizer):
    blocks = pack_blocks(["w1 w1", "w1"], tokenizer, 5)
    assert blocks.word_start[0].tolist() == [False, True, True, True, False]


def test_text_that_fills_its_blocks_takes_no_other(tokenizer):
    blocks = pack_blocks(["w1 w2 w3 w4"], tokenizer, 4)
    expected = ["[CLS] w1 w2 [SEP]", "[CLS] w3 w4 [SEP]"]
    assert blocks.input_ids.tolist() == [ids(tokenizer, text) for text in expected]


def test_blocks_that_hold_nothing(tokenizer):
    with pytest.raises(InputError, match="blocks of 2 tokens leave no room"):
        pack_blocks(["w1"], tokenizer, 2)
    for lines in ([], ["\u200b"]):
        with pytest.raises(InputError, match="the text has no tokens"):
            pack_blocks(lines, tokenizer, 8)


def test_a_vocabulary_without_its_unknown_token(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    described = json.loads(file.read_text())
    vocabulary = described["model"]["vocab"]
    vocabulary["[ELSE]"] = vocabulary.pop("[UNK]")
    described["added_tokens"] = [
        token for token in described["added_tokens"] if token["content"] != "[UNK]"
    ]
    file.write_text(json.dumps(described))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"unk_token": None}))
    other = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    refusal = f"{tmp_path}: its tokenizer cannot split a text"
    with pytest.raises(InputError, match=refusal):
        tokenize(["\u2603"], None, other, 16)
    with pytest.raises(InputError, match=refusal):
        pack_blocks(["\u2603"], other, 16)


def test_all_text_is_in_the_blocks_once_and_in_order(tokenizer):
    rng = np.random.default_rng(0)
    lines = [" ".join(f"w{i}" for i in rng.integers(40, size=n)) for n in rng.integers(1, 4, 2500)]
    blocks = pack_blocks(lines, tokenizer, 50)
    found = blocks.input_ids[blocks.maskable]
    np.testing.assert_array_equal(found, ids(tokenizer, " ".join(lines)))
    assert blocks.attention_mask.sum() == found.size + 2 * len(blocks.input_ids)
    assert (blocks.word_start == blocks.maskable).all()


def test_padding_is_the_tokenizers_own(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.pad_token = "w39"
    tokens = tokenize(["w1", "w2 w3"], None, other, 8)
    assert tokens.input_ids[0].tolist() == ids(tokenizer, "[CLS] w1 [SEP] w39")
    assert not tokens.token_type_ids.any()
    blocks = pack_blocks(["w1 w2"], other, 6)
    assert blocks.input_ids.tolist() == [ids(tokenizer, "[CLS] w1 w2 [SEP] w39 w39")]
