"""The two sides of s_iᵀ∂_β∇L = ∇Q_iᵀt_j: solve for the references, or for the domains.

Each side solves for a chunk of right-hand sides, scores the other side's examples along the
solutions, and forgets them: no more than a chunk of solutions exists.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ideal_jax.errors import UserError
from ideal_jax.influence.interface import Estimator
from ideal_jax.influence.passes import Placement, combine, stack
from ideal_jax.influence.problem import LossFn, Progress, Sample, Tree
from ideal_jax.influence.scores import MeanGradient, Scores, example_scores, mean_gradient


class Solver(NamedTuple):
    """A fitted estimator and what both sides share; ``chunk`` right-hand sides at a time."""

    loss_fn: LossFn
    params: Tree
    estimator: Estimator
    state: Any
    chunk: int
    progress: Progress


class TrainingSide(NamedTuple):
    """Scores of the training examples.

    Attributes:
      scores: by domain, s_iᵀ∇ℓ(x): [R, rows].
      outside: by domain, Σ_i v_i s_iᵀ∇ℓ(x) over the uncovered parameters alone, [1, rows]; None
        where the estimator treats all alike.
      loss: float64[R], Q_i.
      residuals: float64[R].
      iterations: int64[R].
    """

    scores: dict[str, Scores]
    outside: dict[str, Scores] | None
    loss: np.ndarray
    residuals: np.ndarray
    iterations: np.ndarray


class ReferenceSide(NamedTuple):
    """Scores of the reference examples.

    Attributes:
      scores: by reference, −t_jᵀ∇ℓ(x): [n, rows].
      residuals: float64[n].
    """

    scores: dict[str, Scores]
    residuals: np.ndarray


def training_side(
    solver: Solver,
    references: Mapping[str, Sample],
    domains: Mapping[str, Sample],
    v: np.ndarray,
) -> TrainingSide:
    """Solves for s_i and scores the domains' examples."""
    placement = Placement.of(solver.params).stacked()
    names = list(references)
    chunks: dict[str, list[Scores]] = {name: [] for name in domains}
    outside: dict[str, np.ndarray] = {}
    losses, residuals, iterations = [], [], []
    for start in range(0, len(names), solver.chunk):
        part = names[start : start + solver.chunk]
        means = [_mean(solver, "reference", name, references[name]) for name in part]
        losses += [mean.loss for mean in means]
        gradients = stack([mean.gradient for mean in means], placement)
        del means
        solved = solver.estimator.solve(solver.state, gradients, progress=solver.progress)
        del gradients
        residuals.append(solved.residuals)
        iterations.append(solved.iterations)
        tangents = solved.solutions
        del solved
        if solver.estimator.uncovered is not None:
            rest = solver.estimator.uncovered(solver.state, tangents)
            rest = combine(v[None, start : start + len(part)], rest, placement)
            tangents = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), tangents, rest)
        for name, sample in domains.items():
            x = _scores(solver, tangents, sample, "training scores")
            chunks[name].append(Scores(x.scores[: len(part)], x.weights))
            outside[name] = outside.get(name, 0) + x.scores[len(part) :]
    return TrainingSide(
        scores={
            name: Scores(np.vstack([x.scores for x in parts]), parts[0].weights)
            for name, parts in chunks.items()
        },
        outside={name: Scores(outside[name], parts[0].weights) for name, parts in chunks.items()}
        if solver.estimator.uncovered is not None
        else None,
        loss=np.array(losses),
        residuals=np.concatenate(residuals),
        iterations=np.concatenate(iterations),
    )


def reference_side(
    solver: Solver,
    references: Mapping[str, Sample],
    domains: Mapping[str, Sample],
    mixed: np.ndarray,
) -> ReferenceSide:
    """Solves for t_j, with ∂_{β_j}∇L = −Σ_k M_jk ḡ_k, and scores the references' examples.

    The mean gradients ḡ_k are mixed before the solve: their common part, which centring removes,
    is by far the largest, and would leave its residual in the difference.
    """
    placement = Placement.of(solver.params).stacked()
    means = stack([_mean(solver, "domain", k, domains[k]).gradient for k in domains], placement)
    chunks: dict[str, list[Scores]] = {name: [] for name in references}
    residuals = []
    for start in range(0, len(domains), solver.chunk):
        derivatives = combine(-mixed[start : start + solver.chunk], means, placement)
        solved = solver.estimator.solve(solver.state, derivatives, progress=solver.progress)
        residuals.append(solved.residuals)
        for name, sample in references.items():
            chunks[name].append(_scores(solver, solved.solutions, sample, "reference scores"))
    return ReferenceSide(
        scores={
            name: Scores(-np.vstack([x.scores for x in parts]), parts[0].weights)
            for name, parts in chunks.items()
        },
        residuals=np.concatenate(residuals),
    )


def _mean(solver: Solver, kind: str, name: str, sample: Sample) -> MeanGradient:
    mean = mean_gradient(
        solver.loss_fn,
        solver.params,
        sample,
        phase=f"{kind} gradients",
        progress=solver.progress,
    )
    if not mean.weight > 0:
        raise UserError(f"{kind} '{name}' has no supervised weight: all its w(x) are 0")
    return mean


def _scores(solver: Solver, tangents: Tree, sample: Sample, phase: str) -> Scores:
    return example_scores(
        solver.loss_fn, solver.params, tangents, sample, phase=phase, progress=solver.progress
    )
