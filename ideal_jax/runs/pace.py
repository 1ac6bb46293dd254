"""How long a phase still takes, from the pace of what it has done so far."""

from collections.abc import Mapping


class Pace:
    """The time left of a whole phase, without compilation.

    The first step of every part compiles its program and says nothing of the pace, so it is not
    counted. The time left is the work left at the pace of the work that was counted.

    Args:
      work: what each part of the phase is expected to cost, in any one unit (FLOPs); None: the
        phase has one part.
      first: steps of a part that may compile a program.
    """

    def __init__(self, work: Mapping[str, float] | None = None, first: int = 1):
        self._work, self._first = work, first
        self._done: dict[str, float] = {}  # the share of each part that is through
        self._part: str | None = None
        self._counted_from: tuple[float, float] | None = None  # (seconds, share done)
        self._before = (0.0, 0.0)  # (work, seconds) that were counted up to this part
        self._now = (0.0, 0.0)  # the same of this part

    def move(self, seconds: float, done: int, total: int | None, part: str = "") -> None:
        """``done`` of ``total`` steps of a part are through, ``seconds`` after some start."""
        part = part if self._work is not None else ""
        if part != self._part:
            self._before, self._now = self._counted(), (0.0, 0.0)
            self._part, self._counted_from = part, None
        if not total:
            return
        share = self._done[part] = min(done / total, 1.0)
        if self._counted_from is not None:
            begun, before = self._counted_from
            self._now = self._size(part) * (share - before), seconds - begun
        elif done >= self._first:
            self._counted_from = seconds, share

    def left(self) -> float | None:
        """Seconds to the end of the phase; None: nothing is known yet."""
        work, seconds = self._counted()
        if work <= 0 or seconds <= 0:
            return None
        parts = {*(self._work or ()), *self._done}
        rest = sum(self._size(part) * (1 - self._done.get(part, 0.0)) for part in parts)
        return rest * seconds / work

    def _counted(self) -> tuple[float, float]:
        return self._before[0] + self._now[0], self._before[1] + self._now[1]

    def _size(self, part: str) -> float:
        return 1.0 if self._work is None else self._work.get(part, 0.0)


class Steps:
    """Adds up the steps of a part that is told sample by sample, each from 0 to its own end.

    Args:
      totals: of the parts of which it is known how many steps all their samples have.
    """

    def __init__(self, totals: Mapping[str, int]):
        self._totals = totals
        self._through: dict[str, int] = {}

    def add(self, part: str, done: int, total: int) -> tuple[int, int]:
        """(steps of the part so far, all of them), of which ``done`` are of this sample."""
        before = self._through.get(part, 0)
        if done == total:
            self._through[part] = before + total
        return before + done, max(self._totals.get(part, 0), before + total)
