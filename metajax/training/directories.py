"""The directory of a run's checkpoints, on a disk or in a bucket."""

from pathlib import Path

from etils import epath

from metajax.errors import reason_of


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


def unreachable(directory: Path, step: int | None, error: Exception | None) -> str:
    """Return the message for a directory that cannot be read at present."""
    reason = "another process cannot read it" if error is None else reason_of(error)
    safe = "what was saved" if step is None else f"step {step}"
    return (
        f"{directory}: cannot be read at present ({reason}): {safe} is safe; check the network or "
        "the disk, and run the same command again"
    )


def none_readable(directory: Path, damaged: dict[int, Exception]) -> str:
    """Return the message for a directory of which no checkpoint can be read."""
    return (
        f"{directory}: none of its checkpoints can be read ({reason_of(damaged[max(damaged)])}): "
        "restore what is missing, or start again in another --workdir"
    )
