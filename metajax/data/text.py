"""Turn text into arrays of tokens with the model's fast tokenizer."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from metajax.data.encoding import CHUNK, encode, encode_chunks, encode_ids
from metajax.data.smlmt import MASK
from metajax.data.tasks import TaskData
from metajax.data.tokens import JoinedRows, Tokens, join, pad
from metajax.errors import InputError


class TokenizedTask(NamedTuple):
    """A tokenized task of N examples.

    Attributes:
        name: the task's name.
        tokens: the examples.
        labels: int32 [N], or as in `TaskData`; -1 for examples that belong to another part of the
            data set (see `hold_out_tasks`).
        label_names: the classes in the order of their ids; empty for a regression.
        rows_by_class: the rows of each class that episodes are sampled from, int64 [n_c].
        weight: how often episodes come from the task, relative to other tasks; None means the
            square root of its number of examples.
        hides_words: as in `TaskData`.
        similar: int64 [C, M]; the classes that are similar to each class. An episode draws a class,
            and then its classes from those similar to it; it need not be one of them.
            None means any.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> ids = np.ones((3, 4), np.int32)
        >>> tokens = data.Tokens(ids, np.zeros((3, 4), np.int8), ids.sum(1), truncated=0)
        >>> labels, rows = np.array([1, 0, 1]), (np.array([1]), np.array([0, 2]))
        >>> task = data.TokenizedTask("films", tokens, labels, ("bad", "good"), rows)
        >>> task.labels[task.rows_by_class[1]].tolist()
        [1, 1]
    """

    name: str
    tokens: Tokens
    labels: np.ndarray
    label_names: tuple[str, ...]
    rows_by_class: tuple[np.ndarray, ...]
    weight: float | None = None
    hides_words: bool = False
    similar: np.ndarray | None = None

    @property
    def num_examples(self) -> int:
        """The number of examples that episodes are sampled from."""
        return sum(map(len, self.rows_by_class))


class Blocks(NamedTuple):
    """N blocks of continuous text, each [CLS] ... [SEP]. The last one is padded.

    Attributes:
        input_ids: int32 [N, L].
        attention_mask: int32 [N, L]; 0 at padding.
        word_start: bool [N, L]; the first token of each maskable word in the block.
        maskable: bool [N, L]; false for special tokens and padding.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> ids = np.array([[2, 6, 7, 3]])  # [CLS] and [SEP] around two words.
        >>> blocks = data.Blocks(ids, np.ones((1, 4), np.int32), ids > 5, maskable=ids > 5)
        >>> blocks.input_ids[blocks.maskable].tolist()
        [6, 7]
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    word_start: np.ndarray
    maskable: np.ndarray


def tokenize(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tokenizer: Any,
    max_length: int,
    *,
    per_chunk_fn: Callable[[int], None] | None = None,
) -> Tokens:
    """Tokenize N texts or pairs of texts, and add special tokens.

    Args:
        texts: N texts.
        pairs: N second texts, or None.
        tokenizer: the model's fast tokenizer, of transformers.
        max_length: largest number of tokens per example. Longer texts lose their end; in a pair,
            the longer text does.
        per_chunk_fn: called with the number of texts each time that some are tokenized.

    Returns:
        The tokens [N, L], padded to the longest example.

    Raises:
        InputError: max_length leaves room only for special tokens; the tokenizer puts nothing
            between the texts of a pair; or it cannot split a text.

    Examples:
        >>> import metajax.data as data, transformers
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "film"]
        >>> tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
        >>> tokens = data.tokenize(["a good film", "film"], None, tokenizer, max_length=4)
        >>> tokens.input_ids.tolist(), tokens.lengths.tolist(), tokens.truncated
        ([[2, 5, 6, 3], [2, 7, 3, 0]], [4, 3], 1)
    """
    return pad(_tokenize(texts, pairs, tokenizer, max_length, per_chunk_fn))


def tokenize_task(
    task: TaskData,
    tokenizer: Any,
    max_length: int,
    *,
    per_chunk_fn: Callable[[int], None] | None = None,
) -> TokenizedTask:
    """Tokenize the examples of a task; see `tokenize`.

    Args:
        task: N examples.
        tokenizer: the model's fast tokenizer, of transformers.
        max_length: largest number of tokens per example.
        per_chunk_fn: as for `tokenize`.

    Returns:
        The tokenized task, with tokens [N, L].

    Raises:
        InputError: as in `tokenize`, or the task hides words and the tokenizer has no mask token.

    Examples:
        >>> import metajax.data as data, numpy as np, transformers
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "film"]
        >>> tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
        >>> films = data.TaskData("films", ["good", "a film"], None, np.array([1, 0]), ("-", "+"))
        >>> task = data.tokenize_task(films, tokenizer, max_length=8)
        >>> task.tokens.input_ids.shape, [rows.tolist() for rows in task.rows_by_class]
        ((2, 4), [[1], [0]])
    """
    return with_tokens(task, pad(join_tokens(task, tokenizer, max_length, per_chunk_fn)))


def join_tokens(
    task: TaskData,
    tokenizer: Any,
    max_length: int,
    per_chunk_fn: Callable[[int], None] | None = None,
) -> Tokens:
    """Return the tokens of `tokenize_task`, as `JoinedRows`."""
    texts = task.texts
    if task.hides_words:
        if tokenizer.mask_token is None:
            raise InputError(
                f"{task.name}: the model's tokenizer has no mask token for hidden words; "
                "give a masked language model"
            )
        texts = [text.replace(MASK, tokenizer.mask_token) for text in texts]
    tokens = _tokenize(texts, task.pairs, tokenizer, max_length, per_chunk_fn)
    if task.hides_words:
        assert isinstance(tokens.input_ids, JoinedRows)
        kept = tokens.input_ids.contain(tokenizer.mask_token_id)
        if not kept.all():  # Truncated before the mask token: begin these with it instead.
            mask = tokenizer.mask_token
            texts = [t if k else t[t.index(mask) :] for t, k in zip(texts, kept)]
            tokens = _tokenize(texts, task.pairs, tokenizer, max_length)
    return tokens


def with_tokens(task: TaskData, tokens: Tokens) -> TokenizedTask:
    """Return a task with the tokens of its texts."""
    rows = task.drawn_rows()
    return TokenizedTask(
        task.name, tokens, task.labels, task.label_names, rows, hides_words=task.hides_words
    )


def pack_blocks(lines: Sequence[str], tokenizer: Any, block_length: int) -> Blocks:
    """Concatenate the tokens of all lines, and cut them into blocks.

    This is the full-sentences format of RoBERTa (Liu et al. 2019, https://arxiv.org/abs/1907.11692,
    section 4.2) without a separator between lines.

    Args:
        lines: the lines of the text.
        tokenizer: the model's fast tokenizer, of transformers.
        block_length: L, including special tokens.

    Returns:
        Blocks [N, L] with L - 2 tokens of text each.

    Raises:
        InputError: block_length leaves room only for [CLS] and [SEP]; the tokenizer lacks one
            of these; or the lines have no tokens.

    Examples:
        >>> import metajax.data as data, transformers
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "film"]
        >>> tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
        >>> data.pack_blocks(["a good film", "good film"], tokenizer, 5).input_ids.tolist()
        [[2, 5, 6, 7, 3], [2, 6, 7, 3, 0]]
    """
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer has no [CLS] or no [SEP] token; give a "
            "masked language model"
        )
    room = block_length - 2
    if room < 1:
        raise InputError(f"blocks of {block_length} tokens leave no room for text; give 3 or more")
    ids, starts = _stream(lines, tokenizer)
    if not ids.size:
        raise InputError("the text has no tokens; give text in the model's language")
    count = -(-ids.size // room)
    used = np.arange(count * room).reshape(count, room) < ids.size
    lengths = used.sum(1)
    input_ids = np.full((count, block_length), tokenizer.pad_token_id, np.int32)
    input_ids[:, 0] = tokenizer.cls_token_id
    input_ids[:, 1:-1][used] = ids
    input_ids[np.arange(count), lengths + 1] = tokenizer.sep_token_id
    maskable = np.zeros((count, block_length), bool)
    maskable[:, 1:-1] = used
    # The text itself may contain a special token, or words that the vocabulary lacks.
    maskable &= ~np.isin(input_ids, tokenizer.all_special_ids)
    word_start = np.zeros((count, block_length), bool)
    word_start[:, 1:-1][used] = starts
    # A word continues only after a maskable token: a word cut by the edge of a block starts again.
    word_start[:, 1:] |= ~maskable[:, :-1]
    attention_mask = (np.arange(block_length) < lengths[:, None] + 2).astype(np.int32)
    return Blocks(input_ids, attention_mask, word_start & maskable, maskable)


def _tokenize(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tokenizer: Any,
    max_length: int,
    per_chunk_fn: Callable[[int], None] | None = None,
) -> Tokens:
    """Return what `tokenize` does, one text after the other."""
    if pairs is not None and not tokenizer.num_special_tokens_to_add(pair=True):
        raise InputError(
            "the model's tokenizer puts nothing between the two texts of a pair; join each pair "
            "to a single text"
        )
    least = tokenizer.num_special_tokens_to_add(pairs is not None) + 1
    if max_length < least:
        raise InputError(
            f"a maximum length of {max_length} tokens leaves no room for text; give {least} or more"
        )
    # Arrays from the start: as lists, the tokens of a million texts take a gigabyte.
    ids, types, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int8)], [np.zeros(0, np.int32)]
    truncated = 0
    for begin in range(0, len(texts), CHUNK):
        chunk = slice(begin, begin + CHUNK)
        rows, long = _truncated(tokenizer, texts[chunk], pairs and pairs[chunk], max_length)
        ids.append(_joined((row.ids for row in rows), np.int32))
        types.append(_joined((row.type_ids for row in rows), np.int8))
        lengths.append(np.array([len(row) for row in rows], np.int32))
        truncated += long
        if per_chunk_fn is not None:
            per_chunk_fn(len(rows))
    return join(
        np.concatenate(ids),
        np.concatenate(types),
        np.concatenate(lengths),
        tokenizer.pad_token_id,
        truncated,
    )


def _truncated(
    tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
) -> tuple[list[Any], int]:
    """The encodings of the texts, none longer than `max_length`, and how many were."""
    # All at full length first, to find and count the long ones.
    encodings = encode_ids(tokenizer, texts, pairs)
    long = [row for row, encoding in enumerate(encodings) if len(encoding) > max_length]
    if long:
        cut = encode(
            tokenizer,
            [texts[row] for row in long],
            pairs and [pairs[row] for row in long],
            max_length=max_length,
        )
        for row, encoding in zip(long, cut):
            encodings[row] = encoding
    return encodings, len(long)


def _joined(rows: Iterable[list[int]], dtype: type) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(rows), dtype)


def _stream(lines: Sequence[str], tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of all lines, and which of them start a word."""
    ids: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    for encoding in encode_chunks(lines, tokenizer, special_tokens=False):
        # None stands for a special token that the text contains: a separate word.
        words = np.array([-1 if x is None else x for x in encoding.word_ids], np.int32)
        ids.append(np.array(encoding.ids, np.int32))
        starts.append(np.diff(words, prepend=-2) != 0)
    if not ids:
        return np.zeros(0, np.int32), np.zeros(0, bool)
    return np.concatenate(ids), np.concatenate(starts)
