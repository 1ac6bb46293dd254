"""From per-example scores to the influence matrix and its error bars (design §2), in NumPy.

The matrix is a ratio estimate. With z = sᵀ∇ℓ(x), p_j = W_j / W and r_ij = Σ z / Σ w over the
sampled examples of domain j,

    A_ij = −p_j (r_ij − Σ_k p_k r_ik)   centred,      A_ij = −p_j r_ij   otherwise.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ideal_jax.influence.problem import Sample
from ideal_jax.influence.scores import Scores


class Estimate(NamedTuple):
    """A for each row of scores, and the variance that sampling the training examples gives it."""

    matrix: np.ndarray
    variance: np.ndarray


def domain_weights(samples: Sequence[Sample], scored: Sequence[Scores]) -> np.ndarray:
    """W_j of every domain: known, or N_j times the mean of the sample."""
    return np.array(
        [
            s.size * x.weights.sum() / s.drawn if s.weight is None else s.weight
            for s, x in zip(samples, scored, strict=True)
        ]
    )


def mixing(shares: np.ndarray, *, centred: bool) -> np.ndarray:
    """M of A_i = M r_i: −diag(p)(I − 1pᵀ), or −diag(p). float64[n, n]."""
    n = shares.size
    return -shares[:, None] * (np.eye(n) - centred * shares[None, :])


def from_training(
    samples: Sequence[Sample], scored: Sequence[Scores], *, centred: bool
) -> Estimate:
    """A and its variance over the choice of training examples.

    By the delta method: an example x of domain k moves A_ij by M_jk (z − r w)/w̄_k, and, where W_k
    is not known, by ∂A_ij/∂W_k · N_k (w − w̄_k). Domains are sampled independently, so their
    variances add, each with the finite-population correction 1 − m/N; that every A_ij is moved by
    every domain keeps the covariance which the shared mean brings.
    """
    weights = domain_weights(samples, scored)
    total = weights.sum()
    shares = weights / total
    ratios = np.stack([x.scores.sum(1) / x.weights.sum() for x in scored], axis=1)
    mixed = mixing(shares, centred=centred)
    apart = ratios - centred * (ratios @ shares)[:, None]
    variance = np.zeros_like(ratios)
    for k, (sample, x) in enumerate(zip(samples, scored, strict=True)):
        m, n_k = sample.drawn, sample.size
        if m >= n_k:
            continue
        mean = x.weights.sum() / m
        residual = (x.scores - ratios[:, k, None] * x.weights) / mean
        # Padding rows have z = w = 0 and Σ residual = 0: plain sums over the rows are centred.
        v_rr = np.sum(residual**2, axis=1)
        by_ratio = mixed[:, k]
        added = by_ratio**2 * v_rr[:, None]
        if sample.weight is None:
            v_rw = n_k * residual @ x.weights
            v_ww = n_k**2 * max(np.sum(x.weights**2) - m * mean**2, 0.0)
            own = np.arange(shares.size) == k
            by_weight = -((own - shares) * apart - centred * shares * apart[:, k, None]) / total
            added = added + 2 * by_ratio * by_weight * v_rw[:, None] + by_weight**2 * v_ww
        variance += (1 - m / n_k) / (m * (m - 1)) * added
    return Estimate(ratios @ mixed.T, np.maximum(variance, 0))


def from_reference(sample: Sample, scored: Scores, used: int | None = None) -> Estimate:
    """One row A_i. from the reference's side, and its variance over the choice of its examples.

    ``scored`` holds y_j = −t_jᵀ∇ℓ(x), t_j = (H+λ)⁻¹ ∂_{β_j}∇L; A_ij = Σ y / Σ w. The capability is
    what the set stands for, so there is no finite-population correction. The spread among the
    examples of ``sample`` is taken for that of the ``used`` ones that ∇Q_i was taken over.
    """
    m = sample.drawn
    row = scored.scores.sum(1) / scored.weights.sum()
    residual = (scored.scores - row[:, None] * scored.weights) / (scored.weights.sum() / m)
    return Estimate(row, np.sum(residual**2, axis=1) / ((used or m) * (m - 1)))
