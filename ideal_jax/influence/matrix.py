"""The influence of every domain on every reference objective, with error bars.

    A_ij = ∂Q_i/∂β_j = −(1/W) Σ_{x∈D_j} s_iᵀ (∇ℓ(x) − w(x) ∇L_0),   s_i = (H + λI)⁻¹ ∇Q_i

One reverse pass over the references gives ∇Q_i, the estimator s_i, one forward-mode pass over the
training sample every s_iᵀ∇ℓ(x). For the reference sets' part of the error the same is done from the
other side: t_j = (H + λI)⁻¹ ∂_{β_j}∇L_β and one pass over the references, −t_jᵀ∇ℓ(x).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ideal_jax.errors import UserError
from ideal_jax.influence.estimators import find_estimator
from ideal_jax.influence.interface import Setting
from ideal_jax.influence.options import Options
from ideal_jax.influence.problem import (
    Batch,
    LossFn,
    Problem,
    Progress,
    Sample,
    Tree,
    example_loss,
    silent,
)
from ideal_jax.influence.ratio import domain_weights, from_reference, from_training, mixing
from ideal_jax.influence.scores import Scores
from ideal_jax.influence.sides import Solver, reference_side, training_side
from ideal_jax.mixture.state import InfluenceMatrix

DEFAULTS = Options()


class Diagnostics(NamedTuple):
    """What an estimate knows beside its matrix.

    Attributes:
      scores: by domain, s_iᵀ∇ℓ(x) for every sampled example: [R, rows] and their weights. The
        most negative s_iᵀ(∇ℓ − w∇L_0) are the examples that hurt i most.
      reference_loss: float64[R], Q_i in nats per unit of weight.
      adjoint: float64[R, n], the matrix computed from the references' side; it differs from
        ``matrix`` by what the solves leave, when all the training examples were scored.
      alpha_uncovered: float64[n], the part of α that flows through parameters outside the tapped
        layers; None where the estimator treats all alike.
      block_damping: absolute λ of each block, by parameter.
      smallest_eigenvalue: of the curvature before damping, where the estimator looks for it.
      iterations: int64[R], conjugate-gradient products for each reference.
      domain_residual: float64[n], residuals of the solves behind ``stderr_reference``.
    """

    scores: dict[str, Scores]
    reference_loss: np.ndarray
    adjoint: np.ndarray
    alpha_uncovered: np.ndarray | None
    block_damping: dict[str, tuple[float, ...]]
    smallest_eigenvalue: float | None
    iterations: np.ndarray
    domain_residual: np.ndarray


def influence_matrix(
    problem: Problem | LossFn,
    params: Tree,
    *,
    domains: Mapping[str, Sample],
    references: Mapping[str, Sample],
    curvature: Sequence[Batch] = (),
    estimator: str = "ggn_cg",
    damping: float = 0.1,
    damping_mode: str = "relative",
    centred: bool = True,
    weights: Mapping[str, float] | None = None,
    key: jax.Array | None = None,
    fisher: str = "sampled",
    uncovered: str = "diagonal",
    max_factor: int = 8192,
    tolerance: float = 1e-3,
    iterations: int = 100,
    tangents: int | None = None,
    second_moment: Tree | None = None,
    progress: Progress = silent,
) -> InfluenceMatrix:
    """Domain influence A_ij = ∂Q_i/∂β_j at ``params``.

    ``estimate`` with the options of ``Options`` spelt out; see both.
    """
    options = Options(damping, damping_mode, fisher, uncovered, max_factor, tolerance, iterations)
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
    estimator: str = "ggn_cg",
    options: Options = DEFAULTS,
    centred: bool = True,
    weights: Mapping[str, float] | None = None,
    key: jax.Array | None = None,
    tangents: int | None = None,
    second_moment: Tree | None = None,
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
      progress: called with (phase, done, total): 0 first, and total when its results are there.

    Raises:
      UserError: an unknown estimator, a piece the problem lacks, or a sample that is too small.
    """
    chosen = find_estimator(estimator)
    _check("domain", domains)
    _check("reference", references)
    v = _reference_weights(references, weights)
    key = jax.random.key(0) if key is None else key
    fitted = chosen.fit(Setting(problem, params, curvature, key, options, second_moment, progress))
    chunk = tangents or max(len(references), len(domains))
    solver = Solver(example_loss(problem), params, chosen, fitted.state, chunk, progress)

    forward = training_side(solver, references, domains, v)
    samples, scored = list(domains.values()), list(forward.scores.values())
    weights_n = domain_weights(samples, scored)
    if chosen.domain_mean:
        samples, centred = [sample._replace(weight=1.0) for sample in samples], False
    with_alpha = [x._replace(scores=np.vstack([x.scores, v @ x.scores])) for x in scored]
    training = from_training(samples, with_alpha, centred=centred)
    uncentred = from_training(samples, with_alpha, centred=False).matrix[-1]
    outside = None
    if forward.outside is not None:
        outside = from_training(samples, list(forward.outside.values()), centred=centred).matrix[0]

    counted = domain_weights(samples, scored)
    mixed = mixing(counted / counted.sum(), centred=centred)
    backward = reference_side(solver, references, domains, mixed)
    rows = [from_reference(references[name], x) for name, x in backward.scores.items()]
    variance_reference = np.stack([row.variance for row in rows])

    matrix = InfluenceMatrix(
        references=tuple(references),
        domains=tuple(domains),
        matrix=training.matrix[:-1],
        stderr=np.sqrt(training.variance[:-1] + variance_reference),
        alpha=training.matrix[-1],
        alpha_stderr=np.sqrt(training.variance[-1] + v**2 @ variance_reference),
        stderr_train=np.sqrt(training.variance[:-1]),
        stderr_reference=np.sqrt(variance_reference),
        common_mode=_common_mode(uncentred),
        shares=weights_n / weights_n.sum(),
        examples_used=sum(sample.drawn for sample in samples),
        estimator=estimator,
        damping=fitted.damping,
        damping_mode=options.damping_mode,
        damping_value=options.damping,
        solve_residual=forward.residuals,
        centred=centred,
    )
    return matrix, Diagnostics(
        scores=forward.scores,
        reference_loss=forward.loss,
        adjoint=np.stack([row.matrix for row in rows]),
        alpha_uncovered=outside,
        block_damping=fitted.block_damping,
        smallest_eigenvalue=fitted.smallest_eigenvalue,
        iterations=forward.iterations,
        domain_residual=backward.residuals,
    )


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
