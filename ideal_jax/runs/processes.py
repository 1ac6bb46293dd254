"""Many processes, one run: who writes, and how all agree."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from ideal_jax.errors import UserError

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialise() -> None:
    """Joins the other processes of the run, if there are any.

    On a cluster that JAX knows (TPU pod, SLURM, …) set ``JAX_NUM_PROCESSES=auto``; anywhere else
    set ``JAX_COORDINATOR_ADDRESS=host:port``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` in each
    process. Must come before anything touches a device.
    """
    address, count, index = (os.environ.get(name) for name in _VARIABLES)
    if count is None or jax.distributed.is_initialized():
        return
    if count == "auto":
        jax.distributed.initialize()
        return
    if address is None or index is None:
        raise UserError(f"JAX_NUM_PROCESSES={count} needs {_VARIABLES[0]} and {_VARIABLES[2]} too")
    jax.distributed.initialize(address, int(count), int(index))


def is_writer() -> bool:
    """Process 0 alone writes to the work directory (checkpoints excepted)."""
    return jax.process_index() == 0


def agree(value: bool) -> bool:
    """Process 0's value, in every process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def barrier(name: str) -> None:
    """Waits for every process."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
