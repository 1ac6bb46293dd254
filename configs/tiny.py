"""The quick start cut down to seconds: for tests, and for trying a change."""

from ml_collections import ConfigDict

from ideal_jax.config import shipped


def get_config() -> ConfigDict:
    c = shipped("quickstart")
    c.data.synthetic.counts = "40,140,40,40,140"
    c.data.synthetic.reference = 16
    c.data.synthetic.test = 16
    c.model.d_model = 32
    c.model.head_dim = 8
    c.model.d_ff = 64
    c.base.examples = 512
    c.base.steps = 24
    c.training.steps = 24
    c.training.checkpoint_every = 8
    c.influence.fraction = 0.5
    c.influence.curvature_examples = 32
    c.influence.iterations = 5
    c.influence.batch_size = 16
    c.eval.examples = 16
    c.eval.batch_size = 16
    return c
