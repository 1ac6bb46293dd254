"""Seconds by a roofline: FLOPs, bytes of memory and bytes of the network against what a chip can.

    seconds = max(FLOPs / (e · peak), HBM bytes / bandwidth, fsdp bytes / bandwidth)
              + tensor bytes / bandwidth + replica bytes / bandwidth

Gathering parameters over ``fsdp`` hides behind products, sums over ``tensor`` and ``replica`` do
not. e, one constant per kind of chip, is fitted to published speeds (``published``).
"""

from ideal_jax.runs import cost
from ideal_jax.runs.planning.setting import Setting
from ideal_jax.runs.planning.work import EXACT, Work


def seconds(s: Setting, work: Work, efficiency: float) -> float:
    """Of one execution."""
    compute = products(s, work) / efficiency
    hidden = max(compute, work.hbm_bytes / s.topology.chip.hbm_bandwidth, _fsdp(s, work))
    return hidden + exposed(s, work)


def products(s: Setting, work: Work) -> float:
    """Seconds of the matrix products at the chip's peak."""
    exact = work.exact_flops * EXACT[s.topology.platform]
    return (work.flops + exact) / s.topology.chip.flops


def exposed(s: Setting, work: Work) -> float:
    """Seconds of collectives that nothing hides."""
    far = s.topology.slices > 1 or s.topology.devices > s.topology.near
    copies = s.topology.network if far else s.topology.bandwidth(1)
    return work.tensor_bytes / s.topology.bandwidth(1) + work.replica_bytes / copies


def mfu(s: Setting, step_seconds: float) -> float:
    """Model FLOPs of a training step / (seconds · devices · peak), attention counted causally."""
    flops = cost.model_flops(s.cfg, s.batch * s.length, s.length)
    return flops / (step_seconds * s.topology.devices * s.topology.chip.flops)


def _fsdp(s: Setting, work: Work) -> float:
    """Seconds of gathering parameters: each of near devices fetches its part from afar first."""
    topology = s.topology
    axes = topology.chip.axes - (s.tensor > 1)
    near = work.fsdp_bytes / topology.bandwidth(max(axes, 1))
    if s.fsdp * s.tensor <= topology.near:
        return near
    return near + work.fsdp_bytes * s.tensor / topology.near / topology.network
