"""Estimators whose curvature is block-diagonal or diagonal: solved in closed form."""

import jax
import jax.numpy as jnp

from ideal_jax.errors import UserError
from ideal_jax.influence.blocks import Blocks, fit_blocks, fit_diagonal, whole_diagonal
from ideal_jax.influence.interface import Fitted, Setting
from ideal_jax.influence.options import Options
from ideal_jax.influence.problem import other_leaves, require


def fit_kronecker(setting: Setting, *, refit: bool) -> Fitted:
    """K-FAC, or EK-FAC when ``refit``."""
    name = "ekfac" if refit else "kfac"
    blocks = fit_blocks(
        require(setting.problem, name, *kronecker_needs(setting.options)),
        setting.params,
        setting.batches,
        key=setting.key,
        options=setting.options,
        refit=refit,
        progress=setting.progress,
    )
    left_out = other_leaves(setting.params, blocks.damping)
    return _fitted(blocks, left_out)


def fit_fisher_diagonal(setting: Setting) -> Fitted:
    """The diagonal of the Fisher matrix for every parameter."""
    problem = setting.problem
    if setting.options.fisher == "sampled":
        problem = require(problem, "fisher_diag", "sample_labels")
    blocks = fit_diagonal(
        problem,
        setting.params,
        setting.batches,
        key=setting.key,
        options=setting.options,
        progress=setting.progress,
    )
    return _fitted(blocks)


def fit_adam(setting: Setting) -> Fitted:
    """√v̂ of the optimizer: the metric in which Adam descends; costs nothing after training."""
    if setting.second_moment is None:
        raise UserError(
            "influence estimator 'adam' needs second_moment, v̂ of the optimizer that trained the"
            " model; give it or choose 'fisher_diag'"
        )
    roots = jax.tree.map(jnp.sqrt, setting.second_moment)
    return _fitted(whole_diagonal(setting.problem, setting.params, roots, setting.options))


def _fitted(blocks: Blocks, left_out: frozenset[str] = frozenset()) -> Fitted:
    return Fitted(
        blocks,
        blocks.mean_damping(),
        blocks.block_damping(),
        left_out=left_out,
        block_curvature=blocks.block_curvature(),
    )


def kronecker_needs(options: Options) -> tuple[str, ...]:
    """What Kronecker factors need of a problem."""
    return ("taps", "sample_labels") if options.fisher == "sampled" else ("taps",)
