"""Documents of a decoder: packed into blocks with boundaries, positions and bytes."""

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import pre_tokenizers, processors

from metajax.data import document_batch, held_out, next_token_batch, pack_documents, take
from metajax.errors import InputError

END, BEGIN = 0, 1
WORDS = {"<end>": END, "<s>": BEGIN, **{f"w{i}": 2 + i for i in range(8)}}
LINES = ["w0 w1 w2 w3", "w4", "w5 w6"]


def make_tokenizer(**special):
    fast = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="<end>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, **{"eos_token": "<end>", "pad_token": "<end>", **special}
    )


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def byte_level():
    """Every byte is a token, so a character may be several."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    fast = tokenizers.Tokenizer(tokenizers.models.BPE(letters | {"<end>": 256}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token="<end>", pad_token="<end>"
    )


def test_blocks_have_documents_one_after_another(tokenizer):
    """The first document continues in the second block, as if it were another."""
    blocks = pack_documents(LINES, tokenizer, 3)
    assert blocks.input_ids.tolist() == [[2, 3, 4], [5, END, 6], [END, 7, 8], [END, END, END]]
    assert blocks.example_ids.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 1], [0, -1, -1]]
    assert blocks.position_ids.tolist() == [[0, 1, 2], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert blocks.num_bytes.tolist() == [[2, 3, 3], [3, 0, 2], [0, 2, 3], [0, 0, 0]]
    assert blocks.predicted.astype(int).tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert {array.dtype for array in blocks} == {np.dtype(np.int32)}


def test_text_that_fills_its_blocks_needs_no_other(tokenizer):
    blocks = pack_documents(LINES, tokenizer, 5)
    assert blocks.input_ids.tolist() == [[2, 3, 4, 5, END], [6, END, 7, 8, END]]


def test_special_tokens_are_those_of_the_tokenizer():
    """A tokenizer may begin a text, and end it; then it has no second end."""
    beginning = make_tokenizer(bos_token="<s>")
    beginning.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A", None, [("<s>", BEGIN)]
    )
    blocks = pack_documents(["w0 w1"], beginning, 4)
    assert blocks.input_ids.tolist() == [[BEGIN, 2, 3, END]]
    assert blocks.num_bytes.tolist() == [[0, 2, 3, 0]]
    between = make_tokenizer(bos_token="<s>")
    between.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "$A <s>", None, [("<s>", BEGIN)]
    )
    assert pack_documents(["w0 w1"], between, 4).num_bytes.tolist() == [[2, 3, 0, 0]]
    ending = make_tokenizer()
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "$A <end>", None, [("<end>", END)]
    )
    assert pack_documents(["w0 w1"], ending, 3).input_ids.tolist() == [[2, 3, END]]


@pytest.mark.parametrize("line", ["w1", "na\u00efve \u65e5\u672c \U0001f600!", "a  b"])
def test_each_byte_of_the_text_is_counted_once(byte_level, line):
    blocks = pack_documents([line, "x"], byte_level, 64)
    own = blocks.num_bytes[blocks.example_ids == 0]
    assert own.sum() == len(line.encode()) == len(own) - 1
    assert blocks.num_bytes.sum() == own.sum() + 1


def test_what_lies_between_tokens_is_counted(tokenizer):
    """Characters that no token covers: spaces in the text, and what follows the last token."""
    fast = make_tokenizer()
    fast.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(
        tokenizers.Regex("[^w0-9]+"), "removed"
    )
    blocks = pack_documents(["w0 \u20ac w1??"], fast, 3)
    assert blocks.num_bytes.tolist() == [[2, 7, 2]]


def test_documents_without_tokens_are_left_out(tokenizer):
    blocks = pack_documents(["\u200b " * 0, "w0"], tokenizer, 2)
    assert blocks.input_ids.tolist() == [[2, END]]


@pytest.mark.parametrize(
    ("lines", "length", "special", "message"),
    [
        (LINES, 1, {}, "blocks of 1 tokens leave nothing to predict; give 2 or more"),
        (LINES, 8, {"eos_token": None}, "no end-of-text token; set eos_token in tokenizer_config"),
        ([], 8, {}, "the text has no tokens"),
        ([""], 8, {}, "the text has no tokens"),
    ],
)
def test_bad_input(lines, length, special, message):
    with pytest.raises(InputError, match=message):
        pack_documents(lines, make_tokenizer(**special), length)


def test_batches_have_every_block_once_an_epoch(tokenizer):
    blocks = pack_documents([f"w{i % 8} w{i % 5}" for i in range(12)], tokenizer, 3)
    training, evaluation = held_out(blocks, 1, 0.25)
    assert (len(training.input_ids), len(evaluation.input_ids)) == (9, 3)
    rows = [*map(tuple, training.input_ids), *map(tuple, evaluation.input_ids)]
    assert sorted(rows) == sorted(map(tuple, blocks.input_ids))
    batches = [next_token_batch(training, 1, step, 3) for step in range(3)]
    seen = np.concatenate([batch["input_ids"] for batch in batches])
    assert sorted(map(tuple, seen)) == sorted(map(tuple, training.input_ids))
    other = [next_token_batch(training, 2, step, 3)["input_ids"] for step in range(3)]
    assert np.any(np.concatenate(other) != seen)
    whole = document_batch(take(training, np.array([2, 0])))
    assert whole.keys() == batches[0].keys() == {"input_ids", "example_ids", "position_ids"}
    assert whole["position_ids"].tolist() == training.position_ids[[2, 0]].tolist()
