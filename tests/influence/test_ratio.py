import numpy as np
import pytest

from ideal_jax.influence import Options, Sample, Scores, estimate
from ideal_jax.influence.ratio import from_reference, from_training, mixing

SIZES = (120, 60, 200)


def population(rng, rows=2):
    """Scores and weights of whole domains, z correlated with w."""
    domains = []
    for number, size in enumerate(SIZES):
        weights = rng.integers(1, 20, size).astype(float)
        noise = rng.normal(size=(rows, size)) * (1 + number)
        domains.append(Scores(weights * (0.5 - 0.3 * number) + noise * np.sqrt(weights), weights))
    return domains


def draw(rng, domains, counts, *, known):
    samples, scored = [], []
    for x, m in zip(domains, counts, strict=True):
        rows = rng.permutation(x.weights.size)[:m]
        weight = x.weights.sum() if known else None
        samples.append(Sample((), x.weights.size, m, weight))
        # Two padding rows: they must not count.
        scored.append(
            Scores(np.pad(x.scores[:, rows], ((0, 0), (0, 2))), np.pad(x.weights[rows], (0, 2)))
        )
    return samples, scored


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_variance_over_samples_of_the_training_set(known, centred):
    rng = np.random.default_rng(0)
    domains = population(rng)
    everything = draw(rng, domains, SIZES, known=known)
    truth = from_training(*everything, centred=centred)
    assert np.all(truth.variance == 0)
    total = sum(x.weights.sum() for x in domains)
    sums = np.stack([x.scores.sum(1) for x in domains], 1)
    share = np.array([x.weights.sum() for x in domains]) / total
    by_hand = -(sums - centred * share * sums.sum(1, keepdims=True)) / total
    np.testing.assert_allclose(truth.matrix, by_hand)

    draws = [
        from_training(*draw(rng, domains, (60, 40, 50), known=known), centred=centred)
        for _ in range(2000)
    ]
    spread = np.var([d.matrix for d in draws], axis=0)
    stated = np.mean([d.variance for d in draws], axis=0)
    np.testing.assert_allclose(stated, spread, rtol=0.15)
    if centred:
        assert np.abs(np.sum([d.matrix for d in draws], axis=2)).max() < 1e-12


def test_variance_over_reference_sets():
    rng = np.random.default_rng(1)
    draws, means = [], np.array([0.4, -1.0])
    for _ in range(2000):
        weights = rng.integers(1, 20, 50).astype(float)
        scores = means[:, None] * weights + rng.normal(size=(2, 50)) * weights
        draws.append(from_reference(Sample((), 50), Scores(scores, weights)))
    spread = np.var([d.matrix for d in draws], axis=0)
    np.testing.assert_allclose(np.mean([d.variance for d in draws], axis=0), spread, rtol=0.1)


def test_mixing_removes_the_common_part():
    shares = np.array([0.5, 0.2, 0.3])
    centred = mixing(shares, centred=True)
    np.testing.assert_allclose(centred.sum(0), 0, atol=1e-16)
    np.testing.assert_allclose(centred @ np.ones(3), 0, atol=1e-16)
    np.testing.assert_array_equal(mixing(shares, centred=False), -np.diag(shares))


@pytest.mark.parametrize("estimator", ["identity", "ekfac"])
def test_intervals_cover_over_resamplings_of_both_sides(tiny, estimator):
    rng = np.random.default_rng(3)
    domains = [tiny.examples(n, seed=i, tilt=2 * i) for i, n in enumerate((500, 300, 200))]
    references = [tiny.examples(1000, seed=7 + i, tilt=i) for i in range(2)]
    together = {k: np.concatenate([d[k] for d in domains]) for k in domains[0]}
    curvature = tiny.batches({k: v[::10] for k, v in together.items()}, 100)

    def sample(examples, count):
        rows = rng.permutation(len(examples["ids"]))[:count]
        batches = tiny.batches({k: v[rows] for k, v in examples.items()}, count)
        weight = float(examples["weights"].sum())
        return Sample(batches, len(examples["ids"]), count, weight)

    def matrix(domain_count, reference_count):
        return estimate(
            tiny.problem,
            tiny.params,
            domains={str(i): sample(d, domain_count(d)) for i, d in enumerate(domains)},
            references={str(i): sample(r, reference_count(r)) for i, r in enumerate(references)},
            curvature=curvature,
            estimator=estimator,
            options=Options(),
        )

    truth, _ = matrix(lambda d: len(d["ids"]), lambda r: len(r["ids"]))
    found, notes = zip(*(matrix(lambda d: 100, lambda r: 100) for _ in range(120)), strict=True)
    within = [np.abs(f.matrix - truth.matrix) <= 1.96 * f.stderr for f in found]
    within_alpha = [np.abs(f.alpha - truth.alpha) <= 1.96 * f.alpha_stderr for f in found]
    assert 0.90 <= np.mean(within) <= 0.98
    assert 0.90 <= np.mean(within_alpha) <= 0.98
    drawn = [
        (x.low <= truth.matrix) & (truth.matrix <= x.high) for x in (n.intervals for n in notes)
    ]
    assert 0.88 <= np.mean(drawn) <= 0.98
    # Neither part alone is enough.
    for part in ("stderr_train", "stderr_reference"):
        alone = [np.abs(f.matrix - truth.matrix) <= 1.96 * getattr(f, part) for f in found]
        assert np.mean(alone) < np.mean(within) - 0.02
    ratio = np.mean([f.stderr**2 for f in found], 0) / np.var([f.matrix for f in found], 0)
    assert 0.7 < np.mean(ratio) < 1.6
