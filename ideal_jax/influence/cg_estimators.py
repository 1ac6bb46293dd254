"""Estimators with exact curvature, solved by conjugate gradients."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax

from ideal_jax.errors import UserError
from ideal_jax.influence.block_estimators import kronecker_needs
from ideal_jax.influence.blocks import Blocks, fit_blocks, precondition
from ideal_jax.influence.checks import refuse_not_finite
from ideal_jax.influence.curvature import (
    GaussNewton,
    Hessian,
    mean_eigenvalue,
    random_signs,
    regulariser_of,
    total_weight,
)
from ideal_jax.influence.interface import Fitted, Setting
from ideal_jax.influence.options import Options
from ideal_jax.influence.passes import Placement
from ideal_jax.influence.problem import CURVATURE, Problem, Progress, Tree, require, silent
from ideal_jax.influence.solve import Solved, conjugate_gradients, smallest_ritz_value

# How far above the smallest eigenvalue found the damping is kept, in units of that eigenvalue: the
# Lanczos iteration approaches it from above.
_MARGIN = 1.5


class ConjugateGradients(NamedTuple):
    """An operator, its preconditioner and when to stop."""

    operator: GaussNewton | Hessian
    preconditioner: Blocks | None
    options: Options


def fit_gauss_newton(setting: Setting) -> Fitted:
    """The exact Gauss-Newton matrix; EK-FAC with the same λ preconditions it where taps exist."""
    problem = require(setting.problem, "ggn_cg")
    _refuse_singular("ggn_cg", setting)
    weight = total_weight(problem, setting.params, setting.batches)
    damping = _absolute(problem, setting, weight)
    operator = GaussNewton(problem, setting.params, setting.batches, weight, damping)
    preconditioner = _preconditioner("ggn_cg", problem, setting, damping)
    return Fitted(ConjugateGradients(operator, preconditioner, setting.options), damping, {})


def fit_hessian(setting: Setting) -> Fitted:
    """The exact Hessian, with as much damping as makes it positive.

    A model that did not reach a minimum has directions of negative curvature, along which "the
    retrained optimum" means nothing. The smallest eigenvalue is looked for by Lanczos iteration,
    and λ raised to 1.5 times its magnitude where the λ asked for is less.
    """
    problem, options = setting.problem, setting.options
    _refuse_singular("hessian_cg", setting)
    weight = total_weight(problem, setting.params, setting.batches)
    if options.damping_mode == "relative" and options.damping > 0:
        wanted = _absolute(require(problem, "hessian_cg with relative damping"), setting, weight)
    else:
        wanted = options.damping
    bare = Hessian(problem, setting.params, setting.batches, weight, 0.0)
    start = random_signs(setting.params, jax.random.split(setting.key)[1])
    smallest = smallest_ritz_value(
        bare.multiply, start, options.iterations, progress=setting.progress
    )
    if not math.isfinite(smallest):
        refuse_not_finite(problem, setting.params, CURVATURE, setting.batches)
    damping = max(wanted, -_MARGIN * smallest)
    preconditioner = None
    if isinstance(problem, Problem):
        preconditioner = _preconditioner("hessian_cg", problem, setting, damping)
    state = ConjugateGradients(bare._replace(damping=damping), preconditioner, options)
    return Fitted(state, damping, {}, smallest)


def solve(state: ConjugateGradients, stacked: Tree, *, progress: Progress = silent) -> Solved:
    """Preconditioned conjugate gradients for all right-hand sides at once."""
    inverse = None
    if state.preconditioner is not None:
        inverse = functools.partial(
            precondition, state.preconditioner, placement=Placement.of(stacked)
        )
    return conjugate_gradients(
        state.operator.multiply,
        stacked,
        tolerance=state.options.tolerance,
        iterations=state.options.iterations,
        precondition=inverse,
        progress=progress,
    )


def _refuse_singular(name: str, setting: Setting) -> None:
    if setting.options.damping == 0 and regulariser_of(setting.problem) is None:
        raise UserError(
            f"influence.damping=0: the curvature of {name} is singular without damping or a"
            " regulariser; choose a positive damping"
        )


def _absolute(problem: Problem, setting: Setting, weight: float) -> float:
    options = setting.options
    if options.damping_mode == "absolute":
        return options.damping
    mean = mean_eigenvalue(
        problem,
        setting.params,
        setting.batches,
        weight,
        key=jax.random.split(setting.key)[1],
        progress=setting.progress,
    )
    if not math.isfinite(mean):
        refuse_not_finite(problem, setting.params, CURVATURE, setting.batches)
    if mean <= 0 and problem.regulariser is None:
        raise UserError(
            f"the Gauss-Newton matrix of {CURVATURE} is 0 on average ({mean:g}), and with it a"
            " relative damping: nothing is known of the curvature; give other examples, or"
            " influence.damping_mode=absolute"
        )
    return options.damping * mean


def _preconditioner(name: str, problem: Problem, setting: Setting, damping: float) -> Blocks | None:
    if problem.taps is None:
        return None
    return fit_blocks(
        require(problem, name, *kronecker_needs(setting.options)),
        setting.params,
        setting.batches,
        key=jax.random.split(setting.key)[0],
        options=dataclasses.replace(
            setting.options,
            damping=damping,
            damping_mode="absolute",
            uncovered="diagonal",
            inversion="damped",
            important=1.0,
        ),
        refit=True,
        progress=setting.progress,
    )
