"""Runs the scripts of launch/ beside stand-ins for gcloud, kubectl and srun."""

import os
import pathlib
import stat
import subprocess
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# The environment that runs the tests, as if it were the one that the scripts install.
IDEAL_JAX = f'#!/bin/sh\nexec {sys.executable} -m ideal_jax "$@"\n'


@pytest.fixture
def launch(tmp_path):
    """call(script, *arguments, **variables) -> what it did; add(name, text): one more program.

    `bin` is first on the path and holds an ideal-jax.
    """
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()

    def add(name, text):
        path = bin_folder / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        return path

    def call(script, *arguments, cwd=tmp_path, **variables):
        env = {
            **os.environ,
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "TMPDIR": str(tmp_path),
            **variables,
        }
        done = subprocess.run(
            [ROOT / "launch" / script, *map(str, arguments)],
            env=env,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return types.SimpleNamespace(
            status=done.returncode,
            stdout=done.stdout,
            stderr=done.stderr,
            output=done.stdout.splitlines(),
        )

    add("ideal-jax", IDEAL_JAX)
    return types.SimpleNamespace(call=call, add=add, folder=tmp_path, root=ROOT)
