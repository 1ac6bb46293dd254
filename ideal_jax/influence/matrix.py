"""The influence of every domain on every reference objective, with error bars.

    A_ij = ∂Q_i/∂β_j = −(1/W) Σ_{x∈D_j} s_iᵀ (∇ℓ(x) − w(x) ∇L_0),   s_i = (H + λI)⁻¹ ∇Q_i

One reverse pass over the references gives ∇Q_i, the estimator s_i, one pass of scores over the
training sample every s_iᵀ∇ℓ(x). For the reference sets' part of the error the same is done from the
other side: t_j = (H + λI)⁻¹ ∂_{β_j}∇L_β and one pass over references, −t_jᵀ∇ℓ(x).
"""

import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ideal_jax.errors import UserError
from ideal_jax.influence.bootstrap import Intervals, intervals
from ideal_jax.influence.checks import check_fitted, check_matrix
from ideal_jax.influence.estimators import check_inversion, find_estimator
from ideal_jax.influence.interface import Estimator, Setting
from ideal_jax.influence.options import Options
from ideal_jax.influence.problem import (
    Batch,
    LossFn,
    Problem,
    Progress,
    Sample,
    Tree,
    silent,
)
from ideal_jax.influence.ratio import (
    Estimate,
    domain_weights,
    from_reference,
    from_training,
)
from ideal_jax.influence.scores import Scores
from ideal_jax.influence.sides import (
    ReferenceSide,
    Solutions,
    Solver,
    TrainingSide,
    reference_side,
    reference_solutions,
    training_side,
)
from ideal_jax.mixture.state import InfluenceMatrix

DEFAULTS = Options()


class Diagnostics(NamedTuple):
    """What an estimate knows beside its matrix.

    Attributes:
      scores: by domain, s_iᵀ∇ℓ(x) for every scored example: [R, examples] and their weights. The
        most negative s_iᵀ(∇ℓ − w∇L_0) are the examples that hurt i most.
      reference_loss: float64[R], Q_i in nats per unit of weight.
      adjoint: float64[R, n], the matrix computed from the references' side; it differs from
        ``matrix`` by what the solves leave, when all examples of both sides were scored.
      intervals: of the matrix and of α, by bootstrap, at the ``confidence`` asked for.
      alpha_parts: float64[n], α through a part of the parameters alone, where the estimator treats
        them differently: "uncovered", those outside the tapped layers, is included in α;
        "unimportant", the layers that do not count, is not.
      block_damping: absolute λ of each block, by parameter.
      smallest_eigenvalue: of the curvature before damping, where the estimator looks for it.
      iterations: int64[R], conjugate-gradient products for each reference.
      domain_residual: float64[n], residuals of the solves behind ``stderr_reference``.
      stages: how many of the samples of training examples were scored.
      ended: why no more were: a word of ``ENDINGS``.
    """

    scores: dict[str, Scores]
    reference_loss: np.ndarray
    adjoint: np.ndarray
    intervals: Intervals
    alpha_parts: dict[str, np.ndarray]
    block_damping: dict[str, tuple[float, ...]]
    smallest_eigenvalue: float | None
    iterations: np.ndarray
    domain_residual: np.ndarray
    stages: int
    ended: str


# Why the scoring of training examples ended.
ENDINGS = {
    "given": "all the examples given were scored",
    "signs": "the sign of every α is known",
    "references": "what is not known of the signs of α is the references' to tell",
}


def influence_matrix(
    problem: Problem | LossFn,
    params: Tree,
    *,
    domains: Mapping[str, Sample],
    references: Mapping[str, Sample],
    curvature: Sequence[Batch] = (),
    estimator: str = "ekfac",
    damping: float = 0.1,
    damping_mode: str = "relative",
    centred: bool = True,
    weights: Mapping[str, float] | None = None,
    key: jax.Array | None = None,
    fisher: str = "sampled",
    uncovered: str = "diagonal",
    inversion: str = "damped",
    important: float = 1.0,
    max_factor: int = 8192,
    layer_groups: int = 1,
    tolerance: float = 1e-3,
    iterations: int = 100,
    tangents: int | None = None,
    second_moment: Tree | None = None,
    progress: Progress = silent,
) -> InfluenceMatrix:
    """Domain influence A_ij = ∂Q_i/∂β_j at ``params``.

    ``estimate`` with the options of ``Options`` spelt out; see both.
    """
    options = Options(
        damping=damping,
        damping_mode=damping_mode,
        fisher=fisher,
        uncovered=uncovered,
        inversion=inversion,
        important=important,
        max_factor=max_factor,
        layer_groups=layer_groups,
        tolerance=tolerance,
        iterations=iterations,
    )
    return estimate(
        problem,
        params,
        domains=domains,
        references=references,
        curvature=curvature,
        estimator=estimator,
        options=options,
        centred=centred,
        weights=weights,
        key=key,
        tangents=tangents,
        second_moment=second_moment,
        progress=progress,
    )[0]


def estimate(
    problem: Problem | LossFn,
    params: Tree,
    *,
    domains: Mapping[str, Sample],
    references: Mapping[str, Sample],
    curvature: Sequence[Batch] = (),
    estimator: str = "ekfac",
    options: Options = DEFAULTS,
    centred: bool = True,
    weights: Mapping[str, float] | None = None,
    key: jax.Array | None = None,
    tangents: int | None = None,
    second_moment: Tree | None = None,
    more: Sequence[Mapping[str, Sample]] = (),
    spread: Mapping[str, Sample] | None = None,
    confidence: float = 0.95,
    progress: Progress = silent,
) -> tuple[InfluenceMatrix, Diagnostics]:
    """Domain influence with what is known about how it was computed.

    Args:
      problem: a ``Problem``; a plain ``(params, batch) -> (ℓ_B, w_B)`` is enough for "identity",
        "adam", and with an absolute damping for "hessian_cg", with empirical labels for
        "fisher_diag".
      params: where the influence is taken; results of their size keep their shardings.
      domains: training examples of each domain.
      references: held-out examples of each capability.
      curvature: batches of training examples in the mixture's proportions.
      estimator: a name in ``ESTIMATORS``.
      options: damping, Fisher and solver.
      centred: whether the derivative of the normaliser is included; then Σ_j A_ij = 0.
      weights: v_i of α = vᵀA by reference; None: 1/R each.
      key: for sampled labels and probes; None: a fixed one.
      tangents: right-hand sides solved and scored at a time; None: all. Conjugate gradients hold
        five parameter trees for each, beside n domain gradients.
      second_moment: v̂ of the optimizer, for "adam".
      more: further examples of the domains, sample after sample, scored only while they can settle
        the sign of some α_j: while it is open, and would not be if the references were all that
        is in doubt. All R solutions are then kept, so ``tangents`` saves no memory; and gradients
        are taken over all these examples, scored or not.
      spread: reference examples, at least two each, whose scores tell the references' part of the
        error; None: all of them. They are scored along n tangents.
      confidence: level of the bootstrap intervals, and at which a sign counts as known.
      progress: called with (phase, done, total): 0 first, and total when its results are there.

    Raises:
      UserError: an unknown estimator, a piece the problem lacks, a sample that is too small or has
        no weight, a loss or a derivative that is not finite, a gradient where the curvature is 0,
        or a solve, of either side, whose residual is 1 or more.
    """
    chosen = find_estimator(estimator)
    check_inversion(estimator, options.inversion)
    spread = references if spread is None else spread
    for kind, samples in (("domain", domains), ("reference", references), ("reference", spread)):
        _check(kind, samples)
    v = _reference_weights(references, weights)
    key = jax.random.key(0) if key is None else key
    fitted = chosen.fit(Setting(problem, params, curvature, key, options, second_moment, progress))
    check_fitted(problem, params, curvature, fitted)
    chunk = tangents or max(len(references), len(domains))
    solver = Solver(problem, params, estimator, chosen, options, curvature, fitted, chunk, progress)

    centred = centred and not chosen.domain_mean
    z = float(statistics.NormalDist().inv_cdf((1 + confidence) / 2))
    every = functools.reduce(_joined, more, dict(domains))
    backward = reference_side(solver, spread, every, centred=centred)
    held = _reference_part(references, spread, backward)
    solutions: Iterable[Solutions] = reference_solutions(solver, references, v)
    if more:
        solutions = list(solutions)
    side = training_side(solver, solutions, domains)
    train = _training_part(chosen, domains, side, v, centred)
    stages, ended = 1, _ending(train.estimate, v**2 @ held.variance, z)
    for further in more:
        if ended != "given":
            break
        domains = _joined(domains, further)
        side = side.joined(training_side(solver, solutions, further))
        train = _training_part(chosen, domains, side, v, centred)
        stages, ended = stages + 1, _ending(train.estimate, v**2 @ held.variance, z)
    del solutions

    matrix = InfluenceMatrix(
        references=tuple(references),
        domains=tuple(domains),
        matrix=train.estimate.matrix[:-1],
        stderr=np.sqrt(train.estimate.variance[:-1] + held.variance),
        alpha=train.estimate.matrix[-1],
        alpha_stderr=np.sqrt(train.estimate.variance[-1] + v**2 @ held.variance),
        stderr_train=np.sqrt(train.estimate.variance[:-1]),
        stderr_reference=np.sqrt(held.variance),
        common_mode=_common_mode(train.uncentred),
        shares=train.shares,
        examples_used=sum(sample.drawn for sample in domains.values()),
        estimator=estimator,
        damping=fitted.damping,
        damping_mode=options.damping_mode,
        damping_value=options.damping,
        solve_residual=side.residuals,
        centred=centred,
    )
    check_matrix(matrix)
    return matrix, Diagnostics(
        scores=side.scores,
        reference_loss=side.loss,
        adjoint=held.matrix,
        intervals=intervals(
            list(zip(train.samples, side.scores.values(), strict=True)),
            [(spread[name], x, references[name].drawn) for name, x in backward.scores.items()],
            v,
            centred=centred,
            level=confidence,
        ),
        alpha_parts=train.parts,
        block_damping=fitted.block_damping,
        smallest_eigenvalue=fitted.smallest_eigenvalue,
        iterations=side.iterations,
        domain_residual=backward.residuals,
        stages=stages,
        ended=ended,
    )


class _TrainingPart(NamedTuple):
    """What the training examples' scores say: A with α as its last row, and beside it."""

    estimate: Estimate
    uncentred: np.ndarray  # float64[n], α without the derivative of the normaliser
    parts: dict[str, np.ndarray]  # float64[n], α through each part
    shares: np.ndarray  # float64[n], W_j / W
    samples: list[Sample]  # as they count


def _training_part(
    estimator: Estimator,
    domains: Mapping[str, Sample],
    side: TrainingSide,
    v: np.ndarray,
    centred: bool,
) -> _TrainingPart:
    scored = list(side.scores.values())
    weights = domain_weights(list(domains.values()), scored)
    samples = list(domains.values())
    if estimator.domain_mean:
        samples = [s._replace(weight=1.0) for s in samples]
    with_alpha = [x._replace(scores=np.vstack([x.scores, v @ x.scores])) for x in scored]
    by_part = from_training(samples, list(side.by_part.values()), centred=centred).matrix
    return _TrainingPart(
        estimate=from_training(samples, with_alpha, centred=centred),
        uncentred=from_training(samples, with_alpha, centred=False).matrix[-1],
        parts=dict(zip(side.parts, by_part, strict=True)),
        shares=weights / weights.sum(),
        samples=samples,
    )


def _reference_part(
    references: Mapping[str, Sample], spread: Mapping[str, Sample], side: ReferenceSide
) -> Estimate:
    """A from the references' side with the variance that is theirs, [R, n]."""
    rows = [
        from_reference(spread[name], x, references[name].drawn) for name, x in side.scores.items()
    ]
    return Estimate(np.stack([r.matrix for r in rows]), np.stack([r.variance for r in rows]))


def _joined(one: Mapping[str, Sample], other: Mapping[str, Sample]) -> dict[str, Sample]:
    return {name: sample.joined(other[name]) for name, sample in one.items()}


def _ending(train: Estimate, variance_reference: np.ndarray, z: float) -> str:
    """Whether more training examples could still settle the sign of some α_j ("given": yes)."""
    alpha = np.abs(train.matrix[-1])
    unknown = alpha <= z * np.sqrt(train.variance[-1] + variance_reference)
    hopeless = alpha <= z * np.sqrt(variance_reference)
    if not unknown.any():
        return "signs"
    return "given" if np.any(unknown & ~hopeless) else "references"


def _common_mode(alpha: np.ndarray) -> float:
    """|Σα| / Σ|α|: how much of the uncentred influence is "train more", of anything."""
    total = np.abs(alpha).sum()
    return float(abs(alpha.sum()) / total) if total else 0.0


def _reference_weights(
    references: Mapping[str, Sample], weights: Mapping[str, float] | None
) -> np.ndarray:
    if weights is None:
        return np.full(len(references), 1 / len(references))
    if set(weights) != set(references):
        raise UserError(
            f"weights are given for {', '.join(weights)}; give one for each reference:"
            f" {', '.join(references)}"
        )
    return np.array([weights[name] for name in references], np.float64)


def _check(kind: str, samples: Mapping[str, Sample]) -> None:
    if not samples:
        raise UserError(f"no {kind}s: give at least one")
    for name, sample in samples.items():
        if sample.drawn > sample.size:
            raise UserError(
                f"{kind} '{name}': {sample.drawn} examples sampled of {sample.size}; sample without"
                " replacement"
            )
        enough = sample.drawn >= 2 or (kind == "domain" and sample.drawn == sample.size == 1)
        if not enough:
            raise UserError(
                f"{kind} '{name}' has {sample.drawn} example(s) in its sample; an error bar needs"
                " at least 2"
            )
