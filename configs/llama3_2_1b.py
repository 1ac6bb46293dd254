"""Llama 3.2 1B, all parameters.

    ideal-jax plan --config=configs/llama3_2_1b.py --topology=h100:1
    ideal-jax run --config=configs/llama3_2_1b.py:h100:1 \\
        --config.data.root=FOLDER --workdir=runs/llama3_2_1b

By formula, a device's memory and a whole run (`ideal-jax plan`; plan.examples=50000, rounds=2):

    h100:1     63.0 of  74.4 GiB,  4.55 s/step,  57,672 tokens/s, MFU 46%, run  1.2 h
    h200:1    102.3 of 131.1 GiB,  4.05 s/step,  64,729 tokens/s, MFU 51%, run  1.1 h
    v5e:2x4    10.4 of  14.9 GiB,  2.23 s/step, 117,752 tokens/s, MFU 58%, run  0.6 h
    v6e:2x4    10.4 of  29.8 GiB,  0.68 s/step, 384,461 tokens/s, MFU 41%, run  0.2 h
    v5p:2x2x1  20.7 of  88.4 GiB,  1.81 s/step, 144,634 tokens/s, MFU 62%, run  0.4 h
"""

from ml_collections import ConfigDict

from ideal_jax.config import shipped

# By machine or kind of machine; what is not named here is as in large.py.
_MACHINES: dict[str, dict] = {
    "h100": {
        "model.remat": "none",
        "model.unroll": 16,
        "training.micro_batches": 16,
        "influence.batch_size": 4,
        "influence.max_factor": 4096,
        "eval.batch_size": 32,
    },
    "h200": {
        "model.remat": "none",
        "model.unroll": 16,
        "training.micro_batches": 8,
        "influence.max_factor": 4096,
    },
    "v5e": {"training.micro_batches": 4},
    "v6e": {"training.micro_batches": 4, "influence.tangents": 0},
    "v5p": {"influence.tangents": 0},
}


def get_config(machine: str = "h100:1") -> ConfigDict:
    c = shipped("large")
    c.model.init = "meta-llama/Llama-3.2-1B"
    c.plan.model = "Llama-3.2-1B"
    chosen = _MACHINES.get(machine) or _MACHINES.get(machine.partition(":")[0], {})
    c.update_from_flattened_dict(chosen)
    return c
