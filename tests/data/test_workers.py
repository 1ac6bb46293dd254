import os
import signal

import pytest

from ideal_jax.data.workers import Crew
from ideal_jax.errors import UserError


def parallel(function, jobs, workers):
    with Crew(workers) as crew:
        crew.start(min(workers, len(jobs)))
        yield from crew.run(function, jobs)


def square(x):
    return x * x


def process(x):
    return os.getpid()


def refuse_odd(x):
    if x % 2:
        raise UserError(f"{x} is odd")
    return x


def die(x):
    os.kill(os.getpid(), signal.SIGKILL)


def crash(x):
    return 1 // x


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_job_once(workers):
    assert sorted(parallel(square, range(7), workers)) == [(x, x * x) for x in range(7)]
    assert list(parallel(square, [], workers)) == []


def test_it_happens_in_other_processes():
    pids = {pid for _, pid in parallel(process, range(20), 2)}
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2
    assert {pid for _, pid in parallel(process, range(3), 0)} == {os.getpid()}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_first_error_is_told_however_many_work(workers):
    with pytest.raises(UserError, match=r"^3 is odd$"):
        list(parallel(refuse_odd, [0, 2, 3, 5, 7, 8], workers))


def test_a_dead_or_broken_worker_is_told():
    with pytest.raises(UserError, match="a worker process died"):
        list(parallel(die, [1], 1))
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(parallel(crash, [0], 1))


def test_leaving_early_leaves_nobody():
    found = parallel(process, range(50), 2)
    _, pid = next(found)
    found.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
