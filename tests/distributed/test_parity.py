"""The same numbers on one device, on eight, and on two processes with two devices each."""

import pathlib

import numpy as np
import pytest
from launching import finish, start, two_processes

WORKER = pathlib.Path(__file__).with_name("worker.py")


def relative(found, expected, prefix):
    names = [name for name in expected.files if name.startswith(prefix)]
    assert names
    difference = sum(np.sum((found[n] - expected[n]) ** 2) for n in names)
    return np.sqrt(difference / sum(np.sum(expected[n] ** 2) for n in names))


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """{(mesh, dtype): what the worker wrote, "folder": where it worked}."""
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
        if dtype == "float32":  # what differs between processes does not depend on precision
            finish(*two_processes(command("processes", "1,2,2", common), extra))
    return {"folder": folder, **{key: np.load(path) for key, path in found.items()}}


@pytest.mark.parametrize("name", ["eight", "processes"])
def test_five_steps_agree_in_float32(numbers, name):
    one, other = numbers["one", "float32"], numbers[name, "float32"]
    assert int(other["devices"]) == {"eight": 8, "processes": 4}[name]
    assert len(one["losses"]) == 5
    assert relative(other, one, "grad") <= 1e-5
    assert relative(other, one, "losses") <= 1e-5
    assert relative(other, one, "param") <= 1e-5


@pytest.mark.parametrize("estimator", ["ggn_cg", "ekfac"])
@pytest.mark.parametrize(
    ("name", "dtype", "allowed"),
    [("eight", "float32", 1e-4), ("processes", "float32", 1e-4), ("eight", "float64", 1e-9)],
)
def test_influence_agrees(numbers, estimator, name, dtype, allowed):
    expected, found = numbers["one", dtype][estimator], numbers[name, dtype][estimator]
    assert np.abs(expected).max() > 0
    assert np.abs(found - expected).max() <= allowed * np.abs(expected).max()


@pytest.mark.parametrize("name", ["eight", "processes"])
def test_all_processes_together_write_the_same_export_and_read_it_into_shards(numbers, name):
    folders = [numbers["folder"] / f"{n}_float32" / "hf" for n in ("one", name)]
    expected, found = ({p.name: p.read_bytes() for p in f.iterdir()} for f in folders)
    assert sum(file.endswith(".safetensors") for file in expected) > 2
    assert found == expected
    assert numbers[name, "float32"]["reread"] == numbers[name, "float32"]["digest"]
    assert numbers[name, "float32"]["reread_in_shards"]


def test_parameters_are_really_split(numbers):
    for name, ways in (("one", (1, 1, 1)), ("eight", (1, 4, 2)), ("processes", (1, 2, 2))):
        shard, whole = numbers[name, "float32"]["shard"], numbers[name, "float32"]["whole"]
        np.testing.assert_array_equal(shard * np.asarray(ways), whole)
