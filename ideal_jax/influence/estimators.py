"""The curvature estimators behind one interface: ``fit`` to batches, then ``solve``.

    fitted = ESTIMATORS["ekfac"].fit(problem, params, batches, key=key, options=options)
    solutions, residuals, iterations = ESTIMATORS["ekfac"].solve(fitted.state, stacked_gradients)

Right-hand sides and solutions are trees like the parameters with a leading axis r.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from ideal_jax.errors import UserError
from ideal_jax.influence.blocks import (
    Blocks,
    fit_blocks,
    precondition,
    solve_blocks,
    uncovered_part,
)
from ideal_jax.influence.curvature import GaussNewton, mean_eigenvalue, total_weight
from ideal_jax.influence.options import Options
from ideal_jax.influence.passes import Placement
from ideal_jax.influence.problem import Batch, LossFn, Problem, Progress, Tree, require, silent
from ideal_jax.influence.solve import Solved, conjugate_gradients


class Fitted(NamedTuple):
    """Curvature fitted to batches.

    Attributes:
      state: what ``solve`` takes.
      damping: absolute λ; of block estimators the mean over the parameters.
      block_damping: λ of each block by parameter name, one per scanned layer.
    """

    state: Any
    damping: float
    block_damping: dict[str, tuple[float, ...]]


class Fit(Protocol):
    """How an estimator is fitted."""

    def __call__(
        self,
        problem: Problem | LossFn,
        params: Tree,
        batches: Sequence[Batch],
        *,
        key: jax.Array,
        options: Options,
        progress: Progress = silent,
    ) -> Fitted:
        """The curvature at ``params`` over the batches; labels and probes come from ``key``."""


class Solve(Protocol):
    """How an estimator solves."""

    def __call__(self, state: Any, stacked: Tree, *, progress: Progress = silent) -> Solved:
        """(H + λI)⁻¹ g for every g on the leading axis of ``stacked``."""


class Estimator(NamedTuple):
    """One approximation of the curvature.

    Attributes:
      fit, solve: see the module.
      uncovered: ``(state, stacked) -> stacked``: what lies outside the tapped layers, if that is
        treated differently.
    """

    fit: Fit
    solve: Solve
    uncovered: Callable[[Any, Tree], Tree] | None = None


def _fit_identity(
    problem: Problem | LossFn,
    params: Tree,
    batches: Sequence[Batch],
    *,
    key: jax.Array,
    options: Options,
    progress: Progress = silent,
) -> Fitted:
    """H = I, no damping: influence to first order."""
    return Fitted((), 0.0, {})


def _solve_identity(state: Any, stacked: Tree, *, progress: Progress = silent) -> Solved:
    count = jax.tree.leaves(stacked)[0].shape[0]
    return Solved(stacked, np.zeros(count), np.zeros(count, np.int64))


def _fit_kronecker(
    problem: Problem | LossFn,
    params: Tree,
    batches: Sequence[Batch],
    *,
    key: jax.Array,
    options: Options,
    progress: Progress = silent,
    refit: bool,
) -> Fitted:
    name = "ekfac" if refit else "kfac"
    blocks = fit_blocks(
        require(problem, name, *_kronecker_needs(options)),
        params,
        batches,
        key=key,
        options=options,
        refit=refit,
        progress=progress,
    )
    return Fitted(blocks, blocks.mean_damping(), blocks.block_damping())


def _solve_kronecker(state: Blocks, stacked: Tree, *, progress: Progress = silent) -> Solved:
    return solve_blocks(state, stacked)


class _ConjugateGradients(NamedTuple):
    operator: GaussNewton
    preconditioner: Blocks | None
    options: Options


def _fit_ggn_cg(
    problem: Problem | LossFn,
    params: Tree,
    batches: Sequence[Batch],
    *,
    key: jax.Array,
    options: Options,
    progress: Progress = silent,
) -> Fitted:
    """The exact Gauss-Newton matrix; EK-FAC with the same λ preconditions it where taps exist."""
    problem = require(problem, "ggn_cg")
    if options.damping == 0 and problem.regulariser is None:
        raise UserError(
            "influence.damping=0: the Gauss-Newton matrix is singular without damping or a"
            " regulariser; choose a positive damping"
        )
    label_key, probe_key = jax.random.split(key)
    weight = total_weight(problem, params, batches)
    damping = options.damping
    if options.damping_mode == "relative":
        mean = mean_eigenvalue(problem, params, batches, weight, key=probe_key, progress=progress)
        damping = options.damping * mean
    preconditioner = None
    if problem.taps is not None:
        preconditioner = fit_blocks(
            require(problem, "ggn_cg", *_kronecker_needs(options)),
            params,
            batches,
            key=label_key,
            options=dataclasses.replace(
                options, damping=damping, damping_mode="absolute", uncovered="diagonal"
            ),
            refit=True,
            progress=progress,
        )
    operator = GaussNewton(problem, params, batches, weight, damping)
    return Fitted(_ConjugateGradients(operator, preconditioner, options), damping, {})


def _solve_ggn_cg(
    state: _ConjugateGradients, stacked: Tree, *, progress: Progress = silent
) -> Solved:
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


def _kronecker_needs(options: Options) -> tuple[str, ...]:
    return ("taps", "sample_labels") if options.fisher == "sampled" else ("taps",)


ESTIMATORS: dict[str, Estimator] = {
    "identity": Estimator(_fit_identity, _solve_identity),
    "kfac": Estimator(
        functools.partial(_fit_kronecker, refit=False), _solve_kronecker, uncovered_part
    ),
    "ekfac": Estimator(
        functools.partial(_fit_kronecker, refit=True), _solve_kronecker, uncovered_part
    ),
    "ggn_cg": Estimator(_fit_ggn_cg, _solve_ggn_cg),
}


def find_estimator(name: str) -> Estimator:
    """The estimator of that name.

    Raises:
      UserError: there is none.
    """
    if name not in ESTIMATORS:
        raise UserError(
            f"influence.estimator={name!r} is unknown; choose one of {', '.join(ESTIMATORS)}"
        )
    return ESTIMATORS[name]
