"""The mixture: its state, its update rule and its plan. Pure functions of arrays; no JAX needed."""

from ideal_jax.mixture.choice import Choice as Choice
from ideal_jax.mixture.choice import ExampleLosses as ExampleLosses
from ideal_jax.mixture.choice import choose_round as choose_round
from ideal_jax.mixture.choice import half_width as half_width
from ideal_jax.mixture.choice import paired_difference as paired_difference
from ideal_jax.mixture.plan import MixturePlan as MixturePlan
from ideal_jax.mixture.plan import permutation as permutation
from ideal_jax.mixture.state import FAILED_RESIDUAL as FAILED_RESIDUAL
from ideal_jax.mixture.state import ROUGH_RESIDUAL as ROUGH_RESIDUAL
from ideal_jax.mixture.state import InfluenceMatrix as InfluenceMatrix
from ideal_jax.mixture.state import MixtureState as MixtureState
from ideal_jax.mixture.update import bounded as bounded
from ideal_jax.mixture.update import check_bounds as check_bounds
from ideal_jax.mixture.update import check_floor as check_floor
from ideal_jax.mixture.update import is_settled as is_settled
from ideal_jax.mixture.update import natural_counts as natural_counts
from ideal_jax.mixture.update import update as update
