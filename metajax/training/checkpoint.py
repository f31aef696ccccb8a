"""Orbax checkpoints of a run, and the record of how it was made.

A checkpoint has two items, so that a later stage can read only the first one:

- `params`: the meta-parameters.
- `training`: the step, the outer optimizer's state and the run's key.

Its metadata is the run's record, a JSON object: the stage, its settings, versions, and under
`parent` the record of the run that it started from.
"""

import contextlib
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils

from metajax.errors import InputError, LostError, StoppedError, reason_of
from metajax.training.directories import (
    absolute,
    can_be_listed,
    move,
    none_readable,
    unreachable,
    whole_steps,
)
from metajax.training.outer import Frozen, OuterState
from metajax.training.preservation import Chosen, preservation_policy
from metajax.tree import drop, overlay
from metajax.types import PyTree

_log = logging.getLogger("metajax")

_TRIES = 2  # A failed read may be a network problem, not damage.
_PATIENCE = 600  # Seconds for a save to a bucket, whose clients would try for far longer.


class Checkpoints:
    """The checkpoints of one run, in their own directory.

    Saving is asynchronous and atomic: a directory named by a step's number is complete.

    Args:
        directory: directory of the checkpoints; created if it does not exist.
        keep: number of the newest checkpoints to keep.
        keep_every: also keep the checkpoints whose step is a multiple of this.
        frozen: as for `metajax.outer_loop`: these meta-parameters are not saved. All are then
            nested dicts.
        record: the run's record, saved with each checkpoint.

    Raises:
        StoppedError: Orbax cannot read the metadata of the directory or of a checkpoint in it. In
            `save`, and on leaving the context: a checkpoint could not be written.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import jax, jax.numpy as jnp, metajax, optax
        >>> from metajax.training.checkpoint import Checkpoints
        >>> def loss_fn(params, batch, rng):
        ...     return jnp.sum((params - batch) ** 2), {}
        >>> algorithm = metajax.maml(loss_fn, optax.sgd(0.1), 1)
        >>> outer = metajax.outer_loop(algorithm, optax.sgd(0.1))
        >>> tasks = metajax.Task(support=jnp.ones(2), query=jnp.ones(2))
        >>> def run(directory, steps):
        ...     with Checkpoints(directory, keep=2, record={}) as checkpoints:
        ...         state = checkpoints.restore(outer.init(jnp.zeros(()), jax.random.key(0)))
        ...         while state.step < steps:
        ...             state, _ = outer.step(state, tasks)
        ...             checkpoints.save(state)
        ...         return int(state.step)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run(Path(folder), 1), run(Path(folder), 3)
        (1, 3)
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        record: dict[str, Any],
        keep_every: int | None = None,
        frozen: Frozen = None,
    ) -> None:
        self._directory, self._record, self._frozen = directory, record, frozen
        self._failed = False
        self._pending: Any = None  # The current save,
        self._saving = 0  # its step,
        self._safe: int | None = None  # and the last step known to be saved.
        self._chosen = Chosen()
        self._policy = preservation_policy(keep, keep_every, self._chosen)
        try:
            self._orbax = ocp.training.Checkpointer(
                absolute(directory),
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=self._policy,
                cleanup_tmp_directories=True,  # Incomplete checkpoints of a killed run.
            )
        except Exception as error:  # It reads all metadata and fails at the first bad file.
            if not can_be_listed(directory.parent):
                raise StoppedError(unreachable(directory, None, error)) from error
            raise StoppedError(
                f"{directory}: cannot be opened ({reason_of(error)}); move away the checkpoint "
                "whose _CHECKPOINT_METADATA is damaged, or fix the path, and run the same command "
                "again"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After a failed save, or without the other processes, waiting would not end.
        alone = jax.process_count() > 1 and error is not None
        lost = alone and (not isinstance(error, StoppedError) or isinstance(error, LostError))
        if not self._failed and not lost:
            with self._explain_failures():
                self._wait()
                self._orbax.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        latest = self._orbax.latest
        return None if latest is None else latest.step

    def save(self, state: OuterState, chosen: Collection[int] = ()) -> None:
        """Start saving. Return when the state's arrays may be overwritten.

        Args:
            state: what to save.
            chosen: steps whose checkpoints are kept too, until the next save.
        """
        training = {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}
        with self._explain_failures():
            self._wait()
            self._chosen.steps = chosen
            self._saving = int(state.step)
            self._pending = self._orbax.save_checkpointables_async(
                int(state.step),
                {"params": self._saved(state.meta_params), "training": training},
                custom_metadata=self._record,
            )

    def _saved(self, meta_params: PyTree) -> PyTree:
        """Return the meta-parameters without those that are frozen."""
        return meta_params if self._frozen is None else drop(meta_params, self._frozen)

    def _wait(self) -> None:
        """Wait for the current save, with a time limit if it goes to a bucket."""
        if self._pending is not None:
            self._pending.result(None if isinstance(self._directory, Path) else _PATIENCE)
            self._pending, self._safe = None, self._saving

    @contextlib.contextmanager
    def _explain_failures(self) -> Iterator[None]:
        """If a save fails, report what is saved. The save may have begun in an earlier call."""
        try:
            yield
        except Exception as error:
            self._failed = True
            steps = [] if self._safe is None else [self._safe]
            if isinstance(self._directory, Path):  # A failing bucket cannot be listed.
                steps = whole_steps(self._directory)
            safe = f"step {max(steps)} is safe" if steps else "nothing is saved yet"
            raise StoppedError(
                f"{self._directory}: a checkpoint could not be written ({reason_of(error)}), "
                f"{safe}; free disk space or fix the path, and run the same command again"
            ) from error

    def restore(self, state: OuterState) -> OuterState:
        """Read the newest checkpoint, placed like `state`. Without one, return `state`.

        Checkpoints that cannot be read are moved next to the directory.

        Raises:
            StoppedError: none of the checkpoints can be read, or the directory cannot.
        """
        training = {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}
        wanted = {"params": self._saved(state.meta_params), "training": training}
        damaged: dict[int, Exception] = {}
        for known in reversed(self._orbax.checkpoints):
            for _ in range(_TRIES):
                restored: Any = None
                error: Exception | None = None
                try:
                    restored = self._orbax.load_checkpointables(known.step, wanted)
                except Exception as raised:
                    error = raised
                if _all_agree(error is None):
                    break
                if not _all_agree(can_be_listed(self._directory)):
                    raise StoppedError(unreachable(self._directory, known.step, error))
            else:
                damaged[known.step] = error or ValueError("another process cannot read it")
                continue
            for step, reason in damaged.items():
                self._set_aside(step, reason)
            self._safe = known.step
            whole = restored["params"]
            whole = whole if self._frozen is None else overlay(state.meta_params, whole)
            return OuterState(meta_params=whole, **restored["training"])
        if damaged:
            raise StoppedError(none_readable(self._directory, damaged))
        return state

    def _set_aside(self, step: int, error: Exception) -> None:
        aside = self._directory.parent / f"damaged-{step}"
        _log.warning(
            "%s: checkpoint %d cannot be read (%s) and is set aside as %s; an earlier one is used",
            *(self._directory, step, reason_of(error), aside),
        )
        if jax.process_index() == 0:
            move(self._directory / str(step), aside)
        _all_agree(True)
        self._orbax.reload()

    def remove_surplus(self, chosen: Collection[int] = ()) -> None:
        """Remove what a killed run left, because no save may follow; `chosen` as for `save`."""
        self._chosen.steps = chosen
        known = self._orbax.checkpoints
        context = ocp.training.preservation_policies.PreservationContext()
        preserved = self._policy.should_preserve(known, context=context)
        for checkpoint, keep in zip(known, preserved, strict=True):
            if keep:
                continue
            try:
                self._orbax.delete(checkpoint.step)
            except OSError as error:
                at = self._directory, checkpoint.step, error.strerror
                _log.warning("%s: checkpoint %d cannot be removed (%s); remove it yourself", *at)


def _all_agree(ours: bool) -> bool:
    """Return whether `ours` is true in all processes. Each process waits here for the others."""
    if jax.process_count() == 1:
        return ours
    return bool(multihost_utils.process_allgather(np.array(ours)).all())


class Saved(NamedTuple):
    """A checkpoint of a run, as a later stage reads it.

    Attributes:
        params: the meta-parameters, on the first device.
        step: its step.
        record: the run's record.
    """

    params: PyTree
    step: int
    record: dict[str, Any]


def load(directory: Path, step: int | None = None) -> Saved:
    """Read the parameters of the newest checkpoint in a directory, or of one step.

    Raises:
        InputError: there is none, or none or not the given one can be read.
        StoppedError: the directory itself cannot be read.
    """
    damaged: dict[int, Exception] = {}
    steps = saved_steps(directory)
    for each in reversed(steps) if step is None else {step} & {*steps, *whole_steps(directory)}:
        try:
            saved = _read(absolute(directory) / str(each), each)
        except Exception as error:
            if not can_be_listed(directory):
                raise StoppedError(unreachable(directory, each, error)) from error
            damaged[each] = error
            continue
        for lost, reason in damaged.items():
            at = directory, lost, reason_of(reason)
            _log.warning("%s: checkpoint %d cannot be read (%s); the one before it is used", *at)
        return saved
    if step is not None and steps:
        fault = f"cannot be read ({reason_of(damaged[step])})" if step in damaged else "is missing"
        raise InputError(
            f"{directory}: checkpoint {step}, which its run chose, {fault}; restore it, or use "
            "another --workdir"
        )
    if damaged:
        raise InputError(none_readable(directory, damaged))
    raise InputError(f"{directory}: has no checkpoint yet; wait until its run has finished")


def _read(path: Path, step: int) -> Saved:
    metadata = ocp.checkpointables_metadata(path)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        metadata.metadata["params"],
    )
    params = ocp.load_checkpointables(path, {"params": abstract})["params"]
    record = metadata.custom_metadata
    if not record:
        raise ValueError("its record is missing")
    return Saved(params, step, record)


def saved_steps(directory: Path) -> list[int]:
    """Return the steps of the checkpoints; if Orbax cannot read them, of all complete ones."""
    if not directory.is_dir():  # Orbax would create it.
        return []
    try:
        with ocp.training.Checkpointer(absolute(directory)) as orbax:
            return [known.step for known in orbax.checkpoints]
    except Exception:
        return sorted(whole_steps(directory))
