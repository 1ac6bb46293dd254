"""What fine-tuning any real model has in common; the files of the models build on it.

bf16 activations over float32 parameters, packed rows of 2048 tokens, whole layers recomputed,
EK-FAC over the MLP layers. The choices are ours: usual values, not tuned.
"""

from ml_collections import ConfigDict

from ideal_jax.config import shipped


def get_config() -> ConfigDict:
    c = shipped("base")
    c.data.root = "domains"
    c.data.row_length = 2048
    c.data.max_segments = 32
    c.data.window = 1024
    c.data.test_examples = 500
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    c.training.steps = 0
    c.training.epochs = 1.0
    c.training.batch_size = 128
    c.training.learning_rate = 1e-5
    c.training.beta2 = 0.95
    c.training.weight_decay = 0.01
    c.training.checkpoint_every = 200
    c.mixture.keep_total = True
    c.influence.layers = "mlp"
    c.influence.uncovered = "drop"
    c.influence.tangents = 1
    c.influence.batch_size = 8
    c.eval.max_new_tokens = 256
    c.eval.batch_size = 64
    return c
