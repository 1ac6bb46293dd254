import signal
import time

import pytest


def wait_for(child, start):
    """Reads the child's output up to the line that starts so."""
    for line in child.stdout:
        if line.startswith(start):
            return
    pytest.fail(f"{start!r} never came: {child.stderr.read()}")


def test_interrupted_by_hand(runs, whole, tmp_path, capsys):
    workdir = tmp_path / "w"
    for phase in ("data", "base", "round 0: influence"):
        child = runs.start(workdir)
        wait_for(child, phase)
        if phase == "base":
            # Somebody else tries the same work directory meanwhile.
            child.send_signal(signal.SIGSTOP)
            assert runs.here(workdir) == 2
            assert "another process is running there" in capsys.readouterr().err
            child.send_signal(signal.SIGCONT)
        started = time.perf_counter()
        child.send_signal(signal.SIGINT)
        _, error = child.communicate()
        assert time.perf_counter() - started < 10
        assert child.returncode == 130, f"{phase}: {error}"
        assert error.split("\n", 1)[1] == "ideal-jax: interrupted; the same command continues\n"
        assert "Traceback" not in error
    assert not (workdir / "results.json").exists()
    assert runs.here(workdir) == 0
    assert runs.differences(runs.outcome(whole), runs.outcome(workdir)) == []
