"""Gemma 2 9B, all parameters.

    ideal-jax plan --config=configs/gemma2_9b.py --topology=v5p:2x2x4
    ideal-jax run --config=configs/gemma2_9b.py:v5p:2x2x4 \\
        --config.data.root=FOLDER --workdir=runs/gemma2_9b

By formula, a device's memory and a whole run (`ideal-jax plan`; plan.examples=50000, rounds=2):

    v5p:2x2x4  32.4 of  88.4 GiB,  3.32 s/step,  78,963 tokens/s, MFU 62%, run  0.8 h
    v5e:4x8    14.4 of  14.9 GiB,  4.63 s/step,  56,670 tokens/s, MFU 52%, run  1.9 h
    v6e:4x4    26.3 of  29.8 GiB,  2.50 s/step, 104,949 tokens/s, MFU 41%, run  1.0 h
    h100:8     55.5 of  74.4 GiB,  4.57 s/step,  57,323 tokens/s, MFU 42%, run  1.3 h
    h200:8     98.3 of 131.1 GiB,  3.86 s/step,  67,836 tokens/s, MFU 49%, run  1.2 h
"""

from ml_collections import ConfigDict

from ideal_jax.config import shipped

# By machine or kind of machine; what is not named here is as in large.py.
_MACHINES: dict[str, dict] = {
    "v5e": {
        "mesh.tensor": 2,
        "influence.batch_size": 16,
        "influence.max_factor": 4096,
    },
    "v6e": {
        "training.micro_batches": 2,
        "influence.max_factor": 4096,
    },
    "v5p": {"training.micro_batches": 2, "influence.tangents": 0},
    "h100": {"model.remat": "dots", "training.micro_batches": 8},
    "h200": {"model.remat": "none", "training.micro_batches": 8},
}


def get_config(machine: str = "v5p:2x2x4") -> ConfigDict:
    c = shipped("large")
    c.model.init = "google/gemma-2-9b"
    c.plan.model = "gemma-2-9b"
    chosen = _MACHINES.get(machine) or _MACHINES.get(machine.partition(":")[0], {})
    c.update_from_flattened_dict(chosen)
    return c
