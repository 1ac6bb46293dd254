"""Meshes of devices that are only described, and sizes that no mesh splits evenly."""

import dataclasses
import types

import jax
import pytest
from jax.sharding import AxisType

from ideal_jax import sharding
from ideal_jax.errors import UserError
from ideal_jax.models import Decoder, DecoderConfig, abstract_params

SHAPE = DecoderConfig(
    vocab_size=300, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48
)


def devices(count, hosts=1, slices=1, platform="cpu"):
    """Stand-ins with what a mesh asks of a device."""
    per_host, per_slice = count // hosts, count // slices
    return [
        types.SimpleNamespace(
            id=k,
            platform=platform,
            device_kind=platform,
            process_index=k // per_host,
            **({"slice_index": k // per_slice} if slices > 1 else {}),
        )
        for k in range(count)
    ]


@pytest.fixture
def described(monkeypatch):
    """A mesh only keeps its devices, so stand-ins will do."""
    monkeypatch.setattr(sharding, "Mesh", lambda array, axes, axis_types: (array, axes, axis_types))

    def make(given, **sizes):
        array, axes, types_ = sharding.make_mesh(devices=given, **sizes)
        assert axes == ("replica", "fsdp", "tensor")
        assert set(types_) == {AxisType.Auto}
        return array

    return make


@pytest.mark.parametrize("slices", [2, 4])
def test_only_replicas_cross_slices(described, slices):
    array = described(devices(16, 8, slices), slices=slices, replica=4, tensor=2)
    assert array.shape == (4, 2, 2)
    found = [{device.slice_index for device in replica.flat} for replica in array]
    assert found == [{k * slices // 4} for k in range(4)]


def test_slices_without_a_network_of_their_own_are_consecutive_processes(described):
    mixed = devices(8, 4)[::-1]
    array = described(mixed, slices=2, replica=2)
    found = [[device.process_index for device in replica.flat] for replica in array]
    assert found == [[0, 0, 1, 1], [2, 2, 3, 3]]


def test_hosts_of_gpus_are_no_slices_unless_asked_for(described):
    """On GPUs every host counts as a slice of its own."""
    assert described(devices(8, 2, 2, "gpu")).shape == (1, 8, 1)
    assert described(devices(8, 2, 2, "gpu"), replica=2, slices=2).shape == (2, 4, 1)


@pytest.mark.parametrize(
    ("given", "sizes", "told"),
    [
        (devices(8), {"fsdp": 3}, "mesh.replica=1 × mesh.fsdp=3 × mesh.tensor=1 does not cover"),
        (devices(8), {"fsdp": -1, "tensor": -1}, "mesh.tensor=-1 does not cover the 8 devices"),
        (devices(8), {"fsdp": 8, "tensor": 0}, "mesh.tensor=0 does not cover the 8 devices"),
        (devices(8), {"slices": 2}, "mesh.slices=2 does not divide mesh.replica=1"),
        (devices(8), {"slices": 0}, "mesh.slices=0 does not divide mesh.replica=1"),
        (
            devices(8, 2, 2, "tpu"),
            {"replica": 2},
            "mesh.slices=1, but the 8 devices are in 2 slices; set mesh.slices=2",
        ),
    ],
)
def test_impossible_meshes_name_the_key(given, sizes, told):
    with pytest.raises(UserError, match=told):
        sharding.make_mesh(devices=given, **sizes)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"fsdp": 1, "tensor": 4}, r"mesh.tensor=4 does not divide model.n_kv_heads=2"),
        ({"fsdp": 1, "tensor": 3}, r"mesh.tensor=3 does not divide model.n_kv_heads=2"),
        ({"fsdp": 5}, r"mesh.fsdp=5 does not divide model.d_model=64"),
    ],
)
def test_models_that_a_mesh_does_not_split(sizes, told):
    mesh = jax.sharding.AbstractMesh(
        (1, sizes["fsdp"], sizes.get("tensor", 1)), ("replica", "fsdp", "tensor")
    )
    with pytest.raises(UserError, match=told):
        abstract_params(Decoder(SHAPE), mesh)


@pytest.mark.parametrize("vocab", [1, 63, 64, 259, 32_000, 128_256, 256_000])
def test_every_vocabulary_is_split_by_every_power_of_two(vocab):
    cfg = dataclasses.replace(SHAPE, vocab_size=vocab)
    assert vocab <= cfg.padded_vocab < vocab + 64
    assert [cfg.padded_vocab % 2**k for k in range(7)] == [0] * 7
