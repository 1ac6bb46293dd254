"""Weak scaling by plan: twice the chips, as many tokens a chip; no device and no compiler is used.

    python benchmarks/weak_scaling.py

Prints predicted seconds per training step of Llama 3.1 8B (4 rows of 2048 tokens a chip, fsdp over
all chips) and by how much each doubling slows it down.
"""

import pathlib

from ideal_jax import config
from ideal_jax.runs.planning import search
from ideal_jax.runs.planning.setting import read_amounts, read_setting
from ideal_jax.runs.planning.topology import parse_topology

SHAPES = {
    "v5e": ("4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
    "h100": ("8", "16", "32", "64", "128", "256"),
}


def main() -> None:
    configs = pathlib.Path(__file__).parents[1] / "configs"
    print("| machine | chips | s/step | MFU | against half the chips |\n|---|---|---|---|---|")
    for chip, shapes in SHAPES.items():
        c, before = config.load(f"{configs / 'llama3_8b.py'}:{chip}"), 0.0
        c.training.micro_batches = 1
        for shape in shapes:
            topology = parse_topology(f"{chip}:{shape}")
            c.training.batch_size = 4 * topology.devices
            if chip == "h100":  # fast links only within a host: its copies of the parameters
                c.mesh.fsdp, c.mesh.replica = 8, topology.devices // 8
            found = search.judged(read_setting(c, topology), read_amounts(c))
            change = f"{found.seconds / before - 1:+.1%}" if before else ""
            row = topology.name, topology.devices, f"{found.seconds:.3f}", f"{found.mfu:.1%}"
            print("|", " | ".join(map(str, (*row, change))), "|")
            before = found.seconds


if __name__ == "__main__":
    main()
