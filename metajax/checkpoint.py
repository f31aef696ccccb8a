"""Orbax checkpoints of a run, and what they came from.

A checkpoint holds two items, so that a later stage can read the first alone:

- `params`: the meta-parameters;
- `training`: the step, the outer optimizer's state and the run's key;

and, as its metadata, the run's record (a JSON object: the stage, its settings, versions, and
under `parent` the record of what it started from).
"""

from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint.experimental.v1 as ocp

from metajax.errors import InputError
from metajax.outer import OuterState
from metajax.types import PyTree


class Checkpoints:
    """The checkpoints of one run, in a directory of their own.

    Saving is asynchronous and atomic: a directory that bears a step's number is whole.

    Args:
        directory: where they are; made when missing.
        keep: how many of the newest to keep.
        record: the run's record, saved with each.
    """

    def __init__(self, directory: Path, *, keep: int, record: dict[str, Any]) -> None:
        self._record = record
        self._orbax = ocp.training.Checkpointer(
            directory.absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,  # What a killed run left half-written.
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._orbax.close()

    @property
    def latest_step(self) -> int | None:
        """The newest checkpoint's step, if there is one."""
        latest = self._orbax.latest
        return None if latest is None else latest.step

    def save(self, state: OuterState) -> None:
        """Starts saving; returns once the state's arrays may be overwritten."""
        training = {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}
        self._orbax.save_checkpointables_async(
            int(state.step),
            {"params": state.meta_params, "training": training},
            custom_metadata=self._record,
        )

    def restore(self, state: OuterState) -> OuterState:
        """The newest checkpoint's state, placed like `state`; `state` itself if there is none."""
        if self.latest_step is None:
            return state
        training = {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}
        found = self._orbax.load_checkpointables(
            self.latest_step, {"params": state.meta_params, "training": training}
        )
        return OuterState(meta_params=found["params"], **found["training"])


class Saved(NamedTuple):
    """What a later stage reads.

    Attributes:
        params: the meta-parameters of the newest checkpoint, on the first device.
        step: its step.
        record: the run's record.
    """

    params: PyTree
    step: int
    record: dict[str, Any]


def load(directory: Path) -> Saved:
    """Reads the parameters of the newest checkpoint in a directory.

    Raises:
        InputError: there is none.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: holds no checkpoint yet: let the run that writes it finish")
    with ocp.training.Checkpointer(directory.absolute()) as orbax:
        if orbax.latest is None:
            raise InputError(
                f"{directory}: holds no checkpoint yet: let the run that writes it finish"
            )
        step = orbax.latest.step
        metadata = orbax.checkpointables_metadata(step)
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            metadata.metadata["params"],
        )
        params = orbax.load_checkpointables(step, {"params": abstract})["params"]
    return Saved(params, step, metadata.custom_metadata)
