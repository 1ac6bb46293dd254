"""The two sides of s_iᵀ∂_β∇L = ∇Q_iᵀt_j: solve for the references, or for the domains.

Each side solves for a chunk of right-hand sides, scores the other side's examples along the
solutions, and forgets them: no more than a chunk of solutions exists, unless they are kept to score
more examples later.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ideal_jax.influence.checks import (
    all_finite,
    blame_losses,
    check_covered,
    check_solved,
    refuse_not_finite,
)
from ideal_jax.influence.interface import Estimator, Fitted
from ideal_jax.influence.options import Options
from ideal_jax.influence.passes import Placement, combine, split, stack
from ideal_jax.influence.problem import (
    CURVATURE,
    Batch,
    LossFn,
    Problem,
    Progress,
    Sample,
    Tree,
    check_weight,
    example_loss,
)
from ideal_jax.influence.ratio import mixing
from ideal_jax.influence.scores import (
    MeanGradient,
    Scores,
    example_scores,
    mean_gradient,
    without,
)
from ideal_jax.influence.solve import Solved


class Solver(NamedTuple):
    """A fitted estimator and what both sides share; ``chunk`` right-hand sides at a time.

    Right-hand sides and solutions have None for the parameters that the fit leaves out.
    """

    problem: Problem | LossFn
    params: Tree
    name: str
    estimator: Estimator
    options: Options
    curvature: Sequence[Batch]
    fitted: Fitted
    chunk: int
    progress: Progress

    def solve(self, kind: str, names: Sequence[str], stacked: Tree) -> Solved:
        """(H + λI)⁻¹ g for the gradients of these references or domains.

        Raises:
          UserError: a gradient where there is no curvature, or a solve that failed.
        """
        check_covered(self.fitted.block_curvature, kind, names, stacked)
        solved = self.estimator.solve(self.fitted.state, stacked, progress=self.progress)
        if not np.isfinite(solved.residuals).all():
            # The gradients are finite. Damping cures what only overflows.
            blame_losses(self.problem, self.params, CURVATURE, self.curvature)
        check_solved(self.name, self.estimator.needs, self.options, kind, names, solved)
        return solved


class Solutions(NamedTuple):
    """s_i of a chunk of references.

    Attributes:
      tangents: stacked; behind them Σ_i v_i s_i of the chunk for each of ``parts``.
      parts: names of the estimator's parts whose share of α is told.
      loss: float64[chunk], Q_i.
      residuals, iterations: of the solves.
    """

    tangents: Tree
    parts: tuple[str, ...]
    loss: np.ndarray
    residuals: np.ndarray
    iterations: np.ndarray


class TrainingSide(NamedTuple):
    """Scores of the training examples.

    Attributes:
      scores: by domain, s_iᵀ∇ℓ(x): [R, examples].
      parts: names of the estimator's parts.
      by_part: by domain, Σ_i v_i s_iᵀ∇ℓ(x) of each part alone, [parts, examples].
      loss: float64[R], Q_i.
      residuals: float64[R].
      iterations: int64[R].
    """

    scores: dict[str, Scores]
    parts: tuple[str, ...]
    by_part: dict[str, Scores]
    loss: np.ndarray
    residuals: np.ndarray
    iterations: np.ndarray

    def joined(self, other: "TrainingSide") -> "TrainingSide":
        """With the scores of further examples."""
        return self._replace(
            scores={name: x.joined(other.scores[name]) for name, x in self.scores.items()},
            by_part={name: x.joined(other.by_part[name]) for name, x in self.by_part.items()},
        )


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
    placement = _placement(solver)
    names = list(references)
    for start in range(0, len(names), solver.chunk):
        part = names[start : start + solver.chunk]
        means = [_mean(solver, "reference", name, references[name]) for name in part]
        losses = np.array([mean.loss for mean in means])
        gradients = stack([mean.gradient for mean in means], placement)
        del means
        solved = solver.solve("reference", part, gradients)
        del gradients
        facts = losses, solved.residuals, solved.iterations
        found = {"all": solved.solutions}
        if solver.estimator.parts is not None:
            found = solver.estimator.parts(solver.fitted.state, solved.solutions)
        del solved  # what is not scored is not held meanwhile
        trees = [found.pop("all")]
        names_of_parts, share = tuple(found), v[None, start : start + len(part)]
        trees += [combine(share, found.pop(name), placement) for name in names_of_parts]
        if len(trees) > 1:
            trees = [jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)]
        yield Solutions(trees.pop(), names_of_parts, *facts)


def training_side(
    solver: Solver, solutions: Iterable[Solutions], domains: Mapping[str, Sample]
) -> TrainingSide:
    """Scores the domains' examples along the solutions."""
    chunks: dict[str, list[Scores]] = {name: [] for name in domains}
    by_part: dict[str, np.ndarray] = {}
    facts: list[tuple[np.ndarray, ...]] = []
    names: tuple[str, ...] = ()
    for solved in solutions:
        size, names = len(solved.loss), solved.parts
        facts.append((solved.loss, solved.residuals, solved.iterations))
        for name, sample in domains.items():
            x = _scores(solver, "domain", name, sample, solved.tangents, "training scores")
            chunks[name].append(Scores(x.scores[:size], x.weights))
            by_part[name] = by_part.get(name, 0) + x.scores[size:]
    loss, residuals, iterations = map(np.concatenate, zip(*facts, strict=True))
    weights = {name: parts[0].weights for name, parts in chunks.items()}
    return TrainingSide(
        scores={
            name: Scores(np.vstack([x.scores for x in parts]), weights[name])
            for name, parts in chunks.items()
        },
        parts=names,
        by_part={name: Scores(x, weights[name]) for name, x in by_part.items()},
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
    placement = _placement(solver)
    found = {name: _mean(solver, "domain", name, sample) for name, sample in domains.items()}
    weights = np.ones(len(domains))
    if not solver.estimator.domain_mean:
        weights = np.array([_weight(domains[k], mean) for k, mean in found.items()])
    mixed = mixing(weights / weights.sum(), centred=centred)
    means = stack([mean.gradient for mean in found.values()], placement)
    del found
    derivatives = combine(-mixed, means, placement)
    del means
    chunks: dict[str, list[Scores]] = {name: [] for name in references}
    residuals: list[np.ndarray] = []
    while sum(map(len, residuals)) < len(domains):
        part, derivatives = split(derivatives, solver.chunk, placement)
        start = sum(map(len, residuals))
        solved = solver.solve("domain", list(domains)[start : start + solver.chunk], part)
        residuals.append(solved.residuals)
        del part  # what is not scored is not held meanwhile
        for name, sample in references.items():
            x = _scores(solver, "reference", name, sample, solved.solutions, "reference scores")
            check_weight(f"reference '{name}'", x.weights.sum())
            chunks[name].append(x)
    return ReferenceSide(
        scores={
            name: Scores(-np.vstack([x.scores for x in parts]), parts[0].weights)
            for name, parts in chunks.items()
        },
        residuals=np.concatenate(residuals),
    )


def _placement(solver: Solver) -> Placement:
    """Of right-hand sides and solutions."""
    return Placement.of(without(solver.params, solver.fitted.left_out)).stacked()


def _weight(sample: Sample, mean: MeanGradient) -> float:
    """W_j: known, or N_j times the mean of the sample."""
    return sample.size * mean.weight / sample.drawn if sample.weight is None else sample.weight


def _mean(solver: Solver, kind: str, name: str, sample: Sample) -> MeanGradient:
    """The mean gradient of a set that has weight, all of it finite."""
    mean = mean_gradient(
        example_loss(solver.problem),
        solver.params,
        sample,
        left_out=solver.fitted.left_out,
        phase=f"{kind} gradients",
        progress=solver.progress,
    )
    check_weight(f"{kind} '{name}'", mean.weight)
    if not (math.isfinite(mean.loss) and all_finite(mean.gradient)):
        refuse_not_finite(solver.problem, solver.params, f"{kind} '{name}'", sample.batches)
    return mean


def _scores(
    solver: Solver, kind: str, name: str, sample: Sample, tangents: Tree, phase: str
) -> Scores:
    """Scores of a set along the tangents, all of them finite."""
    found = example_scores(
        solver.problem, solver.params, tangents, sample, phase=phase, progress=solver.progress
    )
    if not (np.isfinite(found.scores).all() and np.isfinite(found.weights).all()):
        refuse_not_finite(solver.problem, solver.params, f"{kind} '{name}'", sample.batches)
    return found
