"""Send metrics to TensorBoard and Weights & Biases, and trace a few steps with the profiler.

Trackers get the same numbers as `metrics.jsonl`, which `MetricsLog` always writes.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from metajax.errors import InputError
from metajax.runs.metrics import read_metrics
from metajax.runs.paths import address, in_bucket
from metajax.runs.workdir import Run

Row = Mapping[str, Any]
_PROFILED = 3  # Steps in a trace.


class _Tracker(NamedTuple):
    write: Callable[[int, dict[str, float]], None]
    close: Callable[[], None]


@contextlib.contextmanager
def tracking(run: Run, names: tuple[str, ...], step: int) -> Iterator[Callable[[Row], None]]:
    """Yield a function that sends a row of metrics, with its `step`, to the trackers.

    Args:
        run: the run. TensorBoard's files go to its `tensorboard/`, those of Weights & Biases to
            `wandb/`.
        names: "tensorboard", "wandb".
        step: the step from which the run resumes. TensorBoard drops later steps. Weights & Biases
            keeps them, and ignores rows of steps that it already has; it gets the earlier rows
            again.

    Raises:
        InputError: the run is in a bucket, where TensorBoard's writer cannot write.
    """
    with contextlib.ExitStack() as stack:
        trackers = [_OPEN[name](run, step) for name in names]
        for tracker in trackers:
            stack.callback(tracker.close)

        def write(row: Row) -> None:
            numbers = dict(_scalars(row))
            for tracker in trackers:
                tracker.write(int(row["step"]), numbers)

        yield write


def _scalars(row: Row, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a row by name; nested numbers as `before/accuracy`."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "step" and math.isfinite(value):
            yield prefix + key, float(value)


def _tensorboard(run: Run, step: int) -> _Tracker:
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(_here(run, "tensorboard")), purge_step=step + 1)

    def write(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return _Tracker(write, writer.close)


def _wandb(run: Run, step: int) -> _Tracker:
    import wandb

    # The same id whenever the run resumes.
    name = hashlib.sha256(address(run.path).encode()).hexdigest()[:16]
    tracked = wandb.init(
        project="metajax",
        id=name,
        name=run.path.name,
        dir=str(_here(run, "wandb").parent),
        config=run.record,
        resume="allow",
        settings=wandb.Settings(silent=True, console="off"),
    )
    # It writes late, so a kill loses rows. It ignores rows of steps that it already has.
    for row in read_metrics(run.path / "metrics.jsonl"):
        if row["step"] <= step:
            tracked.log(dict(_scalars(row)), step=row["step"])
    return _Tracker(lambda step, numbers: tracked.log(numbers, step=step), tracked.finish)


_OPEN = {"tensorboard": _tensorboard, "wandb": _wandb}


def _here(run: Run, name: str) -> Path:
    if in_bucket(run.path):
        raise InputError(
            f"{address(run.path)}: {name}/ cannot be written to a bucket; remove the option, or "
            "give a --workdir on disk"
        )
    return run.path / name


class Profile:
    """A trace of the first steps after the one that compiles, in `profile/`.

    Args:
        run: the run.
        steps: the remaining steps.
        wanted: if false, do nothing.

    Raises:
        InputError: the run is in a bucket, where the profiler cannot write.
    """

    def __init__(self, run: Run, steps: range, *, wanted: bool) -> None:
        self._steps = (steps[1 : 1 + _PROFILED] or steps) if wanted else range(0)
        self._path = _here(run, "profile") if wanted else None
        self._open = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Call this before each step. Leaving the context ends an open trace."""
        if self._steps and step == self._steps.start:
            options = jax.profiler.ProfileOptions()
            # Python's tracer installs a hook in all threads, which fails if a thread starts then.
            options.python_tracer_level = 0
            path = str(self._path)
            jax.profiler.start_trace(path, create_perfetto_trace=True, profiler_options=options)
            self._open = True
        elif step == self._steps.stop:
            self._stop()

    def _stop(self) -> None:
        if self._open:
            self._open = False
            jax.profiler.stop_trace()
