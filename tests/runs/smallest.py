"""A whole run in a few seconds: two domains, a handful of steps, every phase."""

import pathlib

from ml_collections import ConfigDict

from ideal_jax.config import load


def get_config() -> ConfigDict:
    c = load(pathlib.Path(__file__).parents[2] / "configs" / "tiny.py")
    c.data.domains = "math,code"
    c.data.synthetic.counts = "20,60,4,4,4"
    c.data.synthetic.reference = 24
    c.data.synthetic.test = 4
    c.model.d_model = 16
    c.model.d_ff = 16
    c.model.n_layers = 1
    c.base.examples = 64
    c.base.steps = 8
    c.base.batch_size = 4
    c.training.steps = 8
    c.training.batch_size = 4
    c.training.checkpoint_every = 3
    c.training.log_every = 2
    c.mixture.rounds = 1
    c.influence.estimator = "identity"
    c.influence.fraction = 1.0
    c.influence.curvature_examples = 4
    c.influence.batch_size = 8
    c.eval.examples = 4
    c.eval.max_new_tokens = 2
    return c
