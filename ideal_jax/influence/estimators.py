"""All curvature estimators by name.

    estimator = ESTIMATORS["ekfac"]
    fitted = estimator.fit(Setting(problem, params, batches, key, options))
    solutions, residuals, iterations = estimator.solve(fitted.state, stacked_gradients)

Right-hand sides and solutions are trees like the parameters with a leading axis r, and None for
those of ``fitted.left_out``.
"""

import functools
from typing import Any

import jax
import numpy as np

from ideal_jax.errors import UserError
from ideal_jax.influence import block_estimators, cg_estimators, official
from ideal_jax.influence.blocks import parts, solve_blocks
from ideal_jax.influence.interface import Estimator, Fitted, Needs, Setting
from ideal_jax.influence.problem import Progress, Tree, silent
from ideal_jax.influence.solve import Solved


def _fit_identity(setting: Setting) -> Fitted:
    """H = I, no damping: influence to first order."""
    return Fitted((), 0.0, {})


def _solve_identity(state: Any, stacked: Tree, *, progress: Progress = silent) -> Solved:
    count = jax.tree.leaves(stacked)[0].shape[0]
    return Solved(stacked, np.zeros(count), np.zeros(count, np.int64))


ESTIMATORS: dict[str, Estimator] = {
    "identity": Estimator(Needs(), _fit_identity, _solve_identity),
    "adam": Estimator(Needs(second_moment=True), block_estimators.fit_adam, solve_blocks),
    "fisher_diag": Estimator(
        Needs(diagonal="all"), block_estimators.fit_fisher_diagonal, solve_blocks
    ),
    "kfac": Estimator(
        Needs(kronecker=1, diagonal="kept", rotations=2, covered="drop", parts=True),
        functools.partial(block_estimators.fit_kronecker, refit=False),
        solve_blocks,
        parts,
    ),
    "ekfac": Estimator(
        Needs(kronecker=2, diagonal="kept", rotations=2, covered="drop", parts=True),
        functools.partial(block_estimators.fit_kronecker, refit=True),
        solve_blocks,
        parts,
    ),
    "ggn_cg": Estimator(
        Needs(kronecker=2, diagonal="uncovered", product="gauss_newton", rotations=1),
        cg_estimators.fit_gauss_newton,
        cg_estimators.solve,
    ),
    "hessian_cg": Estimator(
        Needs(
            kronecker=2,
            diagonal="uncovered",
            product="hessian",
            smallest_eigenvalue=True,
            rotations=1,
        ),
        cg_estimators.fit_hessian,
        cg_estimators.solve,
    ),
    "official": Estimator(
        Needs(kronecker=1, batch_gradients=1, rotations=1, covered="always"),
        official.fit,
        official.solve,
        domain_mean=True,
    ),
}


# Not an inverse of a curvature: needs the whole run (``influence.metagradient``).
METAGRADIENT = "metagradient"


def needs_of(name: str) -> Needs:
    """What the estimator of that name takes.

    Raises:
      UserError: there is none.
    """
    check_name(name)
    return Needs(run=True) if name == METAGRADIENT else ESTIMATORS[name].needs


def check_name(name: str, key: str = "influence.estimator") -> None:
    """Whether there is an estimator of that name; ``key`` is the option that asks for it.

    Raises:
      UserError: there is none.
    """
    known = (*ESTIMATORS, METAGRADIENT)
    if name not in known:
        raise UserError(f"{key}={name!r} is unknown; choose one of {', '.join(known)}")


def check_inversion(name: str, inversion: str) -> None:
    """Whether an estimator has what the rule of inversion needs.

    Raises:
      UserError: it has not.
    """
    if inversion == "tikhonov" and name != "kfac":
        raise UserError(
            "influence.inversion='tikhonov' damps the two factors of K-FAC: choose"
            " influence.estimator='kfac' or inversion 'damped'"
        )


def find_estimator(name: str) -> Estimator:
    """The curvature estimator of that name.

    Raises:
      UserError: there is none, or it needs more than a curvature.
    """
    check_name(name)
    if name == METAGRADIENT:
        raise UserError(
            "influence estimator 'metagradient' needs the run, not a checkpoint: use"
            " influence.metagradient with (init_state, train_step, batches)"
        )
    return ESTIMATORS[name]
