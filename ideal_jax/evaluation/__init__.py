"""Evaluation: losses and greedy exact match per capability."""

from ideal_jax.evaluation.generate import generate_all as generate_all
from ideal_jax.evaluation.generate import make_generate as make_generate
from ideal_jax.evaluation.losses import Losses as Losses
from ideal_jax.evaluation.losses import domain_losses as domain_losses
