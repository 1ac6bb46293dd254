"""A 6-million-parameter Llama on real multi-domain data, on a CPU, in about an hour.

    ideal-jax run --config=configs/real_small.py --config.data.root=FOLDER --workdir=runs/real_small

FOLDER holds one sub-folder per domain with train.jsonl[.gz] and reference.jsonl[.gz]. The given
mixture is at most 9,245 examples in natural proportions (--config.mixture.examples=0: all there
are; --config.mixture.counts: exactly these of each domain). M_0 is pre-trained on the domains' own
training text.
"""

from ml_collections import ConfigDict

from ideal_jax.config import shipped


def get_config() -> ConfigDict:
    c = shipped("base")
    c.base.tokenizer = "bpe:8192"
    c.data.row_length = 512
    c.data.max_segments = 16
    c.data.test_examples = 100
    c.model.d_model = 256
    c.model.n_layers = 2
    c.model.n_heads = 4
    c.model.n_kv_heads = 2
    c.model.head_dim = 64
    c.model.d_ff = 704
    c.model.tie_embeddings = False
    c.base.steps = 64
    c.base.learning_rate = 2e-3
    c.training.steps = 0
    c.training.epochs = 1.0
    c.training.learning_rate = 1e-3
    c.training.weight_decay = 0.01
    c.training.checkpoint_every = 32
    c.training.log_every = 4
    c.mixture.examples = 9245
    c.mixture.keep_total = True
    c.mixture.step = 0.5
    c.influence.estimator = "ekfac"
    c.influence.fraction = 0.0
    c.influence.curvature_examples = 64
    c.influence.reference_examples = 64
    c.influence.spread_examples = 16
    c.influence.max_factor = 1024
    c.influence.batch_size = 1
    c.eval.examples = 16
    c.eval.max_new_tokens = 32
    c.eval.batch_size = 16
    return c
