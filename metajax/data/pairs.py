"""Pairs of texts for a network that encodes each text by itself."""

from collections.abc import Callable
from typing import Any

import numpy as np

from metajax.data.tasks import TaskData
from metajax.data.text import TokenizedTask, tokenize, with_tokens
from metajax.data.tokens import Tokens


def tokenize_apart(
    task: TaskData,
    tokenizer: Any,
    max_length: int,
    *,
    per_chunk_fn: Callable[[int], None] | None = None,
) -> TokenizedTask:
    """Tokenize pairs of texts, each text by itself.

    Args:
        task: N pairs.
        tokenizer: the model's fast tokenizer, of transformers.
        max_length: largest number of tokens of a text.
        per_chunk_fn: called with the number of texts each time that some are tokenized.

    Returns:
        The tokenized task. A row has the tokens of the first text and then those of the second,
        each with special tokens of its own.

    Raises:
        InputError: as in `tokenize`.

    Examples:
        >>> import metajax.data as data, numpy as np, transformers
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "film"]
        >>> tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
        >>> films = data.TaskData("films", ["good"], ["a film"], np.array([0]), ("-", "+"))
        >>> tokens = data.tokenize_apart(films, tokenizer, max_length=8).tokens
        >>> tokens.input_ids.tolist(), tokens.token_type_ids.tolist()
        ([[2, 6, 3, 2, 5, 7, 3]], [[0, 0, 0, 1, 1, 1, 1]])
    """
    assert task.pairs is not None
    first, second = (
        tokenize(side, None, tokenizer, max_length, per_chunk_fn=per_chunk_fn)
        for side in (task.texts, task.pairs)
    )
    lengths = first.lengths + second.lengths
    columns = np.arange(int(lengths.max(initial=1)))
    in_first = columns < first.lengths[:, None]
    in_second = ~in_first & (columns < lengths[:, None])
    ids = np.full(in_first.shape, tokenizer.pad_token_id, np.int32)
    for side, places in ((first, in_first), (second, in_second)):
        ids[places] = side.input_ids[np.arange(side.input_ids.shape[1]) < side.lengths[:, None]]
    truncated = first.truncated + second.truncated
    tokens = Tokens(ids, in_second.astype(np.int8), lengths, truncated, apart=True)
    return with_tokens(task, tokens)
