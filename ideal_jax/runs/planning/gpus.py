"""GPUs that are not there, as XLA's compiler wants them described (``GpuTargetConfigProto``).

Figures: NVIDIA's CUDA programming guide, "compute capabilities", and the tuning guides of Ampere
and Hopper; memory and bandwidth from ``chips``.
"""

from typing import NamedTuple

from ideal_jax.chips import Chip


class _Generation(NamedTuple):
    """What the boards of a generation have in common; bytes, GHz."""

    capability: int
    multiprocessors: int
    shared_memory: int  # of a multiprocessor
    l2_cache: int
    clock: float


_AMPERE = _Generation(8, 108, 164 * 2**10, 40 * 2**20, 1.41)
_HOPPER = _Generation(9, 132, 228 * 2**10, 50 * 2**20, 1.98)
_GENERATIONS = {"A100-40": _AMPERE, "A100-80": _AMPERE, "H100": _HOPPER, "H200": _HOPPER}


def target_config(chip: Chip) -> str:
    """The description of a GPU in protobuf's text format."""
    g = _GENERATIONS[chip.name]
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {g.capability} }}
  core_count: {g.multiprocessors}
  fpus_per_core: {64 if g is _AMPERE else 128}
  clock_rate_ghz: {g.clock}
  device_memory_size: {chip.hbm_bytes}
  memory_bandwidth: {int(chip.hbm_bandwidth)}
  l2_cache_size: {g.l2_cache}
  shared_memory_per_core: {g.shared_memory}
  shared_memory_per_block: {48 * 2**10}
  shared_memory_per_block_optin: {g.shared_memory - 2**10}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
device_description_str: "NVIDIA {chip.name}"
runtime_version {{ major: 12 minor: 8 }}
dnn_version_info {{ major: 9 minor: 10 }}
"""
