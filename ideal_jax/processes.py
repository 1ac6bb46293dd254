"""Many processes, one run: who writes, who decides, and how all end together."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ideal_jax.errors import UserError

TOLD = "told"

T = TypeVar("T")


def is_writer() -> bool:
    """Process 0 alone writes to the work directory (checkpoints excepted)."""
    return jax.process_index() == 0


def is_mine(number: int) -> bool:
    """Whether this process does piece ``number`` of work that is shared out."""
    return number % jax.process_count() == jax.process_index()


def agree(value: bool) -> bool:
    """Process 0's value, in every process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def everywhere(value: bool) -> bool:
    """Whether it is true in every process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(np.asarray(value)).all())


def barrier(name: str) -> None:
    """Waits for every process."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def leave() -> None:
    """All leave together: to the others the first to vanish would look like a failure."""
    jax.distributed.shutdown()


def writer_first(do: Callable[[], T]) -> T | None:
    """Process 0 calls ``do``; the others wait, and end too if it is refused.

    Returns:
      What ``do`` gave in process 0; None in the others.

    Raises:
      UserError: in every process, if ``do`` raised one in process 0.
    """
    given, refused = None, None
    if is_writer():
        try:
            given = do()
        except UserError as error:
            refused = error
    if agree(refused is not None):
        try:
            raise refused or UserError("process 0 has told why the run cannot start")
        finally:
            refused = None  # or error and frame would keep each other, and locks, alive
    return given


class Termination:
    """Whether some process was told to end, found out by all at the same step.

    A scheduler or a cloud that takes a machine back sends SIGTERM, perhaps to one process only. So
    the flags of all go with the batch of every step, and what the step says of them is the same
    in all. (A program of its own would run beside the step, and on CPUs collectives of two
    programs at a time can wait for each other for ever.)
    """

    def __init__(self, mesh: Mesh):
        self.told = False
        self._each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def flags(self) -> dict[str, jax.Array]:
        """{TOLD: a flag for every device of every process}."""
        shape, mine = (self._each.mesh.size,), np.asarray([self.told])
        return {TOLD: jax.make_array_from_callback(shape, self._each, lambda _: mine)}


@contextlib.contextmanager
def termination(mesh: Mesh) -> Iterator[Termination]:
    """SIGTERM inside the block is heard by the ``Termination`` and ends no process by itself.

    One that nobody acted upon ends the process behind the block.
    """
    heard = Termination(mesh)
    if threading.current_thread() is not threading.main_thread():
        yield heard  # only the main thread may have handlers
        return

    def hear(number: int, frame: Any) -> None:
        heard.told = True

    before = signal.signal(signal.SIGTERM, hear)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    if heard.told:
        os.kill(os.getpid(), signal.SIGTERM)
