"""Llama 3.1 70B, all parameters.

    ideal-jax plan --config=configs/llama3_70b.py --topology=v5p:4x4x8
    ideal-jax run --config=configs/llama3_70b.py:v5p:4x4x8 \\
        --config.data.root=FOLDER --workdir=runs/llama3_70b

By formula, a device's memory and a whole run (`ideal-jax plan`; plan.examples=50000, rounds=2):

    v5p:4x4x8  57.4 of  88.4 GiB,  2.46 s/step, 106,446 tokens/s, MFU 77%, run  1.0 h
    v5e:16x16  13.5 of  14.9 GiB,  9.54 s/step,  54,983 tokens/s, MFU 46%, run  2.0 h
    v6e:16x16  15.7 of  29.8 GiB,  2.43 s/step, 215,740 tokens/s, MFU 39%, run  0.7 h
    h100:64    56.2 of  74.4 GiB,  4.81 s/step,  54,526 tokens/s, MFU 37%, run  7.6 h
    h200:32   115.1 of 131.1 GiB,  7.43 s/step,  35,269 tokens/s, MFU 47%, run  9.4 h
"""

from ml_collections import ConfigDict

from ideal_jax.config import shipped

# By machine or kind of machine; what is not named here is as in large.py.
_MACHINES: dict[str, dict] = {
    "v5p": {
        "model.remat": "dots",
        "influence.batch_size": 128,
        "influence.tangents": 0,
    },
    "v5e": {
        "mesh.tensor": 8,
        "training.batch_size": 256,
        "training.micro_batches": 4,
        "influence.batch_size": 32,
        "influence.max_factor": 2048,
    },
    "v6e": {
        "mesh.tensor": 2,
        "training.batch_size": 256,
        "influence.batch_size": 128,
        "eval.batch_size": 256,
    },
    "h100": {"training.micro_batches": 1},
    "h200": {"mesh.tensor": 2, "model.remat": "dots", "training.micro_batches": 2},
}


def get_config(machine: str = "v5p:4x4x8") -> ConfigDict:
    c = shipped("large")
    c.model.init = "meta-llama/Llama-3.1-70B"
    c.plan.model = "Llama-3.1-70B"
    chosen = _MACHINES.get(machine) or _MACHINES.get(machine.partition(":")[0], {})
    c.update_from_flattened_dict(chosen)
    return c
