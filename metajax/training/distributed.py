"""A run on several hosts: how they connect, which of them writes, and what each computes."""

import contextlib
import socket
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from metajax.errors import InputError, LostError, reason_of
from metajax.training.parallel import all_devices
from metajax.types import PyTree

_LONGEST_NAME = 64  # The limit of Linux.
# Seconds without a message from a host after which the others stop.
_SILENCE = 30


def init_distributed(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Make this process one of several. Call this before JAX computes anything.

    Args:
        coordinator: address of the first host. None if the cluster gives all three values.
        num_processes: number of processes, or None.
        process_id: index of this process from 0, or None.

    Raises:
        InputError: the other processes cannot be reached.
    """
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=_SILENCE
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--distributed: the hosts do not find each other ({reason_of(error)}); outside of "
            "TPU VMs, Slurm and Open MPI also give --coordinator, --num-processes and --process-id"
        ) from error


def is_first() -> bool:
    """Return whether this process writes the files that only one process writes."""
    return jax.process_index() == 0


def local_slice(total: int) -> slice:
    """Return the tasks of a step that this process computes: an equal share, in order."""
    count = total // jax.process_count()
    return slice(jax.process_index() * count, (jax.process_index() + 1) * count)


def tasks_by_device(total: int) -> np.ndarray:
    """Return the numbers of the tasks of a step, in the order of the devices that compute them.

    Each process has the tasks of `local_slice`. On some machines, the devices of a process do not
    follow one another.
    """
    owners = [device.process_index for device in all_devices()]
    tasks = np.empty(total, np.int64)
    tasks[np.argsort(np.repeat(owners, total // len(owners)), kind="stable")] = np.arange(total)
    return tasks


def barrier() -> str:
    """Wait for all processes, and say on which host each of them is."""
    if jax.process_count() == 1:
        return "one process"
    own = socket.gethostname().encode()[:_LONGEST_NAME].ljust(_LONGEST_NAME, b"\0")
    names = multihost_utils.process_allgather(np.frombuffer(own, np.uint8))
    hosts = (
        f"{number} on {bytes(name).rstrip(bytes(1)).decode()}" for number, name in enumerate(names)
    )
    # In JAX's messages about a lost process, this number is that of a task.
    return f"processes (JAX's tasks): {', '.join(hosts)}"


def all_gather(params: PyTree) -> PyTree:
    """Gather parameters on one device of this process."""
    if len(all_devices()) == 1:
        return params
    if jax.process_count() == 1:
        return jax.device_put(params, all_devices()[0])
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(params, tiled=True))


def asked_to_stop(step: int) -> bool:
    """Return whether one of several hosts got a SIGTERM. The answer is the same on all hosts."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def largest(value: float) -> float:
    """Return the largest of the values that the processes give, on all of them."""
    if jax.process_count() == 1:
        return value
    return float(np.max(multihost_utils.process_allgather(np.float32(value))))


def from_first(values: np.ndarray) -> np.ndarray:
    """Return the values of the first process, on all of them."""
    if jax.process_count() == 1:
        return values
    return np.asarray(multihost_utils.broadcast_one_to_all(values))


@contextlib.contextmanager
def explain_host_errors() -> Iterator[None]:
    """Explain errors of operations that several processes run together."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise LostError(
            f"process {jax.process_index()} of {jax.process_count()} could not continue with "
            f"the others ({reason_of(error)}); existing checkpoints are intact; see the messages "
            "of the others, and run the same command again on all hosts"
        ) from error
