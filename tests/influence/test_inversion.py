"""The rules of inversion, which layers count, and fitting layers in groups."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ideal_jax.errors import UserError
from ideal_jax.influence import Options, Sample, TapLayer, estimate, fit_blocks, solve_blocks
from ideal_jax.influence.blocks import parts
from ideal_jax.influence.kfac import factor_sums
from ideal_jax.influence.passes import Placement

KEY = jax.random.key(7)
OPTIONS = Options(damping=0.2, damping_mode="absolute")


def fit(tiny, problem=None, **changes):
    refit = changes.pop("refit", False)
    options = dataclasses.replace(OPTIONS, **changes)
    batches = tiny.batches(tiny.examples(8), 4)
    return fit_blocks(
        problem or tiny.problem, tiny.params, batches, key=KEY, options=options, refit=refit
    )


def factors(tiny, name, layer):
    """A and G of one layer, explicitly."""
    batches = tiny.batches(tiny.examples(8), 4)
    sums = [
        factor_sums(tiny.problem, "sampled", 8192, Placement(), tiny.params, KEY, b)
        for b in batches
    ]
    total = jax.tree.map(lambda *x: sum(x), *sums)
    A = np.asarray(total.inputs[name])[layer, 0] / float(total.positions)
    return A, np.asarray(total.outputs[name])[layer, 0] / float(total.weight)


def solved(blocks, tiny, name, layer):
    """(H + λ)⁻¹ of one layer as a matrix."""
    flat, unravel = ravel_pytree(tiny.params)
    units = jax.vmap(unravel)(jnp.eye(flat.size))
    found = solve_blocks(blocks, units).solutions
    pick = (lambda t: t["layers"]["kernel"][:, layer]) if name == "layers/kernel" else (
        lambda t: t["head"]["kernel"]
    )  # fmt: skip
    rows = np.asarray(pick(units)).reshape(flat.size, -1)
    columns = np.asarray(pick(found)).reshape(flat.size, -1)
    return columns[rows.any(1)]


@pytest.mark.parametrize(("name", "layer"), [("layers/kernel", 1), ("head/kernel", 0)])
def test_tikhonov_inverts_the_damped_factors(tiny, name, layer):
    A, G = factors(tiny, name, layer)
    pi = np.sqrt((np.trace(A) / len(A)) / (np.trace(G) / len(G)))
    damped = np.kron(A + pi * 0.2**0.5 * np.eye(len(A)), G + 0.2**0.5 / pi * np.eye(len(G)))
    blocks = fit(tiny, inversion="tikhonov")
    np.testing.assert_allclose(solved(blocks, tiny, name, layer), np.linalg.inv(damped), atol=1e-12)


@pytest.mark.parametrize(("name", "layer"), [("layers/kernel", 0), ("head/kernel", 0)])
def test_pseudoinverse_cuts_off_what_lies_below(tiny, name, layer):
    A, G = factors(tiny, name, layer)
    whole = np.kron(A, G)
    cut = float(np.median(np.linalg.eigvalsh(whole)))
    blocks = fit(tiny, inversion="pseudoinverse", damping=cut)
    expected = np.linalg.pinv(whole, hermitian=True, rcond=cut / np.linalg.norm(whole, 2))
    np.testing.assert_allclose(solved(blocks, tiny, name, layer), expected, rtol=1e-7, atol=1e-9)
    # What is cut off is told.
    residuals = solve_blocks(blocks, jax.tree.map(lambda x: x[None], tiny.params)).residuals
    assert 0 < residuals[0] < 1


def test_unknown_and_impossible_rules_are_refused(tiny):
    with pytest.raises(UserError, match=r"influence\.inversion='cholesky'"):
        Options(inversion="cholesky")
    with pytest.raises(UserError, match=r"influence\.important=0\.0: must be in \(0, 1\]"):
        Options(important=0.0)
    domains = {"a": Sample(tiny.batches(tiny.examples(6), 3), 6)}
    with pytest.raises(UserError, match=r"choose influence\.estimator='kfac'"):
        estimate(
            tiny.problem,
            tiny.params,
            domains=domains,
            references=domains,
            curvature=domains["a"].batches,
            estimator="ekfac",
            options=Options(inversion="tikhonov"),
        )


@pytest.mark.parametrize("estimator", ["kfac", "ekfac"])
def test_important_layers_are_those_of_least_variance(tiny, estimator):
    variances = {
        (name, layer): np.var(np.kron(*map(np.linalg.eigvalsh, factors(tiny, name, layer))))
        for name, layer in (("layers/kernel", 0), ("layers/kernel", 1), ("head/kernel", 0))
    }
    blocks = fit(tiny, important=2 / 3, refit=estimator == "ekfac")
    kept = {
        (name, layer): bool(flag)
        for name, flags in blocks.kept.items()
        for layer, flag in enumerate(np.asarray(flags))
    }
    dropped = max(variances, key=variances.get)
    assert kept == {key: key != dropped for key in variances}

    domains = {
        name: Sample(tiny.batches(tiny.examples(12, seed=k, tilt=k), 6), 12)
        for k, name in enumerate("ab")
    }
    found = {}
    for share in (1.0, 2 / 3):
        found[share] = estimate(
            tiny.problem,
            tiny.params,
            domains=domains,
            references=domains,
            curvature=tiny.batches(tiny.examples(8), 4),
            estimator=estimator,
            options=dataclasses.replace(OPTIONS, important=share),
            key=KEY,
        )
    (every, _), (some, notes) = found[1.0], found[2 / 3]
    assert not np.allclose(some.alpha, every.alpha)
    np.testing.assert_allclose(some.alpha + notes.alpha_parts["unimportant"], every.alpha)


def test_parts_add_up(tiny):
    blocks = fit(tiny, important=0.5, uncovered="diagonal")
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), tiny.params)
    found = parts(blocks, stacked)
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a + b, c),
        found["all"],
        found["unimportant"],
        stacked,
    )
    np.testing.assert_array_equal(found["all"]["embed"], stacked["embed"])


@pytest.mark.parametrize("refit", [False, True])
def test_groups_of_layers_give_the_same(tiny, refit):
    whole, grouped = fit(tiny, refit=refit), fit(tiny, refit=refit, layer_groups=2)
    assert list(whole.bases) == list(grouped.bases)
    vector = jax.tree.map(lambda x: x[None], tiny.params)
    one, two = (solve_blocks(b, vector).solutions for b in (whole, grouped))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), one, two)


def test_layers_that_read_the_same_share_a_factor(tiny):
    """The same layer tapped under two names: one factor for both, and the same solution."""

    def run(params, taps, batch):
        head = lambda x, y: taps["again"](x, taps["head"](x, y))  # noqa: E731
        return tiny.taps.run(params, {**taps, "head": head}, batch)

    twice = (
        TapLayer("up", ("layers", "kernel"), scanned=True),
        TapLayer("again", ("other", "kernel"), shares="head"),
        TapLayer("head", ("head", "kernel")),
    )
    params = {**tiny.params, "other": {"kernel": tiny.params["head"]["kernel"]}}
    taps = dataclasses.replace(tiny.taps, run=run, layers=twice)
    problem = dataclasses.replace(tiny.problem, taps=taps)
    batch = tiny.batches(tiny.examples(8), 8)[0]
    sums = factor_sums(problem, "sampled", 8192, Placement(), params, KEY, batch)
    assert set(sums.inputs) == {"layers/kernel", "head/kernel"}
    assert set(sums.outputs) == {"layers/kernel", "head/kernel", "other/kernel"}
