"""The two sides of s_iᵀ∂_β∇L = ∇Q_iᵀt_j: solve for the references, or for the domains.

Each side solves for a chunk of right-hand sides, scores the other side's examples along the
solutions, and forgets them: no more than a chunk of solutions exists, unless they are kept to score
more examples later.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ideal_jax.errors import UserError
from ideal_jax.influence.interface import Estimator
from ideal_jax.influence.passes import Placement, combine, stack
from ideal_jax.influence.problem import LossFn, Progress, Sample, Tree
from ideal_jax.influence.ratio import mixing
from ideal_jax.influence.scores import MeanGradient, Scores, example_scores, mean_gradient


class Solver(NamedTuple):
    """A fitted estimator and what both sides share; ``chunk`` right-hand sides at a time."""

    loss_fn: LossFn
    params: Tree
    estimator: Estimator
    state: Any
    chunk: int
    progress: Progress


class Solutions(NamedTuple):
    """s_i of a chunk of references.

    Attributes:
      tangents: stacked; behind them Σ_i v_i s_i of the chunk over the uncovered parameters alone,
        where the estimator treats those differently.
      loss: float64[chunk], Q_i.
      residuals, iterations: of the solves.
    """

    tangents: Tree
    loss: np.ndarray
    residuals: np.ndarray
    iterations: np.ndarray


class TrainingSide(NamedTuple):
    """Scores of the training examples.

    Attributes:
      scores: by domain, s_iᵀ∇ℓ(x): [R, examples].
      outside: by domain, Σ_i v_i s_iᵀ∇ℓ(x) over the uncovered parameters alone, [1, examples];
        None where the estimator treats all alike.
      loss: float64[R], Q_i.
      residuals: float64[R].
      iterations: int64[R].
    """

    scores: dict[str, Scores]
    outside: dict[str, Scores] | None
    loss: np.ndarray
    residuals: np.ndarray
    iterations: np.ndarray

    def joined(self, other: "TrainingSide") -> "TrainingSide":
        """With the scores of further examples."""
        outside = None
        if self.outside is not None and other.outside is not None:
            outside = {name: x.joined(other.outside[name]) for name, x in self.outside.items()}
        scores = {name: x.joined(other.scores[name]) for name, x in self.scores.items()}
        return self._replace(scores=scores, outside=outside)


class ReferenceSide(NamedTuple):
    """Scores of the reference examples.

    Attributes:
      scores: by reference, −t_jᵀ∇ℓ(x): [n, examples].
      residuals: float64[n].
    """

    scores: dict[str, Scores]
    residuals: np.ndarray


def reference_solutions(
    solver: Solver, references: Mapping[str, Sample], v: np.ndarray
) -> Iterator[Solutions]:
    """Solves for s_i, a chunk of references at a time."""
    placement = Placement.of(solver.params).stacked()
    names = list(references)
    for start in range(0, len(names), solver.chunk):
        part = names[start : start + solver.chunk]
        means = [_mean(solver, "reference", name, references[name]) for name in part]
        losses = np.array([mean.loss for mean in means])
        gradients = stack([mean.gradient for mean in means], placement)
        del means
        solved = solver.estimator.solve(solver.state, gradients, progress=solver.progress)
        del gradients
        tangents = solved.solutions
        if solver.estimator.uncovered is not None:
            rest = solver.estimator.uncovered(solver.state, tangents)
            rest = combine(v[None, start : start + len(part)], rest, placement)
            tangents = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), tangents, rest)
        yield Solutions(tangents, losses, solved.residuals, solved.iterations)


def training_side(
    solver: Solver, solutions: Iterable[Solutions], domains: Mapping[str, Sample]
) -> TrainingSide:
    """Scores the domains' examples along the solutions."""
    chunks: dict[str, list[Scores]] = {name: [] for name in domains}
    outside: dict[str, np.ndarray] = {}
    facts = []
    for solved in solutions:
        size = len(solved.loss)
        facts.append(solved[1:])
        for name, sample in domains.items():
            x = _scores(solver, solved.tangents, sample, "training scores")
            chunks[name].append(Scores(x.scores[:size], x.weights))
            outside[name] = outside.get(name, 0) + x.scores[size:]
    loss, residuals, iterations = map(np.concatenate, zip(*facts, strict=True))
    return TrainingSide(
        scores={
            name: Scores(np.vstack([x.scores for x in parts]), parts[0].weights)
            for name, parts in chunks.items()
        },
        outside={name: Scores(outside[name], parts[0].weights) for name, parts in chunks.items()}
        if solver.estimator.uncovered is not None
        else None,
        loss=loss,
        residuals=residuals,
        iterations=iterations,
    )


def reference_side(
    solver: Solver,
    references: Mapping[str, Sample],
    domains: Mapping[str, Sample],
    *,
    centred: bool,
) -> ReferenceSide:
    """Solves for t_j, with ∂_{β_j}∇L = −Σ_k M_jk ḡ_k, and scores the references' examples.

    The mean gradients ḡ_k are mixed before the solve: their common part, which centring removes,
    is by far the largest, and would leave its residual in the difference.
    """
    placement = Placement.of(solver.params).stacked()
    found = {name: _mean(solver, "domain", name, sample) for name, sample in domains.items()}
    weights = np.ones(len(domains))
    if not solver.estimator.domain_mean:
        weights = np.array([_weight(domains[k], mean) for k, mean in found.items()])
    mixed = mixing(weights / weights.sum(), centred=centred)
    means = stack([mean.gradient for mean in found.values()], placement)
    del found
    chunks: dict[str, list[Scores]] = {name: [] for name in references}
    residuals = []
    for start in range(0, len(domains), solver.chunk):
        derivatives = combine(-mixed[start : start + solver.chunk], means, placement)
        solved = solver.estimator.solve(solver.state, derivatives, progress=solver.progress)
        residuals.append(solved.residuals)
        for name, sample in references.items():
            chunks[name].append(_scores(solver, solved.solutions, sample, "reference scores"))
            _refuse_weightless("reference", name, chunks[name][-1].weights.sum())
    return ReferenceSide(
        scores={
            name: Scores(-np.vstack([x.scores for x in parts]), parts[0].weights)
            for name, parts in chunks.items()
        },
        residuals=np.concatenate(residuals),
    )


def _weight(sample: Sample, mean: MeanGradient) -> float:
    """W_j: known, or N_j times the mean of the sample."""
    return sample.size * mean.weight / sample.drawn if sample.weight is None else sample.weight


def _mean(solver: Solver, kind: str, name: str, sample: Sample) -> MeanGradient:
    mean = mean_gradient(
        solver.loss_fn,
        solver.params,
        sample,
        phase=f"{kind} gradients",
        progress=solver.progress,
    )
    _refuse_weightless(kind, name, mean.weight)
    return mean


def _refuse_weightless(kind: str, name: str, weight: float) -> None:
    if not weight > 0:
        raise UserError(f"{kind} '{name}' has no supervised weight: all its w(x) are 0")


def _scores(solver: Solver, tangents: Tree, sample: Sample, phase: str) -> Scores:
    return example_scores(
        solver.loss_fn, solver.params, tangents, sample, phase=phase, progress=solver.progress
    )
