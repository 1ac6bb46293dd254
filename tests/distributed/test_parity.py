"""The same numbers on one device, on eight, and on two and four processes."""

import pathlib

import numpy as np
import pytest
from launching import finish, slurm_step, start, tpu_slices

WORKER = pathlib.Path(__file__).with_name("worker.py")

# replica, fsdp, tensor(, slices) of the meshes; (devices, processes) they lie on.
ONE = "one=1,1,1"
EIGHT = ("eight=1,4,2", "sharded=1,8,1", "copies=2,2,2")
TWO = "two=1,4,2"
FOUR = "four=2,2,1,2"
DEVICES = {"eight": (8, 1), "sharded": (8, 1), "copies": (8, 1), "two": (8, 2), "four": (4, 4)}


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """{(mesh, dtype): what the worker wrote, "folder": where it worked}."""
    folder = tmp_path_factory.mktemp("parity")
    command = [WORKER, folder, "float32"]
    finish(start([*command, ONE], 1))
    finish(start([*command, *EIGHT], 8))
    finish(*slurm_step([*command, TWO], tasks=2, devices=4))
    finish(*tpu_slices([*command, FOUR], slices=2, hosts=2, devices=1))
    # What differs between processes does not depend on precision.
    for mesh, devices in ((ONE, 1), (EIGHT[0], 8)):
        finish(start([WORKER, folder, "float64", mesh], devices, {"JAX_ENABLE_X64": "1"}))
    found = {tuple(path.stem.split("_")): np.load(path) for path in folder.glob("*.npz")}
    return {"folder": folder, **found}


def relative(found, expected, prefix):
    """‖Δ‖ / ‖·‖ over all arrays of that prefix."""
    names = [name for name in expected.files if name.startswith(prefix)]
    assert names
    difference = sum(np.sum((found[n] - expected[n]) ** 2) for n in names)
    return np.sqrt(difference / sum(np.sum(expected[n] ** 2) for n in names))


@pytest.mark.parametrize("name", DEVICES)
def test_five_steps_and_factors_agree_in_float32(numbers, name):
    one, other = numbers["one", "float32"], numbers[name, "float32"]
    assert (int(other["devices"]), int(other["hosts"])) == DEVICES[name]
    assert len(one["losses"]) == 5
    for what in ("grad", "losses", "param", "factor"):
        assert relative(other, one, what) <= 1e-5, what


@pytest.mark.parametrize(
    ("name", "dtype", "allowed"),
    [
        *((name, "float32", 1e-4) for name in ("eight", "copies", "two")),
        ("eight", "float64", 1e-9),
    ],
)
def test_influence_agrees(numbers, name, dtype, allowed):
    one, other = numbers["one", dtype], numbers[name, dtype]
    for estimator in ("ekfac", "ggn_cg") if dtype == "float64" else ("ekfac",):
        expected, found = one[estimator], other[estimator]
        assert np.abs(expected).max() > 0
        assert np.abs(found - expected).max() <= allowed * np.abs(expected).max(), estimator


@pytest.mark.parametrize("name", ["eight", "two"])
def test_all_processes_together_write_the_same_export_and_read_it_into_shards(numbers, name):
    folders = [numbers["folder"] / f"{n}_float32" / "hf" for n in ("one", name)]
    expected, found = ({p.name: p.read_bytes() for p in f.iterdir()} for f in folders)
    assert sum(file.endswith(".safetensors") for file in expected) > 2
    assert found == expected
    assert numbers[name, "float32"]["reread"] == numbers[name, "float32"]["digest"]
    assert numbers[name, "float32"]["reread_in_shards"]


def test_parameters_are_really_split(numbers):
    ways = {"one": (1, 1), "eight": (4, 2), "sharded": (8, 1), "copies": (2, 2), "four": (2, 1)}
    for name, split in ways.items():
        shard, whole = numbers[name, "float32"]["shard"], numbers[name, "float32"]["whole"]
        np.testing.assert_array_equal(shard * np.asarray((1, *split)), whole)
