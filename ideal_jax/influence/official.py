"""The arithmetic of the IDEAL authors' released code, for comparison only.

Written from a description of it (their repository has no licence). For each tapped kernel, with A
and G the second moments of inputs and of output gradients (true labels), Q_A and Q_G their
eigenvectors in columns, and ḡ a mean gradient, it computes

    α_j = −⟨Q_A ∇Q Q_Gᵀ, λ ⊙ (Q_A ḡ_j Q_Gᵀ)⟩,     λ = mean over batches of (Q_A ḡ_batch Q_Gᵀ)²

which differs from EK-FAC in five ways: it divides by 1/λ and so multiplies by the curvature; it
rotates by the transposed eigenvectors; λ comes from gradients of whole batches, not of examples;
there is no damping; and ḡ_j is the mean over a domain, so that the domain's size is lost.
It also never adds up what several devices saw: to see what that does, score and fit on a share of
the data.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ideal_jax.influence import kfac
from ideal_jax.influence.blocks import Blocks, multiply_blocks
from ideal_jax.influence.checks import all_finite, refuse_not_finite
from ideal_jax.influence.interface import Fitted, Setting
from ideal_jax.influence.passes import Placement, accumulate
from ideal_jax.influence.problem import (
    CURVATURE,
    Batch,
    Problem,
    Progress,
    Tree,
    check_weight,
    leaf_name,
    other_leaves,
    require,
    silent,
)
from ideal_jax.influence.solve import Solved


def fit(setting: Setting) -> Fitted:
    """Eigenvectors of the factors, and λ in the basis that their transposes give."""
    problem = require(setting.problem, "official", "taps")
    placement = Placement.of(setting.params)
    sums = accumulate(
        lambda b: kfac.factor_sums(
            problem,
            "empirical",
            setting.options.max_factor,
            placement,
            setting.params,
            setting.key,
            b,
        ),
        setting.batches,
        phase="factors",
        progress=setting.progress,
    )
    check_weight(CURVATURE, float(sums.weight))
    bases = kfac.eigenbasis(problem, placement, sums)
    squares = accumulate(
        lambda b: batch_squares(problem, bases, setting.params, b),
        setting.batches,
        phase="eigenvalues",
        progress=setting.progress,
    )
    if not all_finite(squares):
        refuse_not_finite(problem, setting.params, CURVATURE, setting.batches)
    count = len(setting.batches)
    transposed = {
        name: basis._replace(
            inputs=jnp.swapaxes(basis.inputs, -1, -2),
            outputs=jnp.swapaxes(basis.outputs, -1, -2),
            eigenvalues=squares[name] / count,
        )
        for name, basis in bases.items()
    }
    undamped = {name: jnp.zeros(len(b.eigenvalues)) for name, b in transposed.items()}
    left_out = other_leaves(setting.params, transposed)
    return Fitted(Blocks(transposed, {}, undamped), 0.0, {}, left_out=left_out)


def solve(state: Blocks, stacked: Tree, *, progress: Progress = silent) -> Solved:
    """Not a solve: Q_Aᵀ (λ ⊙ (Q_A g Q_Gᵀ)) Q_G for every g, of the tapped kernels."""
    count = len(jax.tree.leaves(stacked)[0])
    # No residual: it is not the solution of a system.
    return Solved(multiply_blocks(state, stacked), np.zeros(count), np.zeros(count, np.int64))


@functools.partial(jax.jit, static_argnames="problem")
def batch_squares(
    problem: Problem, bases: dict[str, kfac.Basis], params: Tree, batch: Batch
) -> dict[str, jax.Array]:
    """The squares of a batch's mean gradient in the transposed basis, [L, I, O] by kernel."""

    def mean(p: Tree) -> jax.Array:
        l_B, w_B = problem.example_loss(p, batch)
        return jnp.sum(l_B) / jnp.sum(w_B)

    squares = {}
    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.grad(mean)(params)):
        basis = bases.get(leaf_name(path))
        if basis is not None:
            kernel = gradient.reshape(basis.eigenvalues.shape)
            back = (jnp.swapaxes(q, -1, -2) for q in (basis.inputs, basis.outputs))
            squares[leaf_name(path)] = jnp.square(jax.vmap(_rotated)(kernel, *back))
    return squares


def _rotated(v_IxO: jax.Array, q_a: jax.Array, q_g: jax.Array) -> jax.Array:
    return kfac.on_outputs(kfac.on_inputs(v_IxO, q_a), q_g)
