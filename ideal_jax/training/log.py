"""``metrics.jsonl``: what the logged steps of a training reported."""

import json
import pathlib
from typing import Any

import numpy as np

from ideal_jax import processes


class MetricsLog:
    """``metrics.jsonl``: one line per logged step, written by process 0."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._file: Any = None

    def keep_until(self, step: int, elapsed: float) -> tuple[int, float]:
        """Drops lines after ``step`` (they will be written again) and opens for appending.

        Returns the steps behind ``step`` that the log tells of, and their seconds behind
        ``elapsed``.
        """
        if not processes.is_writer():
            return 0, 0.0
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        read = [(line, _read(line)) for line in lines]
        partial = self._path.with_suffix(".partial")
        kept = (line for line, values in read if values.get("step", np.inf) <= step)
        partial.write_text("".join(line + "\n" for line in kept))
        partial.replace(self._path)
        self._file = self._path.open("a")
        last = max((values.get("step", 0) for _, values in read), default=0)
        until = max((values.get("elapsed", 0.0) for _, values in read), default=0.0)
        return max(0, last - step), max(0.0, until - elapsed)

    def write(self, values: dict[str, float]) -> None:
        """Appends one line."""
        if self._file is not None:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def _read(line: str) -> dict[str, Any]:
    """A line of the log; {} for one that a kill cut off."""
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError):
        return {}
