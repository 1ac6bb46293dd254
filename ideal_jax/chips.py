"""What accelerators can do by their makers' data sheets: one table for measuring and planning.

TPU figures: cloud.google.com/tpu/docs, pages "TPU v4" to "TPU v6e", and the table of the JAX
scaling book (jax-ml.github.io/scaling-book/tpus). GPU figures: NVIDIA's data sheets of the SXM
boards, without sparsity (with it they are doubled, which no dense matrix product reaches).
"""

from typing import NamedTuple

_GIB = 2**30


class Chip(NamedTuple):
    """One device as ``jax.devices()`` lists it."""

    name: str
    flops: float  # bf16 FLOP/s of dense matrix products, 2 per multiply-add
    hbm_bytes: int  # of which runtime and compiler keep a little
    hbm_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s one way: of one ICI link, or of all NVLinks of a GPU
    axes: int  # of the torus of chips, two links each; 0: any GPU of a host reaches any other


_CHIPS = (
    Chip("v4", 275e12, 32 * _GIB, 1.228e12, 4.5e10, 3),
    Chip("v5e", 197e12, 16 * _GIB, 8.19e11, 4.5e10, 2),
    Chip("v5p", 459e12, 95 * _GIB, 2.765e12, 9e10, 3),
    Chip("v6e", 918e12, 32 * _GIB, 1.64e12, 9e10, 2),
    Chip("A100-40", 312e12, 40 * _GIB, 1.555e12, 3e11, 0),
    Chip("A100-80", 312e12, 80 * _GIB, 2.039e12, 3e11, 0),
    Chip("H100", 989e12, 80 * _GIB, 3.35e12, 4.5e11, 0),
    Chip("H200", 989e12, 141 * _GIB, 4.8e12, 4.5e11, 0),
)
CHIPS = {chip.name: chip for chip in _CHIPS}

# jax.Device.device_kind. Boards of other power (PCIe, NVL) have other peaks and are not guessed at.
_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "NVIDIA A100-SXM4-40GB": "A100-40",
    "NVIDIA A100-SXM4-80GB": "A100-80",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H200": "H200",
}


def chip_of(kind: str) -> Chip | None:
    """The chip of a ``device_kind``; None for what is not in the table, such as a CPU."""
    name = _KINDS.get(kind)
    return None if name is None else CHIPS[name]
