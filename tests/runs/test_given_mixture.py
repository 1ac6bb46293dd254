"""The mixture of round 0: of anybody's data, and within the bounds of the rounds to come."""

import pathlib
from types import SimpleNamespace

import pytest

from ideal_jax import config
from ideal_jax.errors import UserError
from ideal_jax.runs.planning.setting import read_amounts
from ideal_jax.runs.session import _given_mixture

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def given(c, *available):
    """Counts of round 0 for domains of so many train examples."""
    names = tuple(f"d{j}" for j in range(len(available)))
    data = SimpleNamespace(
        names=names, train={n: range(k) for n, k in zip(names, available, strict=True)}
    )
    return _given_mixture(c, data).counts.tolist()


def changed(name="base", **mixture):
    c = config.load(CONFIGS / f"{name}.py")
    for key, value in mixture.items():
        c.mixture[key] = value
    config.check(c)
    return c


@pytest.mark.parametrize("available", [(5, 40), (16, 16, 16, 16, 16, 16, 16), (3000, 12, 90_000)])
@pytest.mark.parametrize("name", [path.stem for path in CONFIGS.glob("*.py")])
def test_every_shipped_config_takes_any_data(name, available):
    c = changed(name)
    most, total = c.mixture.examples or sum(available), sum(available)
    counts = given(c, *available)
    assert sum(counts) == min(most, total)
    for count, there_are in zip(counts, available, strict=True):
        assert abs(count - min(most / total, 1) * there_are) < 2
    # The paper's experiment names its domains; every other file takes those of the folder.
    assert (c.data.domains == "") == (name != "paper_llama31_8b")


def test_counts_are_exact_and_beat_the_cap_of_the_config():
    c = changed("real_small", counts="700,20")
    assert given(c, 100, 900) == [700, 20]
    assert given(changed(examples=50), 100, 900) == [5, 45]
    assert given(changed(examples=0), 100, 900) == [100, 900]


@pytest.mark.parametrize("keep_total", [True, False])
@pytest.mark.parametrize("rounds", [0, 1, 5])
def test_what_no_round_may_hold_is_no_given_mixture(keep_total, rounds):
    how = {"keep_total": keep_total, "rounds": rounds}
    with pytest.raises(UserError, match=r"500 examples of domain d0, which has 24: .* allows 192"):
        given(changed(counts="500,500", **how), 24, 24)
    with pytest.raises(UserError, match=r"33 examples of domain d1, which has 11: .* allows 22"):
        given(changed(counts="9,33", max_repetition=2.0, **how), 24, 11)
    with pytest.raises(UserError, match=r"min_share=0.01 for each of 150 domains is 150% of"):
        given(changed(**how), *[20] * 150)
    assert given(changed(counts="192,192", **how), 24, 24) == [192, 192]
    assert given(changed(min_share=0.006, **how), *[20] * 150) == [20] * 150


def test_a_small_domain_is_no_reason_to_refuse():
    assert given(changed(keep_total=True), 40, 100_000) == [40, 100_000]


def test_too_few_examples_for_the_domains_are_refused():
    with pytest.raises(UserError, match=r"mixture.examples=2: 3 domains need at least one each"):
        given(changed(examples=2), 10, 10, 10)
    with pytest.raises(UserError, match=r"mixture.examples=-1: must be at least 0"):
        changed(examples=-1)


@pytest.mark.parametrize(
    ("mixture", "there_are", "planned"),
    [
        ({}, 50_000, 50_000),
        ({"examples": 9_245}, 50_000, 9_245),
        ({"examples": 66_000}, 50_000, 50_000),
        ({"examples": 300, "counts": "700,20"}, 50_000, 720),
    ],
)
def test_plan_counts_the_same_examples(mixture, there_are, planned):
    c = changed("large", **mixture)
    c.plan.examples = there_are
    assert read_amounts(c).scored == pytest.approx(
        c.influence.fraction * planned * c.plan.example_tokens / 0.95
    )
