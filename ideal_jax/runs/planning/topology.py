"""Machines by name: ``v5p:4x4x8``, ``2*v5e:16x16``, ``h100:8``, ``cpu:1``."""

import math
import os
import re
from typing import NamedTuple

from ideal_jax.chips import CHIPS, Chip
from ideal_jax.config import nearest
from ideal_jax.errors import UserError

# A CPU is planned for its memory; its speed is a round number and no prediction.
_CPU = Chip("CPU", 1e11, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 2e10, 1e10, 0)
_NAMES = {name.lower(): chip for name, chip in CHIPS.items()} | {"cpu": _CPU}
_NAMES["a100"] = CHIPS["A100-80"]

# Bytes/s one way and chip through the network of the data centre, between TPU slices (JAX scaling
# book, "tpus") or GPU hosts (Google's A3 High: 1,000 Gbit/s for 8 GPUs; other clouds have more).
_NETWORK = {"v4": 6.25e9, "v5e": 3.125e9, "v5p": 6.25e9, "v6e": 1.25e10}
_GPU_NETWORK = 1.56e10
_GPUS_PER_HOST = 8
# The length from which an axis of the torus is closed to a ring (cloud.google.com/tpu/docs).
_RING = {"v4": 4, "v5p": 4, "v5e": 16, "v6e": 16}


class Topology(NamedTuple):
    """Devices that are not there.

    Attributes:
      name: as it was given.
      chip: of every device.
      shape: of a slice; (n,) for GPUs and CPUs.
      slices: copies of it, joined by the network of the data centre.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int

    @property
    def slice_name(self) -> str:
        """Of one slice."""
        return self.name.rsplit("*")[-1]

    @property
    def devices(self) -> int:
        """How many."""
        return self.slices * math.prod(self.shape)

    @property
    def platform(self) -> str:
        """As JAX calls it."""
        if self.chip.axes:
            return "tpu"
        return "cpu" if self.chip is _CPU else "gpu"

    @property
    def near(self) -> int:
        """Devices with a fast network among them: of a slice, or of a GPU host."""
        size = math.prod(self.shape)
        return min(size, _GPUS_PER_HOST) if self.platform == "gpu" else size

    @property
    def network(self) -> float:
        """Bytes/s one way and device between slices or hosts."""
        return _NETWORK.get(self.chip.name, _GPU_NETWORK)

    def bandwidth(self, axes: int) -> float:
        """Bytes/s one way that a device gets over its ``axes`` longest axes together.

        An open axis has one link at its ends, a ring two.
        """
        if not self.chip.axes:
            return self.chip.link_bandwidth
        ring = _RING[self.chip.name]
        used = [size for size in sorted(self.shape, reverse=True)[:axes] if size > 1]
        links = sum(2 if size % ring == 0 else 1 for size in used)
        return max(links, 1) * self.chip.link_bandwidth


def parse_topology(name: str) -> Topology:
    """The machine of this name.

    Raises:
      UserError: no such chip, or not a shape of it.
    """
    match = re.fullmatch(r"(?:(\d+)\*)?([a-z0-9-]+):(\d+(?:x\d+)*)", name.lower())
    if match is None:
        raise UserError(
            f"plan.topology={name!r}: expected a chip and its number, such as v5p:4x4x8 or h100:8"
        )
    slices, kind, shape = int(match[1] or 1), match[2], tuple(map(int, match[3].split("x")))
    if kind not in _NAMES:
        hint = nearest(kind, _NAMES)
        raise UserError(f"plan.topology={name}: unknown chip{hint}; there are {', '.join(_NAMES)}")
    chip = _NAMES[kind]
    if len(shape) != max(chip.axes, 1) or min(shape) * slices < 1:
        example = "x".join(["4"] * max(chip.axes, 1))
        raise UserError(f"plan.topology={name}: the shape of {kind} looks like {kind}:{example}")
    return Topology(name, chip, shape, slices)
