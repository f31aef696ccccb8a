"""Read documents: the text files of a directory, one text file, or the rows of a table."""

import contextlib
import hashlib
import logging
from pathlib import Path

from metajax.data.readers import TABLES, read_text
from metajax.data.tasks import load_texts
from metajax.errors import InputError
from metajax.reading import expand_home

_log = logging.getLogger("metajax")


def load_documents(path: str | Path) -> list[str]:
    r"""Read the documents of a path.

    In a directory and the directories below, each text file is a document. Files that are hidden,
    empty or not UTF-8 text are left out and counted in a warning. A JSON-lines, CSV, TSV or Parquet
    file has one document per row, in the column `text` (or `sentence`). Any other file is one
    document.

    Args:
        path: a directory or a file.

    Returns:
        The texts, in the order of the rows, or of the files' paths.

    Raises:
        InputError: the path cannot be read, or has no document.

    Examples:
        >>> import metajax.data as data, pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     for name in ("b.txt", "a.md", ".hidden"):
        ...         _ = pathlib.Path(directory, name).write_text(f"This is {name}.\n")
        ...     data.load_documents(directory)
        ['This is a.md.\n', 'This is b.txt.\n']
    """
    if path == "":
        raise InputError("documents: names no path; give documents:PATH")
    texts, left_out = _read(Path(expand_home(str(path))))
    if left_out:
        _log.warning(
            "%s: %d of %d files are left out; they are hidden, empty or not UTF-8 text",
            *(path, left_out, left_out + len(texts)),
        )
    return texts


def fingerprint_documents(path: str | Path) -> str:
    """Return the sha256 (hexadecimal) of the texts that `load_documents` returns.

    Raises:
        InputError: as in `load_documents`.
    """
    digest = hashlib.sha256()
    for text in _read(Path(expand_home(str(path))))[0]:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def _read(path: Path) -> tuple[list[str], int]:
    """Return the documents of a path, and how many files have none."""
    if not path.is_dir():
        return load_texts(path)[0] if path.suffix.lower() in TABLES else [read_text(path)], 0
    texts, files = [], _files(path)
    for file in files:
        if not any(part.startswith(".") for part in file.relative_to(path).parts):
            with contextlib.suppress(InputError):
                texts.append(read_text(file))
    left_out = len(files) - len(texts)
    if not texts:
        raise InputError(
            f"{path}: has no text file, and {left_out} files that are hidden, empty or not UTF-8 "
            "text; give a directory of text files"
        )
    return texts, left_out


def _files(directory: Path) -> list[Path]:
    """Return the plain files of a directory and those below, in the order of their paths."""
    files = (file for file in directory.rglob("*") if file.is_file())
    return sorted(files, key=lambda file: file.relative_to(directory).as_posix())
