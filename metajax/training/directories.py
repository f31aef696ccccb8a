"""The directory of a run's checkpoints, on a disk or in a bucket."""

from pathlib import Path

from etils import epath


def move(checkpoint: Path, aside: Path) -> None:
    """Move a checkpoint. If this is interrupted, at least one of the two places is complete."""
    epath.Path(aside).rmtree(missing_ok=True)
    if isinstance(checkpoint, Path):
        checkpoint.rename(aside)
        return
    import fsspec

    fsspec.filesystem("gs").copy(str(checkpoint), str(aside), recursive=True)
    # Without this file the rest is not a checkpoint, so it is never moved over the copy.
    (checkpoint / "commit_success.txt").unlink()
    epath.Path(checkpoint).rmtree()


def can_be_listed(directory: Path) -> bool:
    """Return whether a directory can be listed. If not, its checkpoints need not be damaged."""
    try:
        return directory.is_dir() and bool(list(directory.iterdir()))
    except Exception:
        return False


def absolute(directory: Path) -> Path:
    """Return the absolute path for Orbax. A path in a bucket is absolute, and no `pathlib.Path`."""
    return directory.absolute() if isinstance(directory, Path) else directory


def whole_steps(directory: Path) -> list[int]:
    """Return the steps of the complete checkpoints. An incomplete one has a longer name."""
    if not directory.is_dir():
        return []
    return [int(path.name) for path in directory.iterdir() if path.name.isdigit()]
