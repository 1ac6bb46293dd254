"""Live progress on the terminal: what runs, how far, how long still."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ideal_jax import processes

Advance = Callable[..., None]  # (done, total=None, note="")


class Reporter:
    """Shows one phase at a time and keeps its wall time.

    On a terminal a live bar with the time left; otherwise (a log file) one line at the start and
    end of a phase and every ``every`` seconds between.
    """

    def __init__(self, enabled: bool, every: float = 15.0):
        self._enabled = enabled and processes.is_writer()
        self._every = every
        self.console = Console(highlight=False, quiet=not processes.is_writer())
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Advance]:
        """Times the block as ``name`` and yields the function that moves its bar."""
        started = time.perf_counter()
        shown: contextlib.AbstractContextManager[Advance]
        if not self._enabled:
            shown = contextlib.nullcontext(lambda done, total=None, note="": None)
        else:
            shown = self._bar(name) if sys.stdout.isatty() else self._lines(name)
        with shown as advance:
            yield advance
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    @contextlib.contextmanager
    def _bar(self, name: str) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(name, total=None, note="")

            def advance(done: int, total: int | None = None, note: str = "") -> None:
                bar.update(task, completed=done, total=total, note=note)

            yield advance

    @contextlib.contextmanager
    def _lines(self, name: str) -> Iterator[Advance]:
        started = last = time.perf_counter()
        self.console.print(f"{name} …")

        def advance(done: int, total: int | None = None, note: str = "") -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last < self._every:
                return
            last = now
            left = (
                f", {(now - started) / done * (total - done):.0f} s left" if total and done else ""
            )
            self.console.print(f"{name}: {done}{f'/{total}' if total else ''}{left} {note}")

        yield advance
        self.console.print(f"{name}: {time.perf_counter() - started:.1f} s")
