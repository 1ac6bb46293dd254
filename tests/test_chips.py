"""The table of chips: every kind is one, and no other device is taken for one."""

import pytest

from ideal_jax import chips


def test_kinds_lead_to_chips():
    assert chips.chip_of("TPU v5 lite") == chips.CHIPS["v5e"]
    assert chips.chip_of("TPU v5") == chips.CHIPS["v5p"]
    assert chips.chip_of("NVIDIA H100 80GB HBM3").flops == 989e12
    assert {chips.chip_of(kind).name for kind in chips._KINDS} == set(chips.CHIPS)


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "TPU v2", ""])
def test_no_peak_is_made_up(kind):
    assert chips.chip_of(kind) is None


@pytest.mark.parametrize("chip", chips.CHIPS.values(), ids=list(chips.CHIPS))
def test_units(chip):
    """Operations per byte of memory are some hundreds on all of them: no power of ten is lost."""
    assert 100 < chip.flops / chip.hbm_bandwidth < 600
    assert chip.hbm_bandwidth / chip.link_bandwidth > 5
    assert 15 < chip.hbm_bytes / 2**30 < 150
