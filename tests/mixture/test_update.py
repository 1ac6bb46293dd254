import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ideal_jax.errors import UserError
from ideal_jax.mixture import (
    InfluenceMatrix,
    MixtureState,
    bounded,
    check_bounds,
    is_settled,
    natural_counts,
    update,
)
from ideal_jax.mixture.update import Z95, largest_remainder

finite = st.floats(-1e6, 1e6, allow_nan=False)
steps = st.floats(0.01, 0.99)


def state_of(counts, available=None):
    counts = np.asarray(counts, np.int64)
    available = counts if available is None else np.asarray(available, np.int64)
    names = tuple(f"d{j}" for j in range(len(counts)))
    return MixtureState(names, available, counts, np.zeros(len(counts)), 0)


def influence_of(alpha, stderr=None):
    alpha = np.asarray(alpha, np.float64)
    stderr = np.zeros_like(alpha) if stderr is None else np.asarray(stderr, np.float64)
    names = tuple(f"d{j}" for j in range(len(alpha)))
    zero = np.zeros((1, len(alpha)))
    return InfluenceMatrix(
        references=("r",),
        domains=names,
        matrix=alpha[None],
        stderr=stderr[None],
        alpha=alpha,
        alpha_stderr=stderr,
        stderr_train=zero,
        stderr_reference=zero,
        common_mode=0.0,
        shares=np.full(len(alpha), 1 / len(alpha)),
        examples_used=1,
        estimator="identity",
        damping=0.0,
        damping_mode="relative",
        damping_value=0.0,
        solve_residual=np.zeros(1),
        centred=True,
    )


@st.composite
def mixtures(draw):
    """(available, counts, alpha) of 1 to 6 domains."""
    n = draw(st.integers(1, 6))
    rows = [
        (draw(st.integers(1, 3000)), draw(st.integers(1, 3000)), draw(finite)) for _ in range(n)
    ]
    available, counts, alpha = zip(*rows, strict=True)
    return state_of(counts, available), influence_of(alpha)


@given(mixtures(), steps, st.booleans())
def test_beta_is_the_influence_scaled_to_the_step(mixture, step, keep_total):
    state, influence = mixture
    following = update(state, influence, step=step, keep_total=keep_total)
    alpha, beta = influence.alpha, following.beta
    assert following.round == state.round + 1
    assert following.names == state.names
    np.testing.assert_array_equal(following.available, state.available)
    if not alpha.any():
        assert not beta.any()
        return
    assert np.abs(beta).max() == step
    np.testing.assert_allclose(beta * np.abs(alpha).max(), -step * alpha, rtol=1e-12, atol=1e-300)


@given(mixtures(), steps)
def test_without_bounds_the_volume_moves_as_published(mixture, step):
    state, influence = mixture
    following = update(state, influence, step=step, keep_total=False)
    wanted = np.maximum(np.rint((1 + following.beta) * state.counts), 1)
    np.testing.assert_array_equal(following.counts, wanted)


@given(mixtures(), steps, st.floats(0, 0.16), st.floats(1, 10), st.booleans())
def test_bounds_hold(mixture, step, min_share, max_repetition, keep_total):
    state, influence = mixture
    options = {"min_share": min_share, "max_repetition": max_repetition}
    most = np.floor(state.available * max_repetition)
    if (state.counts > most).any():
        worst = np.argmax(state.counts / state.available)
        with pytest.raises(UserError, match=f"of domain d{worst}, which has"):
            check_bounds(state, **options)
        return
    check_bounds(state, **options)
    for _ in range(2):  # the second starts from volumes that are no whole numbers
        following = update(state, influence, step=step, keep_total=keep_total, **options)
        counts, before = following.counts, state.unrounded
        assert counts.dtype == np.int64
        assert (counts >= 1).all()
        assert (counts <= most).all()
        if keep_total:
            total = state.counts.sum()
            assert counts.sum() == total
        else:
            total = ((1 + following.beta) * before).sum()
        # What has less than its least share keeps the share that it has.
        present = np.floor(before / before.sum() * total)
        least = np.minimum(np.ceil(min_share * total - 1e-6), present)
        assert (counts >= np.minimum(least, most)).all()
        assert (np.abs(counts - following.volume) < 1 + 1e-6).all()
        state = following


@given(mixtures(), steps)
def test_a_kept_total_keeps_the_proportions(mixture, step):
    state, influence = mixture
    following = update(state, influence, step=step, keep_total=True)
    assert following.counts.sum() == state.counts.sum()
    wanted = (1 + following.beta) * state.counts
    free = following.counts > 1
    ratio = following.counts[free] / wanted[free]
    if len(ratio) > 1:
        # One constant, but for rounding to whole examples.
        slack = 1.0 / wanted[free]
        assert (np.abs(ratio - np.median(ratio)) <= slack + slack.max()).all()


@given(mixtures(), steps, st.booleans())
def test_no_influence_no_change(mixture, step, keep_total):
    state, _ = mixture
    following = update(
        state, influence_of(np.zeros(len(state.names))), step=step, keep_total=keep_total
    )
    np.testing.assert_array_equal(following.counts, state.counts)
    np.testing.assert_array_equal(following.beta, 0)


def test_one_domain():
    state = state_of([40])
    kept = update(state, influence_of([-3.0]), step=0.5, keep_total=True, min_share=0.01)
    assert (kept.counts.tolist(), kept.beta.tolist()) == ([40], [0.5])
    grown = update(state, influence_of([-3.0]), step=0.5, keep_total=False, max_repetition=1.25)
    assert grown.counts.tolist() == [50]


def test_a_tiny_influence_still_moves_by_the_step():
    following = update(state_of([100, 100]), influence_of([5e-324, 0]), step=0.15, keep_total=False)
    assert following.counts.tolist() == [85, 100]


def test_what_cannot_be_updated_is_refused():
    state = state_of([10, 10])
    with pytest.raises(UserError, match=r"not finite; raise influence.damping"):
        update(state, influence_of([np.nan, 1]), step=0.1, keep_total=True)
    for step in (0.0, 1.0, -0.1, np.nan):
        with pytest.raises(UserError, match=r"mixture.step"):
            update(state, influence_of([1, 0]), step=step, keep_total=True)
    with pytest.raises(UserError, match="the mixture of"):
        update(state, influence_of([1, 0, 0]), step=0.1, keep_total=True)
    above = state_of([10, 10], [8, 8])
    with pytest.raises(UserError, match="allow 2 to 16 examples, not 20"):
        update(above, influence_of([1, 0]), step=0.1, keep_total=True, max_repetition=1.0)


@pytest.mark.parametrize(
    ("counts", "available", "cap", "words"),
    [
        ([500, 500], [24, 24], 8, "500 examples of domain d0, which has 24: .* allows 192;"),
        ([90, 41], [90, 5], 8, "41 examples of domain d1, which has 5: .* allows 40;"),
        ([30, 60, 10], [10, 10, 10], 1.5, "60 examples of domain d1.* allows 15;"),
        ([3], [1], 2.5, r"allows 2;.* set mixture.max_repetition to 3 or above"),
        ([500, 500], [24, 24], 20, r"set mixture.max_repetition to 20.9 or above"),
    ],
)
def test_a_given_count_beyond_the_cap_is_refused(counts, available, cap, words):
    with pytest.raises(UserError, match=words) as caught:
        check_bounds(state_of(counts, available), min_share=0.0, max_repetition=cap)
    assert "\n" not in str(caught.value)
    check_bounds(state_of(counts, available), min_share=0.0, max_repetition=max(counts))


@pytest.mark.parametrize(
    ("n", "share", "words"),
    [
        (150, 0.01, "150 domains is 150% of"),
        (2, 0.5, "100%"),
        (3, 0.4, "below 1/3"),
        (100, 0.01, ""),
    ],
)
@pytest.mark.parametrize("keep_total", [True, False])
def test_a_least_share_that_fills_the_mixture_is_refused(n, share, words, keep_total):
    state = state_of([20] * n)
    with pytest.raises(UserError, match=f"mixture.min_share={share:g} for each of .*{words}"):
        check_bounds(state, min_share=share, max_repetition=8)
    alpha = influence_of(np.arange(n))
    with pytest.raises(UserError, match="nothing could move"):
        update(state, alpha, step=0.2, keep_total=keep_total, min_share=share)
    update(state, alpha, step=0.2, keep_total=keep_total, min_share=0.9 / n)


@pytest.mark.parametrize("keep_total", [True, False])
def test_a_small_domain_is_neither_lifted_nor_lowered_by_the_least_share(keep_total):
    def shares(alpha, state):
        options = {"step": 0.15, "keep_total": keep_total, "min_share": 0.01}
        following = update(state, influence_of(alpha), **options)
        return following, following.counts / following.counts.sum()

    state = state_of([40, 9960])  # 0.4 %
    _, share = shares([1.0, -0.5], state)
    assert share[0] == pytest.approx(0.004, abs=1e-4)
    grown, share = shares([-1.0, 0.0], state)
    assert grown.counts[0] == 46
    _, share = shares([1.0, 0.0], state_of([110, 9890]))  # 0.94 % is asked for
    assert share[0] == pytest.approx(0.01, abs=1e-4)


@pytest.mark.parametrize("counts", [[3, 400], [1, 2, 7, 9000], [5, 5, 5]])
def test_changes_below_one_example_add_up(counts):
    """As 1.15¹⁰ = 4.05 of 3 examples is 12, whatever each round rounds to."""
    state = state_of(counts, np.full(len(counts), 10**6))
    alpha = influence_of([-1.0] + [0.0] * (len(counts) - 1))
    for _ in range(10):
        state = update(state, alpha, step=0.15, keep_total=False)
    assert state.counts[0] == round(counts[0] * 1.15**10)
    assert state.unrounded[0] == pytest.approx(counts[0] * 1.15**10, rel=1e-12)
    assert state.counts[1:].tolist() == counts[1:]


def test_changes_below_one_example_add_up_at_a_kept_total():
    state = state_of([3, 200, 797])
    for _ in range(20):
        state = update(state, influence_of([-1.0, 0.5, 0.2]), step=0.05, keep_total=True)
        assert state.counts.sum() == 1000
    odds = np.asarray([3, 200, 797]) * (1 + state.beta) ** 20
    np.testing.assert_allclose(state.unrounded, 1000 * odds / odds.sum(), rtol=1e-9)
    assert (np.abs(state.counts - state.unrounded) < 1).all()


def test_a_volume_goes_through_json_unchanged():
    state = state_of([3, 41, 17])
    state = update(state, influence_of([-0.3, 0.7, 0.1]), step=0.15, keep_total=True)
    read = state._replace(volume=np.asarray(json.loads(json.dumps(state.volume.tolist()))))
    again = [
        update(s, influence_of([0.2, -1, 0.3]), step=0.1, keep_total=True) for s in (state, read)
    ]
    np.testing.assert_array_equal(again[0].volume, again[1].volume)


@pytest.mark.parametrize(
    ("available", "examples", "counts"),
    [
        ([100, 300, 50], 0, [100, 300, 50]),
        ([100, 300, 50], 450, [100, 300, 50]),
        ([100, 300, 50], 10**9, [100, 300, 50]),
        ([100, 300, 50], 45, [10, 30, 5]),
        ([100, 300, 50], 100, [22, 67, 11]),  # 22.2, 66.7, 11.1
        ([1, 10_000], 100, [1, 99]),
        ([7, 7, 7], 3, [1, 1, 1]),
        ([9], 4, [4]),
    ],
)
def test_natural_counts(available, examples, counts):
    assert natural_counts(np.asarray(available), examples).tolist() == counts


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8), st.floats(0, 1))
def test_largest_remainder(thousandths, share):
    values = np.asarray(thousandths) / 1000
    floors = np.floor(values)
    total = int(floors.sum()) + round(share * np.count_nonzero(values > floors))
    rounded = largest_remainder(values, total)
    assert rounded.sum() == total
    assert (np.abs(rounded - values) < 1 + 1e-6).all()
    remainders = values - floors
    raised = rounded > floors
    if raised.any() and not raised.all():
        assert remainders[raised].min() >= remainders[~raised].max() - 1e-9


def test_bounds_that_exclude_each_other():
    # 1.5 copies of one example: at most one, whatever the least is.
    volume = bounded(
        np.asarray([5.0, 5.0]),
        total=9,
        lower=np.asarray([1.5, 1.0]),
        upper=np.asarray([1.5, 20.0]),
        rescale=True,
    )
    np.testing.assert_allclose(volume, [1, 8])


def test_settled():
    assert is_settled(influence_of([0.0, 0.0]))
    assert is_settled(influence_of([1.0, -1.0], [1 / Z95 + 1e-9, 1.0]))
    assert not is_settled(influence_of([1.0, -1.0], [1.0, 0.5]))
    assert not is_settled(influence_of([1.0, -1.0]))


@pytest.mark.parametrize("residual", [1.0, 4.2, 5e17, np.nan, np.inf])
def test_an_influence_whose_solve_failed_decides_nothing(residual):
    state = state_of([10, 10], [10, 10])
    failed = influence_of([-1.0, 1.0])._replace(solve_residual=np.array([1e-3, residual]))
    with pytest.raises(UserError, match="a solve behind the influence failed"):
        is_settled(failed)
    with pytest.raises(UserError, match=r"raise influence\.damping"):
        update(state, failed, step=0.15, keep_total=True)
