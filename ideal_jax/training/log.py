"""The log of a training: ``metrics.jsonl``, and the same as event files of TensorBoard."""

import importlib.util
import json
import pathlib
from typing import Any

import numpy as np

from ideal_jax import processes, sealed
from ideal_jax.errors import UserError


def check_tensorboard() -> None:
    """Whether event files can be written.

    Raises:
      UserError: the package that writes them (without TensorFlow) is not installed.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError(
            "logging.tensorboard=True needs tensorboardX: pip install 'ideal-jax[tensorboard]'"
        )


class MetricsLog:
    """``metrics.jsonl``: one line per logged step, written by process 0.

    Args:
      path: of the file.
      events: folder for the same as TensorBoard's event files; None: none.
    """

    def __init__(self, path: pathlib.Path, events: pathlib.Path | None = None):
        self._path, self._events = path, events
        self._file: Any = None
        self._writer: Any = None

    def keep_until(self, step: int, elapsed: float) -> tuple[int, float]:
        """Drops lines after ``step`` (they will be written again) and opens for appending.

        Returns the steps behind ``step`` that the log tells of, and their seconds behind
        ``elapsed``.
        """
        if not processes.is_writer():
            return 0, 0.0
        read = [(line, _read(line)) for line in self._lines()]
        lost = sum(not values for _, values in read[:-1])  # a kill cuts off no line but the last
        if lost:
            sealed.tell(f"{self._path} is damaged: {lost} of its lines are left out")
        partial = self._path.with_suffix(".partial")
        kept = (line for line, values in read if values.get("step", np.inf) <= step)
        partial.write_text("".join(line + "\n" for line in kept))
        partial.replace(self._path)
        self._file = self._path.open("a")
        if self._events is not None:
            from tensorboardX import SummaryWriter  # slow to import, and not everybody's

            # A purged step is shown as it was written last.
            self._writer = SummaryWriter(str(self._events), purge_step=step + 1)
        last = max((values.get("step", 0) for _, values in read), default=0)
        until = max((values.get("elapsed", 0.0) for _, values in read), default=0.0)
        return max(0, last - step), max(0.0, until - elapsed)

    def _lines(self) -> list[str]:
        if not self._path.exists():
            return []
        return self._path.read_text(encoding="utf-8", errors="replace").splitlines()

    def write(self, values: dict[str, float]) -> None:
        """Appends one line."""
        if self._file is not None:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        if self._writer is not None:
            for name in values.keys() - {"step"}:
                self._writer.add_scalar(f"train/{name}", values[name], int(values["step"]))
            self._writer.flush()

    def close(self) -> None:
        """Closes the files."""
        for file in (self._file, self._writer):
            if file is not None:
                file.close()


def _read(line: str) -> dict[str, Any]:
    """A line of the log; {} for one that a kill cut off or that is damaged."""
    try:
        values = json.loads(line)
        numbers = values["step"], values.get("elapsed", 0.0)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    return values if all(isinstance(number, int | float) for number in numbers) else {}
