"""Llama 3.1 8B: all parameters; on one H100 adapters.

One H200 trains all parameters, but has no room for their influence: there rounds=0 trains once on
the given mixture. For influence take adapters or more devices.

    ideal-jax plan --config=configs/llama3_8b.py --topology=v5e:4x8
    ideal-jax run --config=configs/llama3_8b.py:v5e:4x8 \\
        --config.data.root=FOLDER --workdir=runs/llama3_8b

By formula, a device's memory and a whole run (`ideal-jax plan`; plan.examples=50000, rounds=2):

    v5e:4x8    12.6 of  14.9 GiB,  3.29 s/step,  79,697 tokens/s, MFU 59%, run  1.5 h
    v6e:4x4    25.3 of  29.8 GiB,  1.66 s/step, 157,624 tokens/s, MFU 50%, run  0.8 h
    v5p:2x2x4  61.7 of  88.4 GiB,  2.21 s/step, 118,596 tokens/s, MFU 75%, run  0.6 h
    h100:1     51.3 of  74.4 GiB, 18.08 s/step,  14,500 tokens/s, MFU 46%, run  2.9 h
    h200:1    124.5 of 131.1 GiB,  3.78 s/step,   8,660 tokens/s, MFU 41%, run  0.9 h
    h100:8     51.8 of  74.4 GiB,  3.39 s/step,  77,332 tokens/s, MFU 46%, run  1.0 h
    h200:8     81.8 of 131.1 GiB,  3.02 s/step,  86,795 tokens/s, MFU 51%, run  0.7 h
"""

from ml_collections import ConfigDict

from ideal_jax.config import shipped

# By machine or kind of machine; what is not named here is as in large.py.
_MACHINES: dict[str, dict] = {
    "v5e": {"training.micro_batches": 2, "influence.batch_size": 32},
    "v6e": {"model.remat": "dots", "training.micro_batches": 4, "influence.batch_size": 16},
    "v5p": {"model.remat": "dots", "influence.tangents": 0},
    "h100": {"model.remat": "none", "training.micro_batches": 8},
    "h200": {"model.remat": "none", "training.micro_batches": 4, "influence.tangents": 0},
    "h100:1": {
        "lora.rank": 16,
        "model.param_dtype": "bfloat16",
        "training.learning_rate": 1e-4,
        "model.remat": "none",
        "training.micro_batches": 64,
        "influence.batch_size": 1,
        "influence.layer_groups": 2,
        "influence.max_factor": 2048,
        "influence.tangents": 0,
        "eval.batch_size": 16,
    },
    "h200:1": {
        "training.moment_dtype": "bfloat16",
        "training.batch_size": 16,
        "mixture.rounds": 0,
        "eval.batch_size": 16,
    },
}


def get_config(machine: str = "v5e:4x8") -> ConfigDict:
    c = shipped("large")
    c.model.init = "meta-llama/Llama-3.1-8B"
    c.plan.model = "Llama-3.1-8B"
    chosen = _MACHINES.get(machine) or _MACHINES.get(machine.partition(":")[0], {})
    c.update_from_flattened_dict(chosen)
    return c
