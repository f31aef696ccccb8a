"""Hashes of data, by which a run tells whether its data have changed."""

import hashlib
import json
from pathlib import Path

from metajax.data.document_files import fingerprint_documents
from metajax.data.glue import glue_name, glue_path
from metajax.data.hub import hub_address, read_hub
from metajax.reading import read_bytes


def fingerprint(spec: str, *, glue_dir: str | Path | None = None, split: str = "train") -> str:
    """Return the sha256 (hexadecimal) of the data of a spec, or of any file.

    For a file it is the hash of its bytes. For a data set of the hub it is the hash of its rows,
    and for documents that of their texts.

    Args:
        spec: a spec as for `load_tasks`, "documents:PATH" as for `load_documents`, or a path.
        glue_dir: as for `load_tasks`.
        split: as for `load_tasks`.

    Raises:
        InputError: the data cannot be read or do not exist.

    Examples:
        >>> import pathlib, tempfile
        >>> from metajax.data import fingerprint
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = pathlib.Path(directory, "text.txt")
        ...     _ = path.write_text("good film")
        ...     fingerprint(str(path))[:8]
        '952317a5'
    """
    if spec.startswith("glue:") and glue_dir is not None:
        return hashlib.sha256(
            read_bytes(glue_path(glue_name(spec[5:]), glue_dir, split))
        ).hexdigest()
    if spec.startswith(("glue:", "hub:")):
        table, _ = read_hub(*hub_address(spec, split))
        digest = hashlib.sha256()
        for name in table.names:
            digest.update(json.dumps([name, table.column(name)], default=repr).encode())
        return digest.hexdigest()
    if spec.startswith("documents:"):
        return fingerprint_documents(spec.removeprefix("documents:"))
    return hashlib.sha256(read_bytes(spec.removeprefix("smlmt:"))).hexdigest()
