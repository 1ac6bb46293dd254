"""``real_small`` reduced until a training takes seconds: does influence predict retraining there?

    python benchmarks/estimators_table.py --config=configs/real_truth.py --seeds=1,2,3 --jobs=1 \\
        --changes=0.5 --estimators=identity,adam,fisher_diag,kfac,ekfac,ggn_cg,official \\
        --config.data.root=FOLDER --workdir=DIR

0.6 million parameters and 0.1 million tokens in one pass that stops early. Every training example
is scored, so that error bars tell the references alone: that costs seven times the training.
"""

from ml_collections import ConfigDict

from ideal_jax.config import shipped


def get_config() -> ConfigDict:
    c = shipped("real_small")
    c.base.tokenizer = "bpe:2048"
    c.data.row_length = 256
    c.data.max_segments = 8
    c.model.d_model = 96
    c.model.head_dim = 24
    c.model.d_ff = 256
    c.base.steps = 128
    c.training.batch_size = 8
    c.training.checkpoint_every = 64
    c.mixture.examples = 770
    c.influence.fraction = 1.0
    c.influence.curvature_examples = 128
    c.influence.reference_examples = 128
    c.influence.spread_examples = 64
    c.influence.iterations = 60
    c.influence.batch_size = 4
    return c
