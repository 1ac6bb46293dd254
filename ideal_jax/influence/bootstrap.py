"""Bootstrap intervals for the influence matrix: examples drawn again, on both sides.

Training examples are drawn again within each domain, reference examples within each set (Efron and
Tibshirani 1993, ch. 13: percentiles). The ratios of a domain of which a share f was sampled move by
√(1 − f) of what they move in a draw: the rest of the domain is not in doubt.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ideal_jax.influence.problem import Sample
from ideal_jax.influence.ratio import domain_weights, mixing
from ideal_jax.influence.scores import Scores

_BLOCK = 100  # draws whose counts exist at one time


class Intervals(NamedTuple):
    """Percentile intervals of A, float64[R, n], and of α = vᵀA, float64[n]."""

    low: np.ndarray
    high: np.ndarray
    alpha_low: np.ndarray
    alpha_high: np.ndarray


def intervals(
    domains: Sequence[tuple[Sample, Scores]],
    references: Sequence[tuple[Sample, Scores, int]],
    v: np.ndarray,
    *,
    centred: bool,
    level: float,
    draws: int = 2000,
    seed: int = 0,
) -> Intervals:
    """Intervals that hold the matrix with probability ``level``.

    Args:
      domains: what was sampled of each domain, and its scores along s_i, [R, examples].
      references: the examples whose spread is known, their scores along t_j, [n, examples], and
        how many examples ∇Q_i was taken over.
      v: weight of each reference in α.
      centred, level, draws, seed: of the matrix; of the intervals.
    """
    rng = np.random.default_rng(seed)
    samples, scored = zip(*domains, strict=True)
    weights = domain_weights(samples, scored)
    ratios, totals = [], []
    for sample, x, weight in zip(samples, scored, weights, strict=True):
        ratio, mean = _ratios(rng, x, draws)
        kept = np.sqrt(_spread(sample.drawn) * (1 - sample.drawn / sample.size))
        own = x.scores.sum(1) / x.weights.sum()
        ratios.append(own + kept * (ratio - own))
        moved = weight * (1 + kept * (mean - 1)) if sample.weight is None else weight
        totals.append(np.broadcast_to(moved, draws))
    r_DxRxn = np.stack(ratios, axis=2)
    shares_Dxn = np.stack(totals, axis=1)
    shares_Dxn = shares_Dxn / shares_Dxn.sum(1, keepdims=True)
    mixed_Dxnxn = np.stack([mixing(shares, centred=centred) for shares in shares_Dxn])
    matrix_DxRxn = np.einsum("drk,djk->drj", r_DxRxn, mixed_Dxnxn)
    for i, (sample, x, used) in enumerate(references):
        row, _ = _ratios(rng, x, draws)
        kept = np.sqrt(_spread(sample.drawn) * sample.drawn / used)
        matrix_DxRxn[:, i] += kept * (row - x.scores.sum(1) / x.weights.sum())
    alpha_Dxn = np.einsum("r,drn->dn", v, matrix_DxRxn)
    edges = (1 - level) / 2, (1 + level) / 2
    low, high = np.quantile(matrix_DxRxn, edges, axis=0)
    return Intervals(low, high, *np.quantile(alpha_Dxn, edges, axis=0))


def _ratios(rng: np.random.Generator, x: Scores, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Σz/Σw of every draw, [draws, r], and its Σw relative to the sample's, [draws]."""
    real = x.weights > 0
    z, w = x.scores[:, real], x.weights[real]
    ratios, sums = [], []
    for counts in _draws(rng, len(w), draws):
        weight = counts @ w
        ratios.append(counts @ z.T / weight[:, None])
        sums.append(weight / w.sum())
    return np.concatenate(ratios), np.concatenate(sums)


def _draws(rng: np.random.Generator, m: int, draws: int) -> Iterator[np.ndarray]:
    """How often each of m examples is drawn, [≤ block, m] at a time."""
    for start in range(0, draws, _BLOCK):
        size = min(_BLOCK, draws - start)
        # Numbers drawn and counted: nine times as fast as NumPy's multinomial.
        drawn = rng.integers(m, size=(size, m)) + m * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * m).reshape(size, m).astype(np.float64)


def _spread(m: int) -> float:
    """A draw of m from m spreads by (m − 1)/m of what a sample of m does."""
    return m / (m - 1) if m > 1 else 0.0
