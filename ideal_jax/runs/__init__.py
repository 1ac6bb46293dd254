"""The verbs as functions of a config."""

from ideal_jax.runs.data_run import data_run as data_run
from ideal_jax.runs.export_run import export_run as export_run
from ideal_jax.runs.ideal_run import ideal_run as ideal_run
from ideal_jax.runs.influence_run import influence_run as influence_run
from ideal_jax.runs.plan_run import plan_run as plan_run
from ideal_jax.runs.verify_run import verify_run as verify_run
