"""A profiler trace of chosen steps, for TensorBoard's XProf or for Perfetto."""

import contextlib
import pathlib
from typing import Any

import jax

from ideal_jax import processes
from ideal_jax.errors import UserError
from ideal_jax.landing import landing


def traced_steps(text: str) -> range:
    """The steps that ``logging.trace`` names: "10:12" is 10, 11 and 12; an empty text is none.

    Raises:
      UserError: not two step numbers in order.
    """
    if not text:
        return range(0)
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError(f"logging.trace={text}: expected first:last, two steps such as 10:12")
    return range(int(first), int(last) + 1)


class Trace(contextlib.ExitStack):
    """Traces ``steps``, as many of them as this start does, into ``<folder>/<first>-<last>``.

    Process 0 traces its own devices; the others are alike. A trace that is there is kept.
    """

    def __init__(self, steps: range, folder: pathlib.Path):
        super().__init__()
        self._steps = steps
        if steps:
            self._target = folder / f"{steps[0]}-{steps[-1]}"
            if not processes.is_writer() or self._target.exists():
                self._steps = range(0)
        self._running = False

    def before(self, step: int) -> None:
        """To be called before each step is sent to the devices."""
        if step in self._steps and not self._running:
            partial = self.enter_context(landing(self._target))
            self.enter_context(jax.profiler.trace(str(partial)))
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """To be called behind each step; waits for the last one's result."""
        if self._running and step == self._steps[-1]:
            jax.block_until_ready(result)
            self.close()
            self._running = False
