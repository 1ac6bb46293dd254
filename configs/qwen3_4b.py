"""Qwen3 4B, all parameters.

    ideal-jax plan --config=configs/qwen3_4b.py --topology=v5e:4x4
    ideal-jax run --config=configs/qwen3_4b.py:v5e:4x4 \\
        --config.data.root=FOLDER --workdir=runs/qwen3_4b

By formula, a device's memory and a whole run (`ideal-jax plan`; plan.examples=50000, rounds=2):

    v5e:4x4    11.8 of  14.9 GiB,  3.69 s/step,  70,978 tokens/s, MFU 58%, run  1.2 h
    v6e:2x4    23.3 of  29.8 GiB,  2.26 s/step, 115,873 tokens/s, MFU 41%, run  0.7 h
    v5p:2x2x2  53.1 of  88.4 GiB,  2.51 s/step, 104,643 tokens/s, MFU 74%, run  0.6 h
    h100:8     35.4 of  74.4 GiB,  1.89 s/step, 139,006 tokens/s, MFU 46%, run  0.4 h
    h200:8     59.4 of 131.1 GiB,  1.68 s/step, 156,016 tokens/s, MFU 51%, run  0.4 h
"""

from ml_collections import ConfigDict

from ideal_jax.config import shipped

# By machine or kind of machine; what is not named here is as in large.py.
_MACHINES: dict[str, dict] = {
    "v5e": {"training.micro_batches": 4},
    "v6e": {"training.micro_batches": 2},
    "v5p": {"model.remat": "dots", "training.micro_batches": 2, "influence.tangents": 0},
    "h100": {"model.remat": "none", "training.micro_batches": 8, "influence.tangents": 0},
    "h200": {"model.remat": "none", "training.micro_batches": 4, "influence.tangents": 0},
}


def get_config(machine: str = "v5e:4x4") -> ConfigDict:
    c = shipped("large")
    c.model.init = "Qwen/Qwen3-4B"
    c.plan.model = "Qwen3-4B"
    chosen = _MACHINES.get(machine) or _MACHINES.get(machine.partition(":")[0], {})
    c.update_from_flattened_dict(chosen)
    return c
