"""The same numbers on one device, on eight, and on two processes with two devices each."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

WORKER = pathlib.Path(__file__).with_name("worker.py")
TINY = pathlib.Path(__file__).parents[2] / "configs" / "tiny.py"


def start(command, devices, extra=None):
    env = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        **(extra or {}),
    }
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*running):
    for process in running:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output


def two_processes(command, extra=None):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", **(extra or {})}
    return [start(command, 2, {**common, "JAX_PROCESS_ID": str(k)}) for k in range(2)]


def relative(found, expected, prefix):
    names = [name for name in expected.files if name.startswith(prefix)]
    assert names
    difference = sum(np.sum((found[n] - expected[n]) ** 2) for n in names)
    return np.sqrt(difference / sum(np.sum(expected[n] ** 2) for n in names))


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """{(mesh, dtype): what the worker wrote}."""
    folder = tmp_path_factory.mktemp("parity")
    found = {}
    for dtype, extra in (("float32", {}), ("float64", {"JAX_ENABLE_X64": "1"})):
        kinds = [f"model.dtype={dtype}", f"model.param_dtype={dtype}", "training.micro_batches=2"]

        def command(name, mesh, *more, dtype=dtype, kinds=kinds):
            out = folder / f"{name}_{dtype}.npz"
            found[name, dtype] = out
            return [WORKER, folder / f"{name}_{dtype}", out, mesh, *more, *kinds]

        finish(start(command("one", "1,1,1"), 1, extra))
        common = found["one", dtype]
        finish(start(command("eight", "1,4,2", common), 8, extra))
        finish(*two_processes(command("processes", "1,2,2", common), extra))
    return {key: np.load(path) for key, path in found.items()}


@pytest.mark.parametrize("name", ["eight", "processes"])
def test_five_steps_agree_in_float32(numbers, name):
    one, other = numbers["one", "float32"], numbers[name, "float32"]
    assert int(other["devices"]) == {"eight": 8, "processes": 4}[name]
    assert len(one["losses"]) == 5
    assert relative(other, one, "grad") <= 1e-5
    assert relative(other, one, "losses") <= 1e-5
    assert relative(other, one, "param") <= 1e-5


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-4), ("float64", 1e-9)])
@pytest.mark.parametrize("name", ["eight", "processes"])
def test_influence_agrees(numbers, name, dtype, allowed):
    expected, found = numbers["one", dtype]["matrix"], numbers[name, dtype]["matrix"]
    assert np.abs(expected).max() > 0
    assert np.abs(found - expected).max() <= allowed * np.abs(expected).max()


def test_parameters_are_really_split(numbers):
    for name, ways in (("one", (1, 1, 1)), ("eight", (1, 4, 2)), ("processes", (1, 2, 2))):
        shard, whole = numbers[name, "float32"]["shard"], numbers[name, "float32"]["whole"]
        np.testing.assert_array_equal(shard * np.asarray(ways), whole)


def test_the_whole_tiny_run_ends_in_the_same_counts(tmp_path):
    import json

    def command(name, *mesh):
        flags = [f"--config.mesh.{flag}" for flag in mesh]
        quick = ["--config.base.steps=8", "--config.training.steps=8", "--config.eval.examples=8"]
        workdir = f"--workdir={tmp_path / name}"
        return ["-m", "ideal_jax", "run", f"--config={TINY}", workdir, *quick, *flags]

    finish(start(command("one"), 1))
    finish(start(command("eight", "fsdp=4", "tensor=2"), 8))
    finish(*two_processes(command("processes", "fsdp=2", "tensor=2")))
    mixtures = {
        name: [r["mixture"] for r in json.loads(path.read_text())["rounds"]]
        for name in ("one", "eight", "processes")
        for path in [tmp_path / name / "results.json"]
    }
    assert mixtures["eight"] == mixtures["one"]
    assert mixtures["processes"] == mixtures["one"]
