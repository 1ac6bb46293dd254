import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ideal_jax.errors import UserError
from ideal_jax.influence import (
    ESTIMATORS,
    Options,
    Problem,
    Sample,
    estimate,
    fit_blocks,
    influence_matrix,
    solve_blocks,
)

COUNTS = {"math": 11, "code": 7, "safety": 5}


def setting(tiny, reduction="token", size=4):
    """Domains (fully sampled, of unequal size), references, and curvature over all the examples."""
    domains, examples = {}, []
    for number, (name, count) in enumerate(COUNTS.items()):
        examples.append(tiny.examples(count, seed=number, tilt=2 * number, reduction=reduction))
        domains[name] = Sample(tiny.batches(examples[-1], size), size=count)
    references = {
        name: Sample(
            tiny.batches(
                tiny.examples(count, seed=9 + count, tilt=tilt, reduction=reduction), size
            ),
            size=count,
        )
        for name, count, tilt in (("gsm", 6, 0), ("humaneval", 9, 3))
    }
    together = {k: np.concatenate([e[k] for e in examples]) for k in examples[0]}
    return {
        "domains": domains,
        "references": references,
        "curvature": tiny.batches(together, size),
    }


def dense_influence(tiny, problem, params, setup, inverse, centred):
    """−(1/W) Σ_{x∈D_j} sᵀ(∇ℓ − w∇L_0) from explicit gradients."""
    found = {
        name: tiny.gradients(problem, params, sample.batches)
        for name, sample in setup["domains"].items()
    }
    weight = sum(w.sum() for _, w in found.values())
    overall = sum(g.sum(0) for g, _ in found.values()) / weight
    rows = []
    for sample in setup["references"].values():
        gradients, weights = tiny.gradients(problem, params, sample.batches)
        s = inverse @ (gradients.sum(0) / weights.sum())
        rows.append(
            [-s @ (g.sum(0) - centred * w.sum() * overall) / weight for g, w in found.values()]
        )
    return np.array(rows)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("reduction", ["token", "example"])
def test_ggn_cg_equals_the_dense_solve(tiny, reduction, centred):
    setup = setting(tiny, reduction)
    options = Options(tolerance=1e-12, iterations=300)
    matrix, notes = estimate(
        tiny.problem, tiny.params, **setup, estimator="ggn_cg", options=options, centred=centred
    )
    hessian = tiny.dense_ggn(tiny.problem, tiny.params, setup["curvature"])
    np.testing.assert_allclose(matrix.damping, 0.1 * np.trace(hessian) / len(hessian), rtol=0.3)
    inverse = np.linalg.inv(hessian + matrix.damping * np.eye(len(hessian)))
    expected = dense_influence(tiny, tiny.problem, tiny.params, setup, inverse, centred)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(matrix.matrix, expected, rtol=0, atol=1e-9 * scale)
    assert matrix.solve_residual.max() < 2e-12
    # The other side of the same product, from n solves of its own.
    np.testing.assert_allclose(notes.adjoint, matrix.matrix, rtol=0, atol=1e-9 * scale)
    if centred:
        assert np.abs(matrix.matrix.sum(1)).max() < 1e-14 * scale
        assert abs(matrix.alpha.sum()) < 1e-14 * scale
    else:
        assert np.abs(matrix.matrix.sum(1)).max() > 1e-3 * scale
    np.testing.assert_allclose(matrix.alpha, matrix.matrix.mean(0), rtol=1e-9)
    assert np.all(matrix.stderr_train == 0)  # every example was used
    assert np.all(matrix.stderr_reference > 0)


def test_loose_tolerance_is_reported_and_close(tiny):
    setup = setting(tiny)
    options = Options(damping=0.02, damping_mode="absolute", tolerance=1e-2)
    matrix, notes = estimate(
        tiny.problem, tiny.params, **setup, estimator="ggn_cg", options=options
    )
    hessian = tiny.dense_ggn(tiny.problem, tiny.params, setup["curvature"])
    inverse = np.linalg.inv(hessian + 0.02 * np.eye(len(hessian)))
    expected = dense_influence(tiny, tiny.problem, tiny.params, setup, inverse, True)
    assert matrix.damping == 0.02
    assert 1e-5 < matrix.solve_residual.max() <= 1.01e-2
    assert notes.iterations.max() < 60
    error = np.linalg.norm(matrix.matrix - expected) / np.linalg.norm(expected)
    assert 1e-7 < error < 3e-2


def test_preconditioned_and_plain_gradients_agree(tiny):
    setup = setting(tiny)
    options = Options(damping=0.02, damping_mode="absolute", tolerance=1e-10, iterations=400)
    found = {
        taps: estimate(problem, tiny.params, **setup, estimator="ggn_cg", options=options)
        for taps, problem in ((True, tiny.problem), (False, tiny.untapped))
    }
    np.testing.assert_allclose(found[True][0].matrix, found[False][0].matrix, rtol=1e-6)
    # The Gauss-Newton matrix of so few examples has a low rank, which suits plain gradients best:
    # that the preconditioner is at work shows in another way there, not in a shorter one.
    assert set(found[True][1].iterations) != set(found[False][1].iterations)


@pytest.mark.parametrize("reduction", ["token", "example"])
def test_influence_equals_retraining_where_the_model_is_linear(tiny, reduction):
    """Softmax regression with a ridge: the Gauss-Newton matrix is the Hessian, the optimum unique.

    The truth re-optimises by Newton with domain j counted 1 ± h, and takes central differences.
    """

    def outputs(params, batch):
        return jax.nn.one_hot(batch["tokens"], 7, dtype=float) @ params["w"]

    problem = Problem(outputs, tiny.loss, regulariser=lambda p: 0.05 * jnp.sum((p["w"] - 0.3) ** 2))
    setup = setting(tiny, reduction)
    flat, unravel = ravel_pytree({"w": jnp.zeros((7, 5))})

    def sums(vector, sample):
        pairs = [problem.example_loss(unravel(vector), b) for b in sample.batches]
        return jnp.array([sum(l_B.sum() for l_B, _ in pairs), sum(w_B.sum() for _, w_B in pairs)])

    @jax.jit
    def objective(vector, scale):
        totals = sum(
            s * sums(vector, x) for s, x in zip(scale, setup["domains"].values(), strict=True)
        )
        return totals[0] / totals[1] + problem.regulariser(unravel(vector))

    newton = jax.jit(
        lambda v, s: v - jnp.linalg.solve(jax.hessian(objective)(v, s), jax.grad(objective)(v, s))
    )

    def optimum(scale):
        vector = flat
        for _ in range(12):
            vector = newton(vector, scale)
        assert jnp.linalg.norm(jax.grad(objective)(vector, scale)) < 1e-13
        return vector

    @jax.jit
    def reference(vector):
        totals = jnp.stack([sums(vector, x) for x in setup["references"].values()])
        return totals[:, 0] / totals[:, 1]

    h, ones = 1e-4, np.ones(3)
    truth = np.stack(
        [
            (reference(optimum(ones + step)) - reference(optimum(ones - step))) / (2 * h)
            for step in h * np.eye(3)
        ],
        axis=1,
    )
    params = unravel(optimum(ones))
    options = Options(damping=0.0, tolerance=1e-12, iterations=300)
    found = {
        centred: estimate(
            problem, params, **setup, estimator="ggn_cg", options=options, centred=centred
        )
        for centred in (True, False)
    }
    scale = np.abs(truth).max()
    np.testing.assert_allclose(found[True][0].matrix, truth, rtol=0, atol=1e-7 * scale)
    assert np.abs(found[False][0].matrix - truth).max() > 0.05 * scale
    np.testing.assert_allclose(found[True][1].reference_loss, reference(optimum(ones)))


def test_identity_needs_only_a_loss_function(tiny):
    setup = setting(tiny)
    given = {**setup, "curvature": ()}
    matrix = influence_matrix(tiny.problem.example_loss, tiny.params, **given, estimator="identity")
    expected = dense_influence(tiny, tiny.problem, tiny.params, setup, np.eye(88), True)
    np.testing.assert_allclose(matrix.matrix, expected, atol=1e-14)
    assert matrix.damping == 0
    weights = [sum(float(b["weights"].sum()) for b in s.batches) for s in setup["domains"].values()]
    np.testing.assert_allclose(matrix.shares, np.array(weights) / sum(weights))
    assert matrix.examples_used == sum(COUNTS.values())
    uncentred = dense_influence(tiny, tiny.problem, tiny.params, setup, np.eye(88), False).mean(0)
    np.testing.assert_allclose(matrix.common_mode, abs(uncentred.sum()) / abs(uncentred).sum())


def test_batches_chunks_and_padding_change_nothing(tiny):
    results = []
    for size, tangents in ((4, None), (4, 1), (6, 2)):
        results.append(
            influence_matrix(
                tiny.problem,
                tiny.params,
                **setting(tiny, size=size),
                estimator="ekfac",
                tangents=tangents,
                weights={"humaneval": 0.7, "gsm": 0.3},
            )
        )
    for other in results[1:]:
        for field in ("matrix", "stderr", "alpha", "alpha_stderr", "solve_residual"):
            np.testing.assert_allclose(
                getattr(other, field), getattr(results[0], field), rtol=1e-8, atol=1e-12
            )
    np.testing.assert_allclose(results[0].alpha, [0.3, 0.7] @ results[0].matrix)
    np.testing.assert_allclose(
        results[0].alpha_stderr ** 2, [0.09, 0.49] @ results[0].stderr_reference ** 2
    )


@pytest.mark.parametrize("estimator", ["kfac", "ekfac"])
def test_part_of_alpha_outside_the_taps(tiny, estimator):
    setup = setting(tiny)
    matrix, notes = estimate(
        tiny.problem, tiny.params, **setup, estimator=estimator, key=jax.random.key(5)
    )
    blocks = fit_blocks(
        tiny.problem,
        tiny.params,
        setup["curvature"],
        key=jax.random.key(5),
        options=Options(),
        refit=estimator == "ekfac",
    )
    _, unravel = ravel_pytree(tiny.params)
    inverse = jax.vmap(lambda t: ravel_pytree(t)[0])(
        solve_blocks(blocks, jax.vmap(unravel)(jnp.eye(88))).solutions
    )
    expected = dense_influence(tiny, tiny.problem, tiny.params, setup, inverse, True)
    np.testing.assert_allclose(matrix.matrix, expected, atol=1e-11 * np.abs(expected).max())
    bare = {"embed": 1.0, "layers": {"bias": 1.0, "kernel": 0.0}, "head": {"kernel": 0.0}}
    mask, _ = ravel_pytree(jax.tree.map(jnp.full_like, tiny.params, bare))
    outside = dense_influence(
        tiny, tiny.problem, tiny.params, setup, np.diag(mask) @ inverse, True
    ).mean(0)
    np.testing.assert_allclose(
        notes.alpha_parts["uncovered"], outside, atol=1e-11 * np.abs(outside).max()
    )
    assert set(notes.block_damping) == {"embed", "layers/bias", "layers/kernel", "head/kernel"}
    assert len(notes.block_damping["layers/kernel"]) == 2


def test_scores_come_with_the_matrix_and_progress_is_told(tiny):
    setup, events = setting(tiny), []
    _, notes = estimate(
        tiny.problem, tiny.params, **setup, estimator="ekfac", progress=lambda *e: events.append(e)
    )
    assert {k: x.scores.shape for k, x in notes.scores.items()} == {
        "math": (2, 12),
        "code": (2, 8),
        "safety": (2, 8),
    }
    phases = list(dict.fromkeys(phase for phase, _, _ in events))
    assert phases == [
        "factors",
        "eigenvalues",
        "diagonal",
        "domain gradients",
        "reference scores",
        "reference gradients",
        "training scores",
    ]
    for phase in phases:
        own = [(done, total) for name, done, total in events if name == phase]
        assert own[0][0] == 0
        assert own[-1][0] == own[-1][1]


def test_float32_parameters_give_the_same_to_rounding(tiny):
    setup = setting(tiny)
    options = Options(damping=0.02, damping_mode="absolute", tolerance=1e-5)
    exact = estimate(tiny.problem, tiny.params, **setup, estimator="ggn_cg", options=options)[0]
    with jax.enable_x64(False):
        narrow = setting(tiny)
        params = jax.tree.map(lambda x: x.astype(jnp.float32), tiny.params)
        rounded = estimate(tiny.problem, params, **narrow, estimator="ggn_cg", options=options)[0]
    error = np.linalg.norm(rounded.matrix - exact.matrix) / np.linalg.norm(exact.matrix)
    assert error < 1e-4
    assert rounded.matrix.dtype == np.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimator": "newton"}, "choose one of identity"),
        ({"estimator": "ekfac", "problem": "untapped"}, "needs Problem.taps"),
        ({"estimator": "kfac", "problem": "unsampled"}, "needs Problem.sample_labels"),
        ({"estimator": "ggn_cg", "problem": "plain"}, "needs Problem"),
        ({"damping": 0.0}, "singular without damping"),
        ({"damping": -1.0}, "at least 0"),
        ({"damping_mode": "heuristic"}, "relative or absolute"),
        ({"curvature": ()}, "no batches for curvature"),
        ({"domains": {}}, "no domains"),
        ({"weights": {"gsm": 1.0}}, "one for each reference: gsm, humaneval"),
        ({"references": "single"}, "needs at least 2"),
        ({"domains": "oversampled"}, "without replacement"),
        ({"references": "unsupervised"}, "'empty' has no supervised weight"),
    ],
)
def test_mistakes_are_refused_by_name(tiny, change, message):
    setup = setting(tiny)
    batches = setup["domains"]["math"].batches
    mute = [{**b, "weights": 0 * b["weights"]} for b in batches]
    named = {
        "untapped": tiny.untapped,
        "unsampled": Problem(tiny.outputs, tiny.loss, taps=tiny.taps),
        "plain": tiny.problem.example_loss,
        "single": {"gsm": Sample(batches, 1)},
        "oversampled": {"math": Sample(batches, 5, sampled=6)},
        "unsupervised": {"empty": Sample(mute, 11)},
    }
    change = {k: named.get(v, v) if isinstance(v, str) else v for k, v in change.items()}
    arguments = {"problem": tiny.problem, "estimator": "identity"} | setup | change
    if "damping" in change or "curvature" in change:
        arguments["estimator"] = "ggn_cg"
    with pytest.raises(UserError, match=message):
        influence_matrix(arguments.pop("problem"), tiny.params, **arguments)


def test_registry_names():
    names = "identity adam fisher_diag kfac ekfac ggn_cg hessian_cg official"
    assert list(ESTIMATORS) == names.split()
