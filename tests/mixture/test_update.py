import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ideal_jax.errors import UserError
from ideal_jax.mixture import (
    InfluenceMatrix,
    MixtureState,
    bounded,
    check_bounds,
    is_settled,
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
    total = state.counts.sum()
    options = {"min_share": min_share, "max_repetition": max_repetition}
    most = np.floor(state.available * max_repetition)
    if keep_total:
        try:
            check_bounds(state, **options)
        except UserError:
            with pytest.raises(UserError, match=f"allow .* examples, not {total}"):
                update(state, influence, step=step, keep_total=True, **options)
            assume(False)
    following = update(state, influence, step=step, keep_total=keep_total, **options)
    counts = following.counts
    assert counts.dtype == np.int64
    assert (counts >= 1).all()
    assert (counts <= most).all()
    if keep_total:
        assert counts.sum() == total
    else:
        total = ((1 + following.beta) * state.counts).sum()
    # A domain with too few examples for its share is repeated as often as it may be.
    assert (counts >= np.minimum(np.ceil(min_share * total - 1e-6), most)).all()


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
    with pytest.raises(UserError, match=r"allow 22 to .* examples, not 20"):
        check_bounds(state, min_share=0.52, max_repetition=8.0)
    with pytest.raises(UserError, match="allow 2 to 16 examples, not 20"):
        check_bounds(state_of([10, 10], [8, 8]), min_share=0.0, max_repetition=1.0)


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
    counts = bounded(
        np.asarray([5.0, 5.0]),
        total=9,
        lower=np.asarray([1.5, 1.0]),
        upper=np.asarray([1.5, 20.0]),
        rescale=True,
    )
    assert counts.tolist() == [1, 8]


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
