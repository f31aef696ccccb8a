"""The directory of a run's checkpoints, on a disk or in a bucket."""

from pathlib import Path

from etils import epath


def move(checkpoint: Path, aside: Path) -> None:
    """Moves a checkpoint; if it is interrupted, at least one of the two places is complete."""
    epath.Path(aside).rmtree(missing_ok=True)
    if isinstance(checkpoint, Path):
        checkpoint.rename(aside)
        return
    import fsspec

    fsspec.filesystem("gs").copy(str(checkpoint), str(aside), recursive=True)
    # Without this file the rest is not a checkpoint, and never moved over the copy.
    (checkpoint / "commit_success.txt").unlink()
    epath.Path(checkpoint).rmtree()


def can_be_listed(directory: Path) -> bool:
    """Whether a directory can be listed; if not, its checkpoints need not be damaged."""
    try:
        return directory.is_dir() and bool(list(directory.iterdir()))
    except Exception:
        return False


def absolute(directory: Path) -> Path:
    """The absolute path for Orbax; a path in a bucket is absolute, and not a `pathlib.Path`."""
    return directory.absolute() if isinstance(directory, Path) else directory


def whole_steps(directory: Path) -> list[int]:
    """The steps of the complete checkpoints: an incomplete one has a longer name."""
    if not directory.is_dir():
        return []
    return [int(path.name) for path in directory.iterdir() if path.name.isdigit()]
