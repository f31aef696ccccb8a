"""Keep the tokens of large data sets on disk, by content, for later runs.

A file is an Arrow stream, which `datasets.Dataset.from_file` opens, followed by its sha256.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from metajax import data
from metajax.data.text import join_tokens, with_tokens
from metajax.data.tokens import JoinedRows, join
from metajax.errors import reason_of
from metajax.runs.workdir import cache_directory

_log = logging.getLogger("metajax")
_PARTIAL = ".partial"
_FORMAT = 2  # Increase it if the tokens of a text change, or the files.
_STALE = 24 * 60 * 60  # Seconds after which nobody writes to a partial file any more.
_CHUNK = 4096  # Texts hashed at once.


def tokens_directory() -> Path:
    """Return the directory of the files, in the cache of `datasets`."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    datasets = os.environ.get("HF_DATASETS_CACHE") or os.path.join(home, "datasets")
    expanded = os.path.expanduser(datasets)
    if expanded.startswith("~"):  # In some containers the user has no home.
        return cache_directory() / "tokens"
    return Path(expanded, "metajax")


class TokenCache:
    """Files with the tokens of data sets.

    Args:
        tokenizer: the model's fast tokenizer, of transformers.
        max_length: as for `data.tokenize_task`.
        directory: where the files are.
    """

    def __init__(self, tokenizer: Any, max_length: int, directory: Path) -> None:
        self._tokenizer, self._max_length, self._directory = tokenizer, max_length, directory
        self._hash = tokenizer_hash(tokenizer, max_length)
        self._keeps = True

    def tokenize(
        self, task: data.TaskData, per_chunk_fn: Callable[[int], None]
    ) -> data.TokenizedTask:
        """Return what `data.tokenize_task` does, with tokens that are mapped from a file.

        The tokens are `JoinedRows`: the file has no padding, and only the texts that a batch takes
        are padded.

        If the directory lacks the file, or if the file is damaged, it is written first. If that
        fails, a warning says why, and no further files are written.

        Args:
            task: the examples.
            per_chunk_fn: as for `data.tokenize_task`.

        Raises:
            InputError: as `data.tokenize_task`.
        """
        path = self._directory / f"{content_hash(task, self._hash)}.arrow"
        tokens = _read(path)
        if tokens is not None:
            per_chunk_fn(len(task.texts))
            return with_tokens(task, tokens)
        tokens = join_tokens(task, self._tokenizer, self._max_length, per_chunk_fn)
        self._keeps = self._keeps and _write(path, tokens)
        if self._keeps:  # The system can take back the memory of a mapped file.
            tokens = _read(path) or tokens
        return with_tokens(task, tokens)


def tokenizer_hash(tokenizer: Any, max_length: int) -> str:
    """Return the sha256 (hexadecimal) of what determines the tokens of every text."""
    import tokenizers
    import transformers

    backend = tokenizer.backend_tokenizer
    # Each call sets these two, so they do not matter.
    backend.no_truncation()
    backend.no_padding()
    state = {
        "format": _FORMAT,
        "versions": [tokenizers.__version__, transformers.__version__],
        "tokenizer": [type(tokenizer).__name__, backend.to_str()],
        "special": [tokenizer.pad_token_id, tokenizer.mask_token, tokenizer.split_special_tokens],
        "length": [max_length, tokenizer.truncation_side],
    }
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def content_hash(task: data.TaskData, tokenizer: str) -> str:
    """Return the sha256 (hexadecimal) of everything that determines the tokens of a task.

    Args:
        task: the examples.
        tokenizer: the `tokenizer_hash`.
    """
    state = [tokenizer, len(task.texts), task.pairs is not None, task.hides_words]
    digest = hashlib.sha256(json.dumps(state).encode())
    for texts in (task.texts, task.pairs or []):
        for begin in range(0, len(texts), _CHUNK):
            chunk = texts[begin : begin + _CHUNK]
            digest.update(np.array(list(map(len, chunk)), np.int64).tobytes())
            digest.update("".join(chunk).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _read(path: Path) -> data.Tokens | None:
    """Return the tokens of a file, mapped into memory; None if it is missing or damaged."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            content = file.read_buffer()  # It stays mapped, without an open file.
    except OSError:
        return None
    end = max(0, content.size - hashlib.sha256().digest_size)
    if hashlib.sha256(content[:end]).digest() != bytes(content[end:]):
        _log.warning("%s: is damaged; it is written again", path)
        return None
    with pa.ipc.open_stream(content[:end]) as stream:
        metadata, batch = stream.schema.metadata, stream.read_next_batch()
    ids, types = (batch[name].values.to_numpy() for name in ("input_ids", "token_type_ids"))
    pad_id, truncated = int(metadata[b"pad_id"]), int(metadata[b"truncated"])
    return join(ids, types, batch["lengths"].to_numpy(), pad_id, truncated)


def _write(path: Path, tokens: data.Tokens) -> bool:
    """Write tokens to a file, at once for other processes; return whether it worked, or log."""
    import pyarrow as pa

    ids, types = tokens.input_ids, tokens.token_type_ids
    assert isinstance(ids, JoinedRows)
    assert isinstance(types, JoinedRows)
    lists = [
        pa.LargeListArray.from_arrays(pa.array(rows.bounds), pa.array(rows.values))
        for rows in (ids, types)
    ]
    batch = pa.record_batch(
        [*lists, pa.array(tokens.lengths)],
        names=["input_ids", "token_type_ids", "lengths"],
        metadata={"pad_id": str(ids.fill), "truncated": str(tokens.truncated)},
    )
    partial = path.with_name(f"{path.stem}-{uuid.uuid4().hex}{_PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent)
        with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_stream(file, batch.schema) as stream:
            stream.write_batch(batch)
        with open(partial, "rb+") as file:
            file.write(hashlib.file_digest(file, "sha256").digest())
        os.replace(partial, path)
    except OSError as error:
        _log.warning(
            "%s: tokens cannot be kept (%s); free space, or set HF_DATASETS_CACHE",
            *(path.parent, reason_of(error)),
        )
        return False
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return True


def _remove_stale(directory: Path) -> None:
    """Remove what killed processes left. A writer that loses its file only keeps no tokens."""
    for partial in directory.glob(f"*{_PARTIAL}"):
        with contextlib.suppress(OSError):  # Another process was faster, or owns it.
            if time.time() - partial.stat().st_mtime > _STALE:
                partial.unlink()
