"""From influence to the next mixture: IDEAL's rule (arXiv 2505.12762) with bounds."""

import numpy as np

from ideal_jax.errors import UserError
from ideal_jax.mixture.state import FAILED_RESIDUAL, InfluenceMatrix, MixtureState

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def proposal(alpha: np.ndarray, step: float) -> np.ndarray:
    """β = −γα with γ = m / max|α|: the influence scaled so that the largest change is ``step``.

    Args:
      alpha: float[n], dQ/dβ_j.
      step: m, relative.
    """
    largest = np.max(np.abs(alpha))
    return np.zeros_like(alpha) if largest == 0 else -step * (alpha / largest)


def is_settled(influence: InfluenceMatrix) -> bool:
    """No |α_j| exceeds its 95 % error: nothing is known to be worth changing.

    Raises:
      UserError: a solve behind the influence failed.
    """
    _refuse_failed(influence)
    return bool(np.all(np.abs(influence.alpha) <= Z95 * influence.alpha_stderr))


def update(
    state: MixtureState,
    influence: InfluenceMatrix,
    *,
    step: float,
    keep_total: bool,
    min_share: float = 0.0,
    max_repetition: float = np.inf,
) -> MixtureState:
    """The mixture of the next round: D_j ← (1 + β_j) D_j.

    Args:
      state: the mixture that ``influence`` was measured on.
      influence: its α decides; the matrix is not read.
      step: m, the largest relative change, in (0, 1).
      keep_total: rescale all counts by one constant so that their sum stays; otherwise the total
        moves as the paper's does.
      min_share: a domain keeps at least this share of the examples.
      max_repetition: a domain holds at most this many times its distinct examples.

    Returns:
      The next state. Its ``beta`` is the proposal before bounds and rescaling.

    Raises:
      UserError: other domains, a step outside (0, 1), a solve that failed, an α that is not finite,
        or bounds that leave no room for the total.
    """
    if influence.domains != state.names:
        raise UserError(f"influence is of {influence.domains}, the mixture of {state.names}")
    if not 0 < step < 1:
        raise UserError(f"mixture.step={step} is not between 0 and 1")
    _refuse_failed(influence)
    alpha = np.asarray(influence.alpha, np.float64)
    if not np.all(np.isfinite(alpha)):
        raise UserError(f"alpha is {alpha.tolist()}: not finite; raise influence.damping")
    beta = proposal(alpha, step)
    counts = _fit(state, (1.0 + beta) * state.counts, keep_total, min_share, max_repetition)
    return MixtureState(state.names, state.available, counts, beta, state.round + 1)


def _refuse_failed(influence: InfluenceMatrix) -> None:
    worst = np.max(influence.solve_residual, initial=0.0)
    if not worst < FAILED_RESIDUAL:
        raise UserError(
            f"a solve behind the influence failed: residual {worst:.3g}, where 1 is no better than"
            " no solution; raise influence.damping, or influence.iterations"
        )


def check_bounds(state: MixtureState, *, min_share: float, max_repetition: float) -> None:
    """Whether ``update`` can keep the total of ``state``, told before the first round.

    Raises:
      UserError: the bounds leave no room for it.
    """
    _fit(state, state.counts.astype(np.float64), True, min_share, max_repetition)


def _fit(
    state: MixtureState,
    wanted: np.ndarray,
    keep_total: bool,
    min_share: float,
    max_repetition: float,
) -> np.ndarray:
    """``wanted`` as counts within the bounds that the two options mean."""
    total = float(state.counts.sum() if keep_total else wanted.sum())
    upper = state.available * max_repetition
    lower = np.minimum(min_share * total, upper)
    return bounded(wanted, total=round(total), lower=lower, upper=upper, rescale=keep_total)


def bounded(
    wanted: np.ndarray, *, total: int, lower: np.ndarray, upper: np.ndarray, rescale: bool
) -> np.ndarray:
    """int64[n] counts inside [lower, upper], each ≥ 1.

    With ``rescale`` they are proportional to ``wanted`` where no bound binds and sum to ``total``
    (largest remainders); otherwise each is rounded by itself.

    Raises:
      UserError: ``rescale`` and the bounds leave no room for the total.
    """
    upper = np.maximum(np.floor(upper), 1.0)
    lower = np.clip(np.ceil(lower), 1.0, upper)
    if not rescale:
        return np.clip(np.rint(wanted), lower, upper).astype(np.int64)
    if not lower.sum() <= total <= upper.sum():
        raise UserError(
            f"mixture.min_share and mixture.max_repetition allow {lower.sum():.0f} to "
            f"{upper.sum():.0f} examples, not {total}"
        )
    counts = np.clip(wanted * _common_factor(wanted, total, lower, upper), lower, upper)
    return largest_remainder(counts, total)


def largest_remainder(values: np.ndarray, total: int) -> np.ndarray:
    """Rounds to integers that sum to ``total``, changing the largest remainders first."""
    floors = np.floor(values + 1e-9)
    missing = int(total - floors.sum())
    order = np.argsort(-(values - floors), kind="stable")
    floors[order[:missing]] += 1
    return floors.astype(np.int64)


def _common_factor(wanted: np.ndarray, total: float, lower: np.ndarray, upper: np.ndarray) -> float:
    """The factor c with Σ clip(c·wanted, lower, upper) = total; the sum is monotone in c."""
    low, high = 0.0, 1.0
    while np.clip(high * wanted, lower, upper).sum() < total:
        high *= 2.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if np.clip(middle * wanted, lower, upper).sum() < total:
            low = middle
        else:
            high = middle
    return high
