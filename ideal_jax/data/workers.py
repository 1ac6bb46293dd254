"""Work in processes of its own: each job once, results as they come, nobody left behind."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from ideal_jax.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")

# Where PyTorch is installed transformers would import it, a second that tokenizing does not need.
_PROGRAM = """
import sys
sys.modules["torch"] = None
from transformers import AutoTokenizer
from ideal_jax.data.workers import serve
serve(int(sys.argv[1]))
"""


class Crew(contextlib.AbstractContextManager["Crew"]):
    """Processes to share work with; they end with the context, or with the caller.

    They start from nothing, so it does not matter what the caller has imported or which threads it
    runs. They hear no Ctrl-C.

    Args:
      size: the most there may be; -1 is one per processor.
    """

    def __init__(self, size: int):
        if size < 0:
            known = hasattr(os, "sched_getaffinity")  # not on macOS
            size = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
        self._size = size
        self._pipes: list[Connection] = []
        self._processes = contextlib.ExitStack()

    def start(self, wanted: int) -> None:
        """Start processes until there are ``wanted``; it takes seconds until they are ready."""
        while len(self._pipes) < min(wanted, self._size):
            self._pipes.append(self._processes.enter_context(_worker()))

    def __exit__(self, *_: object) -> None:
        self._processes.close()

    def run(
        self, function: Callable[[Job], Result], jobs: Sequence[Job]
    ) -> Iterator[tuple[Job, Result]]:
        """(job, result) of every job; in order if no process was started: then it is done here.

        Args:
          function: of a module; it, the jobs and the results are pickled.
          jobs: begun in this order.

        Raises:
          UserError: the error of the first job that failed, or that a process died.
        """
        if not self._pipes:
            yield from ((job, function(job)) for job in jobs)
            return
        waiting = enumerate(jobs)
        busy: dict[Connection, int] = {}
        failed: dict[int, BaseException] = {}

        def begin(pipe: Connection) -> None:
            number, job = next(waiting, (-1, None))
            if number >= 0:
                pipe.send((function, job))
                busy[pipe] = number

        for pipe in self._pipes:
            begin(pipe)
        while busy:
            for pipe in wait(list(busy)):  # type: ignore[assignment]
                number = busy.pop(pipe)
                try:
                    result, error = pipe.recv()
                except (EOFError, ConnectionError):
                    raise UserError(
                        "a worker process died; if memory ran out lower data.workers; the same "
                        "command continues"
                    ) from None
                if error is not None:
                    failed[number] = error
                    continue
                yield jobs[number], result
                # After a failure no new job: which one is told does not depend on the workers.
                if not failed:
                    begin(pipe)
        if failed:
            raise failed[min(failed)]


@contextlib.contextmanager
def _worker() -> Iterator[Connection]:
    ours, theirs = multiprocessing.Pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # the terminal's Ctrl-C is for the caller alone
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "TOKENIZERS_PARALLELISM": "false",  # one thread per process is what was asked for
        },
    )
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.kill()
        process.wait()


def serve(descriptor: int) -> None:
    """What a worker does: jobs from the pipe until the other end is closed."""
    pipe = Connection(descriptor)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            function, job = pipe.recv()
            pipe.send(_outcome(function, job))


def _outcome(function: Callable[[Any], Any], job: Any) -> tuple[Any, BaseException | None]:
    try:
        return function(job), None
    except UserError as error:
        return None, UserError(str(error))
    except Exception as error:
        return None, RuntimeError(f"in a worker process:\n{traceback.format_exc()}{error}")
