"""Live progress on the terminal: what runs, how far, how long still."""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from ideal_jax import processes
from ideal_jax.report import formats
from ideal_jax.runs.pace import Pace

Advance = Callable[..., None]  # (done, total=None, note="")
_WIDE = 80  # columns of a terminal in which a bar, what is counted and a note fit beside each other


class Reporter:
    """Shows one phase at a time and keeps its wall time.

    On a terminal a live bar with the time left; otherwise (a log file) a line at the start and the
    end of a phase and, while it lasts, 2, 4, 8 … seconds after its start, then every minute.

    Args:
      enabled: False shows no progress, but what is printed to ``console``.
      every: seconds between the lines of a log at first and at most.
    """

    def __init__(self, enabled: bool, every: tuple[float, float] = (2.0, 60.0)):
        self._enabled = enabled and processes.is_writer()
        self._every = every
        self.console = Console(highlight=False, quiet=not processes.is_writer())
        self.seconds: dict[str, float] = {}

    def say(self, text: str) -> None:
        """One line, however long: the terminal may wrap it, a log keeps it whole."""
        self.console.print(text, soft_wrap=True, markup=False)

    @contextlib.contextmanager
    def phase(
        self, name: str, work: Mapping[str, float] | None = None, first: int = 1
    ) -> Iterator[Advance]:
        """Times the block as ``name`` and yields the function that moves its bar.

        Args:
          name: what the terminal calls it.
          work: of a phase of several parts, which ``note`` names: what each is expected to cost. It
            may be filled later.
          first: steps at the start of a part that may compile a program.
        """
        started = time.perf_counter()
        shown: contextlib.AbstractContextManager[Advance]
        if not self._enabled:
            shown = contextlib.nullcontext(lambda done, total=None, note="": None)
        else:
            show = self._bar if sys.stdout.isatty() else self._lines
            shown = show(name, Pace(work, first))
        with shown as advance:
            yield advance
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    @contextlib.contextmanager
    def _bar(self, name: str, pace: Pace) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            _Steps(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
        )
        with Progress(*columns, console=self.console, expand=True) as bar:
            task = bar.add_task(name, total=None, note="")
            wide = self.console.width >= _WIDE

            def advance(done: int, total: int | None = None, note: str = "") -> None:
                pace.move(time.perf_counter(), done, total, note)
                told = _joined(_left(pace), note if wide else "")
                bar.update(task, completed=done, total=total, note=told)

            yield advance
            bar.update(task, note=bar.tasks[task].fields["note"].removeprefix(f"{_left(pace)}, "))

    @contextlib.contextmanager
    def _lines(self, name: str, pace: Pace) -> Iterator[Advance]:
        started, said = time.perf_counter(), ""
        over = threading.Event()

        def advance(done: int, total: int | None = None, note: str = "") -> None:
            nonlocal said
            pace.move(time.perf_counter(), done, total, note)
            of = f"{done}/{total}" if total else f"{done}" if done else ""
            said = _joined(of, note, _left(pace))

        def tell() -> None:
            wait, longest = self._every
            while not over.wait(wait):
                passed = formats.duration(time.perf_counter() - started)
                self.say(f"{name}: {_joined(said, f'after {passed}')}")
                wait = min(2 * wait, longest)

        self.say(f"{name} …")
        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield advance
        finally:
            over.set()
            teller.join()
        passed = formats.duration(time.perf_counter() - started)
        self.say(f"{name}: done in {passed}")


class _Steps(ProgressColumn):
    """How many steps of how many; nothing before that is known."""

    def render(self, task: Task) -> Text:
        total = "" if task.total is None else f"/{task.total:.0f}"
        return Text(f"{task.completed:.0f}{total}" if total or task.completed else "", "green")


def _left(pace: Pace) -> str:
    left = pace.left()
    return "" if left is None else f"{formats.duration(max(math.ceil(left), 1))} left"


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
