"""Hashes that identify the weights of a directory."""

import hashlib
from pathlib import Path

from metajax.models import files
from metajax.models.sentence import dense_weights


def hashes(name_or_path: str) -> dict[str, str]:
    """Hashes that identify a model: `sha256` of its weights, `config_sha256` of its other files.

    Each is the sha256 (hexadecimal) of its files' sha256s, in the order they are read.

    Args:
        name_or_path: a directory in Hugging Face format or a hub id.

    Raises:
        InputError: the model cannot be read, or has no weights.

    Examples:
        >>> import metajax, pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = pathlib.Path(folder, "model.safetensors").write_bytes(b"weights")
        ...     metajax.models.hashes(folder)["sha256"][:8]
        '59f3d85b'
    """
    directory = files.resolve(name_or_path)
    small = [directory / name for name in files.SMALL if (directory / name).is_file()]
    weights = [path for path, _ in (*files.weight_files(directory), *dense_weights(directory))]
    return {"sha256": digest(weights), "config_sha256": digest(small)}


def digest(paths: list[Path]) -> str:
    """Return the sha256 (hexadecimal) of the files' sha256s."""
    whole = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def adapter_hashes(directory: Path) -> dict[str, str]:
    """Return the hashes of a directory of adapters; see `metajax.models.hashes`."""
    names = {"sha256": files.ADAPTER_WEIGHTS, "config_sha256": files.ADAPTER_CONFIG}
    return {key: digest([directory / name]) for key, name in names.items()}
