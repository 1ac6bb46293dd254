"""What the quick start promises before it is run."""

import pathlib

import numpy as np
import pytest

from ideal_jax import config
from ideal_jax.influence.decoder import decoder_problem
from ideal_jax.mixture import MixturePlan
from ideal_jax.runs.influence_cost import Price, round_flops
from ideal_jax.runs.influence_samples import curvature_batches, reference_samples, training_stages
from ideal_jax.runs.session import open_session

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    c = config.load(CONFIGS / "quickstart.py")
    c.data.workers = 0
    c.data.synthetic.test = 4  # nothing here reads it
    c.logging.progress = False
    return open_session(c, tmp_path_factory.mktemp("quickstart") / "run", "test")


def test_it_runs_the_default_estimator_at_a_fixed_total():
    c, defaults = (config.load(CONFIGS / f"{name}.py") for name in ("quickstart", "base"))
    assert c.influence.estimator == defaults.influence.estimator == "ekfac"
    assert c.mixture.keep_total
    assert c.mixture.step == 0.5


@pytest.mark.parametrize(
    "counts", [(400, 1400, 400, 400, 1400), (800,) * 5, (1200, 700, 900, 800, 400)]
)
def test_influence_costs_a_third_of_a_round_at_most(session, counts):
    options = session.config.influence
    state = session.given._replace(counts=np.array(counts))
    plan = MixturePlan(tuple(session.given.available.tolist()), counts, session.config.seed)
    price = Price(
        session,
        decoder_problem(session.model, options.layers, options.max_factor),
        reference_samples(session, {}, options.reference_examples),
        reference_samples(session, {}, options.spread_examples),
        list(curvature_batches(session, {}, state, plan)),
    )
    parts = training_stages(session, {}, state, plan, 0.0).parts
    assert price.paid(parts, parts, 0) / round_flops(session, plan) <= 0.35
