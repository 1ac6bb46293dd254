"""Domain influence at a checkpoint: curvature, solves, per-example scores, and error bars.

Model-agnostic: a ``Problem`` supplies outputs, loss, sampled labels and taps; the rest is
``influence_matrix``. Batches are any pytree whose leaves have the example axis first.
"""

from ideal_jax.influence.blocks import Blocks as Blocks
from ideal_jax.influence.blocks import fit_blocks as fit_blocks
from ideal_jax.influence.blocks import multiply_blocks as multiply_blocks
from ideal_jax.influence.blocks import solve_blocks as solve_blocks
from ideal_jax.influence.bootstrap import Intervals as Intervals
from ideal_jax.influence.curvature import GaussNewton as GaussNewton
from ideal_jax.influence.curvature import Hessian as Hessian
from ideal_jax.influence.estimators import ESTIMATORS as ESTIMATORS
from ideal_jax.influence.estimators import needs_of as needs_of
from ideal_jax.influence.interface import Estimator as Estimator
from ideal_jax.influence.interface import Fitted as Fitted
from ideal_jax.influence.interface import Needs as Needs
from ideal_jax.influence.interface import Setting as Setting
from ideal_jax.influence.matrix import ENDINGS as ENDINGS
from ideal_jax.influence.matrix import Diagnostics as Diagnostics
from ideal_jax.influence.matrix import estimate as estimate
from ideal_jax.influence.matrix import influence_matrix as influence_matrix
from ideal_jax.influence.options import Options as Options
from ideal_jax.influence.problem import Problem as Problem
from ideal_jax.influence.problem import Sample as Sample
from ideal_jax.influence.problem import TapLayer as TapLayer
from ideal_jax.influence.problem import Taps as Taps
from ideal_jax.influence.scores import Scores as Scores
from ideal_jax.influence.scores import example_scores as example_scores
from ideal_jax.influence.scores import mean_gradient as mean_gradient
from ideal_jax.influence.solve import Solved as Solved
from ideal_jax.influence.solve import conjugate_gradients as conjugate_gradients
