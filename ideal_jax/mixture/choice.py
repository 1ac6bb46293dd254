"""Which round to train on: paired differences in loss with their error, ties to the given mixture.

Rounds are evaluated on the same examples, so what makes one example harder than another cancels in
the difference of two rounds. With ℓ and ℓ' an example's losses under two rounds and w its weight,

    d_i = Σ (ℓ − ℓ') / Σ w      se_i = √m · sd(ℓ − ℓ' − d_i w) / Σ w      d = Σ_i v_i d_i

over the m examples of capability i (a ratio estimate; the capabilities are independent). The error
is that of the choice of examples; another order of the training rows would add to it.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


class ExampleLosses(NamedTuple):
    """The losses of one capability's examples under one round, always in the same order."""

    loss: np.ndarray  # float64[m], Σ c·nll in nats
    weight: np.ndarray  # float64[m], Σ c: the same in every round


class Difference(NamedTuple):
    """How much higher one round's losses are than another's, in nats per unit of weight."""

    values: np.ndarray  # float64[R], d_i
    stderrs: np.ndarray  # float64[R], se_i; NaN of one example
    overall: float  # d
    stderr: float  # of d


class Choice(NamedTuple):
    """The chosen round, and why; rounds by their place in the sequence given.

    Attributes:
      chosen: of ``equal``, the one whose mixture is nearest to the given one.
      lowest: the lowest loss.
      equal: ``lowest`` and every round whose difference to it is within the error, in order.
    """

    chosen: int
    lowest: int
    equal: tuple[int, ...]


def paired_difference(
    losses: Sequence[ExampleLosses], others: Sequence[ExampleLosses], weights: Sequence[float]
) -> Difference:
    """The difference of one round's losses and another's.

    Args:
      losses, others: R capabilities each.
      weights: v, R numbers.

    Raises:
      ValueError: the examples are not the same.
    """
    values, stderrs = [], []
    for one, other in zip(losses, others, strict=True):
        if not np.array_equal(one.weight, other.weight):
            raise ValueError("paired losses are of different examples")
        total, m = one.weight.sum(), len(one.weight)
        apart = one.loss - other.loss
        value = apart.sum() / total
        residual = apart - value * one.weight
        values.append(value)
        stderrs.append(math.sqrt(m) * residual.std(ddof=1) / total if m > 1 else math.nan)
    v, d, se = np.asarray(weights, np.float64), np.asarray(values), np.asarray(stderrs)
    return Difference(d, se, float(v @ d), float(np.sqrt(v**2 @ se**2)))


def mean_loss(losses: Sequence[ExampleLosses], weights: Sequence[float]) -> float:
    """Q = Σ_i v_i Σℓ / Σw of one round."""
    means = [one.loss.sum() / one.weight.sum() for one in losses]
    return float(np.asarray(weights) @ np.asarray(means))


def half_width(stderr: float, confidence: float) -> float:
    """The two-sided normal error of a number at a level such as 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2) * stderr


def choose_round(
    losses: Sequence[Sequence[ExampleLosses]],
    counts: np.ndarray,
    weights: Sequence[float],
    confidence: float,
) -> Choice:
    """The round to train on, by reference losses alone.

    Of all rounds whose loss is not higher than the lowest one by more than the error of the paired
    difference, the one whose mixture is nearest to the given one, by KL(round ‖ given); of those
    equally near the earliest.

    Args:
      losses: of T rounds, each of R capabilities; round 0 is the given mixture.
      counts: [T, n], examples of each domain, none of them 0.
      weights: v, R numbers.
      confidence: the level of the error, such as 0.95.
    """
    means = np.asarray([mean_loss(one, weights) for one in losses])
    lowest = int(np.argmin(np.where(np.isfinite(means), means, np.inf)))
    equal = []
    for t, one in enumerate(losses):
        apart = paired_difference(one, losses[lowest], weights)
        if t == lowest or apart.overall <= half_width(apart.stderr, confidence):
            equal.append(t)
    shares = counts / counts.sum(axis=1, keepdims=True)
    away = np.sum(shares * np.log(shares / shares[0]), axis=1)
    return Choice(min(equal, key=lambda t: (away[t], t)), lowest, tuple(equal))
