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
        self._finished: set[str] = set()
        self._part: str | None = None
        self._counted_from: tuple[float, float] | None = None  # (seconds, share done)
        self._done = 0.0  # share of the part
        self._paced = (0.0, 0.0)  # (work, seconds) that were counted in parts before this one
        self._now = (0.0, 0.0)  # the same of this part

    def move(self, seconds: float, done: int, total: int | None, part: str = "") -> None:
        """``done`` of ``total`` steps of a part are through, ``seconds`` after some start."""
        part = part if self._work is not None else ""
        if part != self._part:
            self._begin(part)
        if not total:
            return
        self._done = min(done / total, 1.0)
        if self._counted_from is None:
            if done >= self._first:
                self._counted_from = seconds, self._done
            return
        begun, share = self._counted_from
        self._now = self._size(part) * (self._done - share), seconds - begun

    def left(self) -> float | None:
        """Seconds to the end of the phase; None: nothing is known yet."""
        work, seconds = self._counted()
        if self._part is None or work <= 0 or seconds <= 0:
            return None
        waiting = (self._work or {}).keys() - self._finished - {self._part}
        rest = self._size(self._part) * (1 - self._done) + sum(map(self._size, waiting))
        return rest * seconds / work

    def _begin(self, part: str) -> None:
        if self._part is not None:
            self._finished.add(self._part)
            self._paced = self._counted()
        self._part, self._done, self._now, self._counted_from = part, 0.0, (0.0, 0.0), None

    def _counted(self) -> tuple[float, float]:
        return self._paced[0] + self._now[0], self._paced[1] + self._now[1]

    def _size(self, part: str) -> float:
        return 1.0 if self._work is None else self._work.get(part, 0.0)
