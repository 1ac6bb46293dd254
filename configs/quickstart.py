"""The quick start: five synthetic capabilities, two updates at a fixed budget, minutes on a CPU.

    ideal-jax run --config=configs/quickstart.py --workdir=runs/quickstart

Three domains are starved, two are over-supplied, and 40 % of the trust labels are wrong.
"""

from ml_collections import ConfigDict

from ideal_jax.config import shipped


def get_config() -> ConfigDict:
    c = shipped("base")
    c.mixture.keep_total = True
    c.mixture.step = 0.5
    c.influence.estimator = "ggn_cg"  # what the README's tables of the quick start were made with
    c.influence.iterations = 15
    return c
