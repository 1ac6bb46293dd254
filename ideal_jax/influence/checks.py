"""What may not decide: sets without weight, numbers that are not finite, solves that failed.

In a healthy estimate these look at numbers that are there anyway; what is wrong is searched for
when something is.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from ideal_jax.errors import UserError
from ideal_jax.influence.interface import Fitted, Needs
from ideal_jax.influence.options import Options
from ideal_jax.influence.passes import Placement
from ideal_jax.influence.problem import (
    CURVATURE,
    Batch,
    LossFn,
    Problem,
    Tree,
    example_loss,
    leaf_name,
)
from ideal_jax.influence.solve import Solved
from ideal_jax.mixture import FAILED_RESIDUAL, InfluenceMatrix


@jax.jit
def all_finite(tree: Tree) -> jax.Array:
    """bool[]: no NaN and no infinity in any leaf."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def refuse_not_finite(
    problem: Problem | LossFn, params: Tree, what: str, batches: Sequence[Batch]
) -> NoReturn:
    """Names what made a number about the set ``what`` infinite or NaN.

    Raises:
      UserError: always. It names the parameters, the first batch and row of the set whose loss is
        not finite, or the set alone where only derivatives are not.
    """
    blame_losses(problem, params, what, batches)
    raise UserError(
        f"{what}: every loss is finite, but not what is made of their derivatives; look for"
        " functions without a derivative, such as a root at 0, and for overflow"
    )


def blame_losses(
    problem: Problem | LossFn, params: Tree, what: str, batches: Sequence[Batch]
) -> None:
    """Looks for parameters and examples of the set ``what`` that are not finite.

    Raises:
      UserError: there are some.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not all_finite(leaf):
            raise UserError(
                f"the parameters are not finite (the first is '{leaf_name(path)}'): the training"
                " that made them diverged; repeat it with a lower learning rate"
            )
    placement, loss_fn = Placement.of(params), example_loss(problem)
    for number, batch in enumerate(batches, start=1):
        fine = np.asarray(jax.device_get(_rows_finite(loss_fn, placement, params, batch)))
        if not fine.all():
            raise UserError(
                f"{what}: the loss is not finite for example {int(np.argmin(fine)) + 1} of batch"
                f" {number} of {len(batches)}; mend that example or leave it out"
            )


def check_fitted(
    problem: Problem | LossFn, params: Tree, batches: Sequence[Batch], fitted: Fitted
) -> None:
    """Whether the curvature is finite.

    Raises:
      UserError: it is not.
    """
    found = [fitted.damping, *(x for values in fitted.block_curvature.values() for x in values)]
    if not all(map(math.isfinite, found)):
        refuse_not_finite(problem, params, CURVATURE, batches)


def check_covered(
    curvature: Mapping[str, tuple[float, ...]], kind: str, names: Sequence[str], stacked: Tree
) -> None:
    """Whether there is curvature wherever these right-hand sides have a gradient.

    A block that nobody uses has neither. What is less than rounding of the whole gradient is not
    counted as one.

    Args:
      curvature: the mean curvature of each block by parameter name, one per scanned layer.
      kind, names: what the right-hand sides are of.

    Raises:
      UserError: names the parameter, and the layer of a scanned one.
    """
    empty = {name: np.asarray(values) == 0 for name, values in curvature.items()}
    empty = {name: blocks for name, blocks in empty.items() if blocks.any()}
    if not empty:
        return
    squares = {
        leaf_name(path): _block_squares(x, len(curvature[leaf_name(path)]))
        for path, x in jax.tree_util.tree_leaves_with_path(stacked)
        if leaf_name(path) in curvature
    }
    whole = np.sum([np.sum(of_blocks, axis=1) for of_blocks in squares.values()], axis=0)
    epsilon = jnp.finfo(jax.tree.leaves(stacked)[0].dtype).eps
    for leaf, blocks in empty.items():
        present = (squares[leaf] > (epsilon**2 * whole)[:, None]) & blocks
        if present.any():
            side, block = np.argwhere(present)[0]
            layer = f", layer {block}," if len(blocks) > 1 else ""
            raise UserError(
                f"{kind} '{names[side]}' has a gradient in '{leaf}'{layer} where the curvature is"
                " 0: no curvature example reaches it, so nothing is known of it; give more or"
                " other ones (influence.curvature_examples), or leave it out (influence.layers"
                " with influence.uncovered=drop)"
            )


def check_solved(
    estimator: str,
    needs: Needs,
    options: Options,
    kind: str,
    names: Sequence[str],
    solved: Solved,
) -> None:
    """Whether every solve is better than none.

    Raises:
      UserError: names the right-hand side, its residual and what to change.
    """
    for name, residual in zip(names, solved.residuals, strict=True):
        if residual < FAILED_RESIDUAL:
            continue
        raise UserError(
            f"influence estimator '{estimator}': the solve for {kind} '{name}' failed with a"
            f" residual of {residual:.3g}, where 1 is no better than no solution;"
            f" {_remedy(needs, options, residual)}"
        )


def remedy(needs: Needs, options: Options) -> str:
    """What makes the residuals of an estimator's solves smaller."""
    if needs.product:
        return (
            f"raise influence.iterations={options.iterations} or"
            f" influence.damping={options.damping:g}"
        )
    if options.inversion == "pseudoinverse":
        return f"lower influence.damping={options.damping:g}, below which all is cut off"
    return f"raise influence.damping={options.damping:g}"


def _remedy(needs: Needs, options: Options, residual: float) -> str:
    """Where a pseudoinverse keeps too little it leaves at most 1; too much, far more."""
    if options.inversion == "pseudoinverse" and not residual < 1.01:
        return f"raise influence.damping={options.damping:g}, to which rounding must not reach"
    return remedy(needs, options)


def check_matrix(matrix: InfluenceMatrix) -> None:
    """Whether every number of a result is finite.

    Raises:
      UserError: names the reference and the domain of the first that is not.
    """
    for values in (matrix.matrix, matrix.stderr):
        if not np.isfinite(values).all():
            i, j = np.argwhere(~np.isfinite(values))[0]
            raise UserError(
                f"the influence of domain '{matrix.domains[j]}' on reference"
                f" '{matrix.references[i]}' is not finite ({values[i, j]}) by influence estimator"
                f" '{matrix.estimator}': its numbers overflow; raise influence.damping or choose"
                " another"
            )


def _block_squares(x: jax.Array, blocks: int) -> np.ndarray:
    """‖x‖² of every right-hand side and block, [r, blocks]."""
    wide = x.reshape(len(x), blocks, -1).astype(jnp.promote_types(x.dtype, jnp.float32))
    # The largest first: squares of small gradients underflow.
    largest = jnp.max(jnp.abs(wide), axis=2, keepdims=True)
    scaled = wide / jnp.where(largest > 0, largest, 1)
    found = jax.device_get((jnp.sum(scaled**2, axis=2), largest[..., 0]))
    share, scale = (np.asarray(value, np.float64) for value in found)
    return np.asarray(share * scale**2)


@functools.partial(jax.jit, static_argnames=("loss_fn", "placement"))
def _rows_finite(loss_fn: LossFn, placement: Placement, params: Tree, batch: Batch) -> jax.Array:
    l_B, w_B = loss_fn(params, batch)
    return placement.replicated(jnp.isfinite(l_B) & jnp.isfinite(w_B))
