"""Cut documents into chunks, and make tasks of them: a stream to adapt to and a query set.

Sizes: L tokens of a chunk, K chunks of a stream, Q of a query set, T tasks.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from metajax.data.documents import TokenizedDocument
from metajax.data.seeding import generator, shuffled_rows
from metajax.errors import InputError

if TYPE_CHECKING:
    from metajax.types import Task


class StreamSpec(NamedTuple):
    """The size of a task of chunks.

    Attributes:
        support: K >= 1, chunks of the support stream.
        query: Q, chunks of the query set; 0: there is none, and the stream is the whole task.
        length: L >= 2, tokens of a chunk.

    Examples:
        >>> import metajax.data as data
        >>> data.StreamSpec(support=3, query=1, length=4).window
        13
    """

    support: int
    query: int
    length: int

    @property
    def chunks(self) -> int:
        """The number of chunks of a task, K + Q."""
        return self.support + self.query

    @property
    def window(self) -> int:
        """The number of tokens of all chunks, in which one token overlaps."""
        return self.chunks * (self.length - 1) + 1


class Chunks(NamedTuple):
    """C consecutive chunks of a document. The last one may be padded.

    Each chunk begins with the last token of the chunk before. So each token but the first of all is
    predicted once, whatever the length of a chunk.

    Attributes:
        input_ids: int32 [C, L].
        attention_mask: int32 [C, L]; 0 at padding.
        num_bytes: int32 [C, L]; bytes of the predicted tokens, 0 at the others.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> document = data.TokenizedDocument(np.arange(1, 6), np.ones(5, int))
        >>> data.cut_chunks(document, 3).predicted.tolist()
        [[False, True, True], [False, True, True]]
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    num_bytes: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The tokens that are predicted: all but the first of each chunk, bool [C, L]."""
        used = self.attention_mask > 0
        used[:, 0] = False
        return used


def count_chunks(document: TokenizedDocument, length: int) -> int:
    """Return how many chunks of L tokens a document has.

    Args:
        document: n tokens.
        length: L >= 2.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> document = data.TokenizedDocument(np.arange(6), np.ones(6, int))
        >>> data.count_chunks(document, 3), data.count_chunks(document, 6)
        (3, 1)
    """
    return -(-(len(document.input_ids) - 1) // (length - 1))


def cut_chunks(
    document: TokenizedDocument, length: int, *, begin: int = 0, most: int | None = None
) -> Chunks:
    """Cut a document into chunks.

    Args:
        document: n >= 2 tokens.
        length: L >= 2.
        begin: the first token of the first chunk.
        most: maximum number of chunks; None: all.

    Returns:
        The chunks [C, L].

    Raises:
        InputError: length is below 2.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> document = data.TokenizedDocument(np.array([5, 6, 7, 8]), np.array([2, 3, 3, 0]))
        >>> chunks = data.cut_chunks(document, 3)
        >>> chunks.input_ids.tolist(), chunks.num_bytes.tolist()
        ([[5, 6, 7], [7, 8, 0]], [[0, 3, 3], [0, 0, 0]])
    """
    if length < 2:
        raise InputError(f"chunks of {length} tokens leave nothing to predict; give 2 or more")
    document = TokenizedDocument(*(array[begin:] for array in document))
    count = count_chunks(document, length)
    count = count if most is None else min(count, most)
    index = (length - 1) * np.arange(count)[:, None] + np.arange(length)
    used = index < len(document.input_ids)
    index = np.where(used, index, 0)
    mask = used.astype(np.int32)
    # The first token of a chunk is not predicted there, but in the chunk before.
    sizes = document.num_bytes[index] * mask * (np.arange(length) > 0)
    return Chunks((document.input_ids[index] * mask).astype(np.int32), mask, sizes.astype(np.int32))


def support_chunks(count: int, spec: StreamSpec) -> int:
    """Return how many of a document's chunks are its stream.

    A document with fewer than K + Q chunks has at least one in its query set, if there is one.

    Args:
        count: number of chunks of the document, >= 2.
        spec: the size of a task.

    Examples:
        >>> import metajax.data as data
        >>> spec = data.StreamSpec(support=3, query=2, length=8)
        >>> [data.support_chunks(count, spec) for count in (2, 3, 4, 5)]
        [1, 2, 3, 3]
    """
    return min(spec.support, count - 1 if spec.query else count)


def stream_tasks(documents: Sequence[Chunks], spec: StreamSpec) -> "Task":
    """Make a task of each document's chunks.

    The stream of a short document begins with chunks that predict nothing, so that steps on them do
    nothing; its query set ends with such chunks.

    Args:
        documents: T documents with 2 to K + Q chunks.
        spec: the size of a task.

    Returns:
        Batches of `metajax.models.causal_lm_loss`: the support set with leaves [T, K, 1, L], the
        query set with leaves [T, Q, L], or None if Q is 0.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> document = data.TokenizedDocument(np.array([5, 6, 7, 8, 9]), np.ones(5, int))
        >>> task = data.stream_tasks([data.cut_chunks(document, 3)], data.StreamSpec(2, 1, 3))
        >>> task.support["input_ids"].tolist(), task.query["input_ids"].tolist()
        ([[[[0, 0, 0]], [[5, 6, 7]]]], [[[7, 8, 9]]])
    """
    from metajax.types import Task  # It imports JAX.

    shape = (len(documents), spec.chunks, spec.length)
    names = ("input_ids", "attention_mask")
    filled = {name: np.zeros(shape, np.int32) for name in names}
    for number, chunks in enumerate(documents):
        count = len(chunks.input_ids)
        first = spec.support - support_chunks(count, spec)
        for name in names:
            filled[name][number, first : first + count] = getattr(chunks, name)
    support = {name: leaf[:, : spec.support, None] for name, leaf in filled.items()}
    query = {name: leaf[:, spec.support :] for name, leaf in filled.items()}
    return Task(support, query if spec.query else None)


def sample_streams(
    documents: Sequence[TokenizedDocument],
    spec: StreamSpec,
    seed: int,
    step: int,
    count: int,
    local: slice = slice(None),
) -> "Task":
    """Return the tasks of one step, as a function of (seed, step).

    Each epoch has every document once (see `shuffled_rows`). A document of more than K + Q chunks
    gives a random window of its tokens.

    Args:
        documents: documents of at least two chunks.
        spec: the size of a task.
        seed: the run's seed.
        step: which step.
        count: T, the number of tasks of the step.
        local: the tasks to return.

    Returns:
        The result of `stream_tasks`.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> documents = [data.TokenizedDocument(np.arange(40), np.ones(40, int))] * 3
        >>> spec = data.StreamSpec(support=2, query=1, length=8)
        >>> tasks = data.sample_streams(documents, spec, seed=0, step=0, count=4)
        >>> tasks.support["input_ids"].shape, tasks.query["input_ids"].shape
        ((4, 2, 1, 8), (4, 1, 8))
    """
    rows = shuffled_rows(seed, step, count, len(documents))
    windows = []
    for task in range(count)[local]:
        document = documents[rows[task]]
        room = max(0, len(document.input_ids) - spec.window)
        begin = int(generator(seed, "window", step, task).integers(room + 1))
        windows.append(cut_chunks(document, spec.length, begin=begin, most=spec.chunks))
    return stream_tasks(windows, spec)


def split_documents(
    documents: Sequence[TokenizedDocument], seed: int, count: int
) -> tuple[list[TokenizedDocument], list[TokenizedDocument]]:
    """Split documents at random into training and held-out documents, each in their order.

    Args:
        documents: N documents.
        seed: the run's seed.
        count: number of documents to hold out, below N.

    Returns:
        The training documents and the held-out documents.

    Examples:
        >>> import metajax.data as data, numpy as np
        >>> documents = [data.TokenizedDocument(np.arange(n), np.arange(n)) for n in (2, 3, 4)]
        >>> training, held_out = data.split_documents(documents, seed=0, count=1)
        >>> len(training), len(held_out)
        (2, 1)
    """
    order = generator(seed, "held out").permutation(len(documents))
    held_out = set(order[:count].tolist())
    return (
        [document for row, document in enumerate(documents) if row not in held_out],
        [document for row, document in enumerate(documents) if row in held_out],
    )
