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

_PROGRAM = "import sys; from ideal_jax.data.workers import serve; serve(int(sys.argv[1]))"


def parallel(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[Job, Result]]:
    """(job, result) of every job; in order if ``workers`` is 0: then it is done here.

    The processes start from nothing, so it does not matter what the caller has imported or which
    threads it runs. They hear no Ctrl-C; they end with the caller, whatever ends it.

    Args:
      function: of a module; it, the jobs and the results are pickled.
      jobs: begun in this order.
      workers: processes, at most one per job.

    Raises:
      UserError: the error of the first job that failed, or that a process died.
    """
    if workers == 0:
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

    with contextlib.ExitStack() as processes:
        for _ in range(min(workers, len(jobs))):
            begin(processes.enter_context(_worker()))
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
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
