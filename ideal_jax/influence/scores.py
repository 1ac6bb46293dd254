"""Gradients of samples of examples, and per-example directional derivatives."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ideal_jax.influence.passes import Placement, accumulate, cast_like, wide
from ideal_jax.influence.problem import (
    Batch,
    LossFn,
    Problem,
    Progress,
    Sample,
    Tree,
    example_loss,
    leaf_indices,
    leaf_name,
    other_leaves,
    silent,
)


class MeanGradient(NamedTuple):
    """Σ∇ℓ / Σw over a sample, with Σℓ / Σw (nats per unit of weight) and Σw; NaN where Σw = 0."""

    gradient: Tree
    loss: float
    weight: float


class Scores(NamedTuple):
    """One column per example, in the order of the batches, padding included.

    Attributes:
      scores: float64[r, examples], vᵀ∇ℓ(x) for each tangent v.
      weights: float64[examples], w(x); 0 in padding.
    """

    scores: np.ndarray
    weights: np.ndarray

    def joined(self, other: "Scores") -> "Scores":
        """These rows and then the other's."""
        return Scores(
            np.concatenate([self.scores, other.scores], axis=1),
            np.concatenate([self.weights, other.weights]),
        )


def mean_gradient(
    loss_fn: LossFn,
    params: Tree,
    sample: Sample,
    *,
    left_out: frozenset[str] = frozenset(),
    phase: str = "gradients",
    progress: Progress = silent,
) -> MeanGradient:
    """The gradient of the sample's mean loss: sums over all batches, one division.

    It has None for the leaves of the names ``left_out``.
    """
    placement = Placement.of(without(params, left_out))
    gradient, loss, weight = accumulate(
        lambda batch: gradient_sums(loss_fn, placement, left_out, params, batch),
        sample.batches,
        phase=phase,
        progress=progress,
    )
    # Divided on the devices: a sample without weight gives NaN, which the caller can name.
    mean = jax.tree.map(lambda x: x / weight, gradient)
    return MeanGradient(mean, float(loss / weight), float(weight))


def example_scores(
    problem: Problem | LossFn,
    params: Tree,
    tangents: Tree,
    sample: Sample,
    *,
    phase: str = "scores",
    progress: Progress = silent,
) -> Scores:
    """vᵀ∇ℓ(x) for every example x and every tangent v on the leading axis of ``tangents``.

    By ``Problem.scores`` where there is one. Without it, and for one tangent, in forward mode: the
    primal is computed once a batch, no residuals are kept, no gradient exists. No v goes along
    leaves that are None in ``tangents``.
    """
    placement, count = Placement.of(params), len(jax.tree.leaves(tangents)[0])
    progress(phase, 0, len(sample.batches))
    if not len(sample.batches):  # a stage may add examples to some domains only
        return Scores(np.zeros((count, 0)), np.zeros(0))
    rows: list[tuple] = []
    for done, batch in enumerate(sample.batches, start=1):
        rows.append(batch_scores(problem, placement, params, tangents, batch))
        # Fetch the batch before this one: the device always has work queued.
        if done > 1:
            rows[-2] = jax.device_get(rows[-2])
            progress(phase, done - 1, len(sample.batches))
    rows[-1] = jax.device_get(rows[-1])
    progress(phase, len(rows), len(rows))
    return Scores(
        np.concatenate([scores for scores, _ in rows], axis=1, dtype=np.float64),
        np.concatenate([weights for _, weights in rows], dtype=np.float64),
    )


@functools.partial(jax.jit, static_argnames=("loss_fn", "placement", "left_out"))
def gradient_sums(
    loss_fn: LossFn, placement: Placement, left_out: frozenset[str], params: Tree, batch: Batch
) -> tuple[Tree, jax.Array, jax.Array]:
    """(Σ∇ℓ, Σℓ, Σw) over one batch; ``placement`` is that of the gradient."""

    def total(part: Tree) -> tuple[jax.Array, jax.Array]:
        l_B, w_B = loss_fn(_filled(part, params), batch)
        return jnp.sum(wide(l_B)), jnp.sum(wide(w_B))

    gradient_of = jax.value_and_grad(total, has_aux=True)
    (loss, weight), gradient = gradient_of(without(params, left_out))
    gradient = placement.like(jax.tree.map(wide, gradient))
    return gradient, placement.replicated(loss), placement.replicated(weight)


@functools.partial(jax.jit, static_argnames=("problem", "placement"))
def batch_scores(
    problem: Problem | LossFn, placement: Placement, params: Tree, tangents: Tree, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """(vᵀ∇ℓ [r, B], w_B) of one batch."""
    several = len(jax.tree.leaves(tangents)[0]) > 1
    if several and isinstance(problem, Problem) and problem.scores is not None:
        return placement.replicated(problem.scores(params, tangents, batch))
    loss_fn = example_loss(problem)
    part = without(params, other_leaves(params, leaf_indices(tangents)))

    def score(tangent: Tree) -> tuple[jax.Array, jax.Array]:
        _, l_dot_B, w_B = jax.jvp(
            lambda p: loss_fn(_filled(p, params), batch),
            (part,),
            (cast_like(tangent, part),),
            has_aux=True,
        )
        return wide(l_dot_B), wide(w_B)

    return placement.replicated(jax.vmap(score, out_axes=(0, None))(tangents))


def without(params: Tree, left_out: frozenset[str]) -> Tree:
    """The parameters with None for the leaves of these names."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: None if leaf_name(path) in left_out else x, params
    )


def _filled(part: Tree, params: Tree) -> Tree:
    """The parameters, those of a part from there."""
    return jax.tree.map(
        lambda x, p: p if x is None else x, part, params, is_leaf=lambda x: x is None
    )
