"""A start for your own: copy it, change what you know, ask ``plan`` before you pay.

ideal-jax plan --config=configs/forkme.py --topology=h100:8
ideal-jax run --config=configs/forkme.py --workdir=runs/mine
"""

from ml_collections import ConfigDict

from ideal_jax.config import shipped


def get_config() -> ConfigDict:
    c = shipped("large")  # usual values; base.py explains them
    c.model.init = "Qwen/Qwen3-4B"  # a folder or a name of the Hugging Face Hub
    c.plan.model = (
        "Qwen3-4B"  # its shape, without a download: a folder with config.json, or one shipped
    )
    c.data.root = "domains"  # one folder per domain: train, reference and test .jsonl
    c.data.row_length = 2048  # tokens in a packed row
    c.training.batch_size = 128  # rows a step, over all devices
    c.training.micro_batches = 4  # raise it, or model.remat, where memory is short
    c.training.learning_rate = 1e-5
    c.mixture.rounds = 2  # updates of the mixture
    return c
