"""Tokenize documents for a decoder, which predicts each next token, and pack them into blocks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metajax.data.encoding import encode_chunks
from metajax.data.seeding import shuffled_rows
from metajax.errors import InputError


class TokenizedDocument(NamedTuple):
    """A document of n tokens.

    Attributes:
        input_ids: int32 [n].
        num_bytes: int32 [n]; how many UTF-8 bytes of the text a token stands for. Special tokens
            that the text does not contain have 0.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> document = data.TokenizedDocument(np.array([6, 7, 3]), np.array([4, 5, 0]))
        >>> int(document.num_bytes.sum())
        9
    """

    input_ids: np.ndarray
    num_bytes: np.ndarray


class Documents(NamedTuple):
    """N blocks of L tokens that contain documents one after another. The last one is padded.

    Attributes:
        input_ids: int32 [N, L].
        example_ids: int32 [N, L]; the number of a token's document in its block; -1 at padding.
        position_ids: int32 [N, L]; the position in the document, or in the part of it that the
            block has.
        num_bytes: int32 [N, L]; how many UTF-8 bytes of the text a token stands for. Special tokens
            that the text does not contain have 0.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> ids = np.array([[6, 7, 3, 8, 3]])  # Two documents, each with the end of text, 3.
        >>> number, position = np.array([[0, 0, 0, 1, 1]]), np.array([[0, 1, 2, 0, 1]])
        >>> blocks = data.Documents(ids, number, position, num_bytes=5 * (ids > 3))
        >>> blocks.predicted.tolist()
        [[False, True, True, False, True]]
    """

    input_ids: np.ndarray
    example_ids: np.ndarray
    position_ids: np.ndarray
    num_bytes: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The tokens with a predecessor of their document in their block, bool [N, L]."""
        return (self.example_ids >= 0) & (self.position_ids > 0)


def pack_documents(lines: Sequence[str], tokenizer: Any, block_length: int) -> Documents:
    """Concatenate the documents, and cut their tokens into blocks.

    A document that does not fit into the rest of a block continues in the next block, as if it were
    another document. This is the packing of Llama 3 (Grattafiori et al. 2024,
    https://arxiv.org/abs/2407.21783, section 3.2), whose attention stays within a document.

    Args:
        lines: the documents.
        tokenizer: the model's fast tokenizer, of transformers.
        block_length: L.

    Returns:
        Blocks [N, L].

    Raises:
        InputError: block_length is below 2, or as in `tokenize_documents`.

    Examples:
        >>> import metajax.data as data, tokenizers, transformers
        >>> words = {"<end>": 0, "a": 1, "good": 2, "film": 3}
        >>> fast = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<end>"))
        >>> fast.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        >>> fast = transformers.PreTrainedTokenizerFast(
        ...     tokenizer_object=fast, eos_token="<end>", pad_token="<end>")
        >>> blocks = data.pack_documents(["a good film", "a film"], fast, 4)
        >>> blocks.input_ids.tolist(), blocks.example_ids.tolist(), blocks.num_bytes.tolist()
        ([[1, 2, 3, 0], [1, 3, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, -1]], [[1, 5, 5, 0], [1, 5, 0, 0]])
    """
    if block_length < 2:
        raise InputError(
            f"blocks of {block_length} tokens leave nothing to predict; give 2 or more"
        )
    documents = tokenize_documents(lines, tokenizer)
    ids, sizes = (np.concatenate(each) for each in zip(*documents))
    numbers = np.repeat(np.arange(len(documents)), [len(own) for own, _ in documents])
    shape = (-(-ids.size // block_length), block_length)

    def blocks(flat: np.ndarray, padding: int) -> np.ndarray:
        filled = np.full(shape, padding, np.int32)
        filled.reshape(-1)[: flat.size] = flat
        return filled

    numbers = blocks(numbers, -1)
    used = numbers >= 0
    begins = np.diff(numbers, axis=1, prepend=-2) != 0
    columns = np.broadcast_to(np.arange(block_length, dtype=np.int32), shape)
    first = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
    return Documents(
        blocks(ids, tokenizer.pad_token_id),
        np.where(used, numbers - numbers[:, :1], -1),
        np.where(used, columns - first, 0),
        blocks(sizes, 0),
    )


def document_batch(documents: Documents) -> dict[str, np.ndarray]:
    """Return a packed batch of all blocks.

    Args:
        documents: B blocks of length L.

    Returns:
        input_ids, example_ids, position_ids int32 [B, L].

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> ids = np.array([[6, 7, 3]])
        >>> blocks = data.Documents(ids, 0 * ids, np.array([[0, 1, 2]]), num_bytes=ids)
        >>> sorted(data.document_batch(blocks))
        ['example_ids', 'input_ids', 'position_ids']
    """
    names = ("input_ids", "example_ids", "position_ids")
    return {name: getattr(documents, name) for name in names}


def next_token_batch(
    documents: Documents, seed: int, step: int, batch_size: int
) -> dict[str, np.ndarray]:
    """Return the batch of one step. Each epoch has every block once.

    `shuffled_rows` defines the order.

    Args:
        documents: N blocks of length L.
        seed: the run's seed.
        step: which step.
        batch_size: B.

    Returns:
        The result of `document_batch` for B blocks: leaves [B, L].

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> ids = np.arange(24, dtype=np.int32).reshape(3, 8)
        >>> blocks = data.Documents(ids, 0 * ids, ids % 8, num_bytes=ids)
        >>> batch = data.next_token_batch(blocks, seed=0, step=0, batch_size=2)
        >>> batch["input_ids"].shape
        (2, 8)
    """
    rows = shuffled_rows(seed, step, batch_size, len(documents.input_ids))
    return document_batch(Documents(*(array[rows] for array in documents)))


def tokenize_documents(texts: Sequence[str], tokenizer: Any) -> list[TokenizedDocument]:
    """Tokenize documents, and find the bytes of each token.

    A document has the special tokens that the tokenizer gives to a text, and ends with the
    end-of-text token. Texts without tokens are left out.

    Args:
        texts: the documents.
        tokenizer: the model's fast tokenizer, of transformers.

    Returns:
        The documents that have tokens, in order. The bytes of a document add up to those of its
        text.

    Raises:
        InputError: the tokenizer has no end-of-text token or cannot split a text, or the documents
            have no tokens.

    Examples:
        >>> import metajax.data as data, tokenizers, transformers
        >>> words = {"<end>": 0, "a": 1, "good": 2, "film": 3}
        >>> fast = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<end>"))
        >>> fast.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        >>> fast = transformers.PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<end>")
        >>> [document] = data.tokenize_documents(["a good film"], fast)
        >>> document.input_ids.tolist(), document.num_bytes.tolist()
        ([1, 2, 3, 0], [1, 5, 5, 0])
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer has no end-of-text token; set eos_token in "
            "tokenizer_config.json"
        )
    documents = [
        _document(text, encoding, tokenizer.eos_token_id)
        for text, encoding in zip(texts, encode_chunks(texts, tokenizer))
        if not all(encoding.special_tokens_mask)
    ]
    if not documents:
        raise InputError("the text has no tokens; give text in the model's language")
    return documents


def _document(text: str, encoding: Any, end_of_text: int) -> TokenizedDocument:
    ids, ends = list(encoding.ids), [end for _, end in encoding.offsets]
    if ids[-1] != end_of_text:
        ids.append(end_of_text)
        ends.append(0)
    # Characters between two tokens belong to the second, and those after the last to the end. A
    # character of several tokens belongs to the first of them.
    ends[-1] = len(text)
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + sum((points >= least).astype(int) for least in (0x80, 0x800, 0x10000))
    bytes_before = np.concatenate([[0], np.cumsum(widths)])
    covered = bytes_before[np.maximum.accumulate(ends)]
    num_bytes = np.diff(covered, prepend=0)
    return TokenizedDocument(np.array(ids, np.int32), num_bytes.astype(np.int32))
