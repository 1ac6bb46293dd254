import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from ideal_jax import cli

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
CONFIG = HERE / "smallest.py"


def _benchmark():
    spec = importlib.util.spec_from_file_location("kill_test", ROOT / "benchmarks/kill_test.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kill_test = _benchmark()


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory):
    """One compilation cache for this process and those it starts."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
        del os.environ[name.upper()]


class Runs:
    """The command on the smallest config, in this process or in one of its own."""

    config = CONFIG
    outcome = staticmethod(kill_test.outcome)
    differences = staticmethod(kill_test.differences)

    @staticmethod
    def flags(workdir, *overrides):
        return ["run", f"--config={CONFIG}", f"--workdir={workdir}", *overrides]

    @staticmethod
    def files(workdir):
        """Content of every file."""
        return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}

    def here(self, workdir, *overrides):
        """Exit status of a run in this process."""
        return cli.main(self.flags(workdir, *overrides))

    def start(self, workdir, *overrides, program="from ideal_jax.cli import main"):
        """A process of its own, after the statements of ``program``."""
        # What a shell starts in the background ignores SIGINT, and so do its children.
        heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        call = f"import sys; sys.exit(main({self.flags(workdir, *overrides)!r}))"
        return subprocess.Popen(
            [sys.executable, "-u", "-c", f"{heard}\n{program}\n{call}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="session")
def runs():
    return Runs()


@pytest.fixture(scope="session")
def whole(runs, compiled, tmp_path_factory):
    """A run of one update that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "w"
    assert runs.here(workdir) == 0
    return workdir
