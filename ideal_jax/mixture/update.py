"""From influence to the next mixture: IDEAL's rule (arXiv 2505.12762) with bounds."""

import math

import numpy as np

from ideal_jax.errors import UserError
from ideal_jax.mixture.state import FAILED_RESIDUAL, InfluenceMatrix, MixtureState

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
_TINY = 1e-9  # of an example: what sums of floats are off by


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
    """The mixture of the next round: D_j ← (1 + β_j) D_j, in real numbers, then rounded.

    Args:
      state: the mixture that ``influence`` was measured on.
      influence: its α decides; the matrix is not read.
      step: m, the largest relative change, in (0, 1).
      keep_total: rescale all volumes by one constant so that their sum stays; otherwise the total
        moves as the paper's does.
      min_share: no domain falls below this share of the examples. One that is below already keeps
        the share it has: it is not lifted.
      max_repetition: a domain holds at most this many times its distinct examples.

    Returns:
      The next state. Its ``beta`` is the proposal before bounds and rescaling; its ``volume`` keeps
      what the rounding of its ``counts`` takes away.

    Raises:
      UserError: other domains, a step outside (0, 1), a solve that failed, an α that is not finite,
        or bounds that leave no room for a change or for the total.
    """
    if influence.domains != state.names:
        raise UserError(f"influence is of {influence.domains}, the mixture of {state.names}")
    if not 0 < step < 1:
        raise UserError(f"mixture.step={step} is not between 0 and 1")
    check_floor(len(state.names), min_share)
    _refuse_failed(influence)
    alpha = np.asarray(influence.alpha, np.float64)
    if not np.all(np.isfinite(alpha)):
        raise UserError(f"alpha is {alpha.tolist()}: not finite; raise influence.damping")
    beta = proposal(alpha, step)
    before = state.unrounded
    wanted = (1.0 + beta) * before
    total = float(state.counts.sum() if keep_total else wanted.sum())
    # Whole examples: ⌈min_share⌉ of the total, or what the domain has now where that is less.
    floor, present = min_share * total, before / before.sum() * total
    lower = np.minimum(np.ceil(floor - _TINY), np.floor(present + _TINY))
    upper = state.available * max_repetition
    volume = bounded(wanted, total=total, lower=lower, upper=upper, rescale=keep_total)
    counts = largest_remainder(volume, round(total)) if keep_total else _rounded(volume)
    return MixtureState(state.names, state.available, counts, beta, state.round + 1, volume)


def check_floor(n: int, min_share: float) -> None:
    """Whether ``min_share`` leaves ``n`` domains anything to exchange.

    Raises:
      UserError: n·min_share ≥ 1.
    """
    if n * min_share >= 1:
        raise UserError(
            f"mixture.min_share={min_share:g} for each of {n} domains is {n * min_share:.0%} of "
            f"the mixture: nothing could move; set it below 1/{n}"
        )


def _refuse_failed(influence: InfluenceMatrix) -> None:
    worst = np.max(influence.solve_residual, initial=0.0)
    if not worst < FAILED_RESIDUAL:
        raise UserError(
            f"a solve behind the influence failed: residual {worst:.3g}, where 1 is no better than"
            " no solution; raise influence.damping, or influence.iterations"
        )


def check_bounds(state: MixtureState, *, min_share: float, max_repetition: float) -> None:
    """Whether a given mixture is within the bounds of ``update``, told before any work.

    Raises:
      UserError: ``min_share`` leaves no room (see ``check_floor``), or a domain's count is beyond
        ``max_repetition`` times its examples (names the one that is furthest).
    """
    check_floor(len(state.names), min_share)
    most = _most(state.available * max_repetition)
    if np.all(state.counts <= most):
        return
    repeated = state.counts / state.available
    j = int(np.argmax(np.where(state.counts > most, repeated, 0.0)))
    enough = math.ceil(10 * repeated[j]) / 10
    raise UserError(
        f"mixture.counts: {state.counts[j]} examples of domain {state.names[j]}, which has "
        f"{state.available[j]}: mixture.max_repetition={max_repetition:g} allows {most[j]:.0f}; "
        f"ask for no more, or set mixture.max_repetition to {enough:g} or above"
    )


def natural_counts(available: np.ndarray, examples: int) -> np.ndarray:
    """int64[n]: at most ``examples`` in all, in the proportions of what is ``available``.

    Every domain gets at least one; ``examples`` is 0 for no limit, else at least n.
    """
    if examples == 0 or examples >= available.sum():
        return np.asarray(available, np.int64)
    wanted = available * (examples / available.sum())
    one = np.ones_like(wanted)
    volume = bounded(wanted, total=examples, lower=one, upper=available, rescale=True)
    return largest_remainder(volume, examples)


def bounded(
    wanted: np.ndarray, *, total: float, lower: np.ndarray, upper: np.ndarray, rescale: bool
) -> np.ndarray:
    """float64[n] volumes inside [lower, upper], these rounded inwards to whole examples, each ≥ 1.

    With ``rescale`` they are proportional to ``wanted`` where no bound binds and sum to ``total``.

    Raises:
      UserError: ``rescale`` and the bounds leave no room for the total.
    """
    upper = _most(upper)
    lower = np.clip(np.ceil(lower), 1.0, upper)
    if not rescale:
        return np.clip(wanted, lower, upper)
    if not lower.sum() <= total <= upper.sum():
        raise UserError(
            f"mixture.min_share and mixture.max_repetition allow {lower.sum():.0f} to "
            f"{upper.sum():.0f} examples, not {total:.0f}"
        )
    return np.clip(wanted * _common_factor(wanted, total, lower, upper), lower, upper)


def _most(upper: np.ndarray) -> np.ndarray:
    """Whole examples below ``upper``: one at least."""
    return np.maximum(np.floor(upper), 1.0)


def _rounded(volume: np.ndarray) -> np.ndarray:
    return np.rint(volume).astype(np.int64)


def largest_remainder(values: np.ndarray, total: int) -> np.ndarray:
    """Rounds to integers that sum to ``total``, changing the largest remainders first."""
    floors = np.floor(values + 1e-9)
    missing = int(total - floors.sum())
    order = np.argsort(-(values - floors), kind="stable")
    floors[order[:missing]] += 1
    return floors.astype(np.int64)


def _common_factor(wanted: np.ndarray, total: float, lower: np.ndarray, upper: np.ndarray) -> float:
    """The factor c with Σ clip(c·wanted, lower, upper) = total; the sum is monotone in c."""
    if math.isclose(np.clip(wanted, lower, upper).sum(), total, rel_tol=1e-12):
        return 1.0
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
