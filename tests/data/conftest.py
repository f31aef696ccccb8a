import numpy as np
import pytest
from transformers import BertTokenizerFast

from metajax.data import TaskData, tokenize_task

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{i}" for i in range(40)]
PIECES = ["un", "##believ", "##able", "##s", ".", ",", "'"]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A WordPiece tokenizer of 52 tokens: w0 to w39, and un ##believ ##able ##s."""
    vocabulary = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    vocabulary.write_text("\n".join(SPECIAL + WORDS + PIECES))
    return BertTokenizerFast(vocab=str(vocabulary), vocab_file=str(vocabulary))


@pytest.fixture(scope="session")
def make_task(tokenizer):
    """Return a function that makes a tokenized task; example i has 1 + i % longest words."""

    def make(name, counts, longest=6, max_length=64):
        labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
        labels = np.random.default_rng(0).permutation(labels)
        texts = [
            " ".join(f"w{(i + k) % 40}" for k in range(1 + i % longest)) for i in range(len(labels))
        ]
        names = tuple(f"class{i}" for i in range(len(counts)))
        return tokenize_task(TaskData(name, texts, None, labels, names), tokenizer, max_length)

    return make
