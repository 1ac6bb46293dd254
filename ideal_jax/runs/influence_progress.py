"""How far an influence estimate is: one count and one time left over all its samples."""

import time
from collections.abc import Mapping

from ideal_jax.runs.pace import Steps
from ideal_jax.runs.progress import Reporter


class InfluenceProgress:
    """Hands what an estimate tells of its phases to the terminal; keeps their wall seconds.

    Use as a context manager, and then as the ``progress`` of ``influence.estimate``.
    """

    def __init__(self, reporter: Reporter, title: str):
        self._work: dict[str, float] = {}
        self._steps = Steps({})
        self._shown = reporter.phase(title, self._work)
        self._spent: dict[str, float] = {}
        self._phase, self._since = "", time.perf_counter()

    def expect(self, work: Mapping[str, float], steps: Mapping[str, int]) -> None:
        """What each phase is expected to cost (FLOPs), and its batches over all samples."""
        self._work.update(work)
        self._steps = Steps(steps)

    def __enter__(self) -> "InfluenceProgress":
        self._advance = self._shown.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._tick("")
        self._shown.__exit__(*raised)  # type: ignore[arg-type]

    def __call__(self, phase: str, done: int, total: int) -> None:
        """``done`` of ``total`` batches of one sample are through."""
        self._tick(phase)
        self._advance(*self._steps.add(phase, done, total), phase)

    def seconds(self) -> dict[str, float]:
        """Wall seconds by phase, once it is over."""
        return dict(self._spent)

    def _tick(self, phase: str) -> None:
        now = time.perf_counter()
        if self._phase:
            self._spent[self._phase] = self._spent.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now
