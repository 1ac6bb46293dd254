"""The choice of the round, with numbers worked out by hand."""

import math

import numpy as np
import pytest

from ideal_jax.mixture import ExampleLosses, choose_round, half_width, paired_difference

ONE = (1.0,)


def half(*losses, tokens=None):
    """One capability's losses; every example is of one token unless told."""
    loss = np.asarray(losses, np.float64)
    weight = np.ones_like(loss) if tokens is None else np.asarray(tokens, np.float64)
    return ExampleLosses(loss, weight)


def choose(rounds, counts, weights=ONE, confidence=0.95):
    return choose_round(rounds, np.asarray(counts), weights, confidence)


def test_a_difference_and_its_error():
    # Differences 1, 2, 3: mean 2, deviation 1, so the error is 1/√3.
    apart = paired_difference([half(4, 5, 6)], [half(3, 3, 3)], ONE)
    assert (apart.overall, apart.stderr) == (2.0, pytest.approx(1 / math.sqrt(3)))
    # What the two rounds share cancels: the spread of the losses themselves says nothing.
    apart = paired_difference([half(101, 12, 3)], [half(100, 11, 2)], ONE)
    assert (apart.overall, apart.stderr) == (1.0, 0.0)


def test_a_difference_is_a_ratio_over_tokens():
    # Differences 3 and 1 over 1 and 3 tokens: 4/4 = 1; residuals 2 and −2, deviation √8;
    # error √2·√8/4 = 1. A mean of per-token means would be (3 + 1/3)/2.
    tokens = (1, 3)
    apart = paired_difference([half(5, 5, tokens=tokens)], [half(2, 4, tokens=tokens)], ONE)
    assert (apart.overall, apart.stderr) == (1.0, pytest.approx(1.0))


def test_capabilities_count_by_their_weights():
    rounds = [half(2, 4), half(0, 0)], [half(0, 0), half(1, 3)]
    # d = (3, −2) with errors (1, 1): deviations √2 over √2.
    apart = paired_difference(*rounds, weights=(0.25, 0.75))
    np.testing.assert_allclose(apart.values, [3, -2])
    np.testing.assert_allclose(apart.stderrs, [1, 1])
    assert apart.overall == pytest.approx(0.25 * 3 - 0.75 * 2)
    assert apart.stderr == pytest.approx(math.hypot(0.25, 0.75))


def test_other_examples_are_not_paired():
    with pytest.raises(ValueError, match="different examples"):
        paired_difference([half(1, 2, tokens=(3, 4))], [half(1, 2, tokens=(3, 5))], ONE)


def test_levels():
    assert half_width(2.0, 0.95) == pytest.approx(2 * 1.959964)
    assert half_width(1.0, 0.5) == pytest.approx(0.674490)


# Rounds of four examples. Against the given one NOISE is lower by 0.1 on average with an error of
# 0.3 (differences −1, 0.6, 0.2, −0.2), CLEAR by 0.4 with an error of 0.02 or so.
GIVEN = half(5, 4, 3, 2)
NOISE = half(4, 4.6, 3.2, 1.8)
CLEAR = half(4.6, 3.65, 2.55, 1.6)


@pytest.mark.parametrize(
    ("rounds", "counts", "chosen", "lowest", "equal"),
    [
        ([GIVEN], [(5, 5)], 0, 0, (0,)),
        ([GIVEN, NOISE], [(5, 5), (6, 4)], 0, 1, (0, 1)),
        ([NOISE, GIVEN], [(5, 5), (6, 4)], 0, 0, (0, 1)),
        ([GIVEN, CLEAR], [(5, 5), (6, 4)], 1, 1, (1,)),
        ([CLEAR, GIVEN], [(5, 5), (6, 4)], 0, 0, (0,)),
        ([GIVEN, GIVEN], [(5, 5), (6, 4)], 0, 0, (0, 1)),  # no difference, no error
        # Both beat the given one and equal each other: the nearer, whichever is lower or earlier.
        ([GIVEN, CLEAR, half(4.65, 3.6, 2.6, 1.58)], [(5, 5), (6, 4), (9, 1)], 1, 1, (1, 2)),
        ([GIVEN, CLEAR, half(4.65, 3.6, 2.6, 1.58)], [(5, 5), (9, 1), (6, 4)], 2, 1, (1, 2)),
        # As near as each other: the earlier, though the later is lower.
        ([GIVEN, half(4.65, 3.6, 2.6, 1.58), CLEAR], [(5, 5), (6, 4), (12, 8)], 1, 2, (1, 2)),
        ([GIVEN, half(4.65, 3.6, 2.6, 1.58), CLEAR], [(5, 5), (6, 4), (4, 6)], 1, 2, (1, 2)),
        # What is no number is not the lowest.
        ([GIVEN, half(math.nan, 1, 1, 1)], [(5, 5), (6, 4)], 0, 0, (0,)),
    ],
)
def test_the_round_is_chosen(rounds, counts, chosen, lowest, equal):
    found = choose([[one] for one in rounds], counts)
    assert found == (chosen, lowest, equal)


def test_the_level_decides_what_is_equal():
    # Differences −0.5, −1, −1.5: −1 with an error of 0.289, 3.46 times that.
    rounds = [[half(1, 1, 1)], [half(0.5, 0, -0.5)]]
    counts = [(5, 5), (6, 4)]
    assert choose(rounds, counts, confidence=0.999).chosen == 1
    assert choose(rounds, counts, confidence=0.9999).chosen == 0


def test_a_loss_in_one_capability_may_pay_for_another():
    rounds = [[half(1, 2), half(1, 2)], [half(0.5, 1.51), half(1.2, 2.21)]]
    counts = [(5, 5), (6, 4)]
    assert choose(rounds, counts, weights=(0.5, 0.5)).chosen == 1
    assert choose(rounds, counts, weights=(0.1, 0.9)).chosen == 0
