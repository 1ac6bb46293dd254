import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ideal_jax.errors import UserError
from ideal_jax.influence import (
    Options,
    Problem,
    TapLayer,
    Taps,
    fit_blocks,
    multiply_blocks,
    solve_blocks,
)
from ideal_jax.influence.blocks import parts
from ideal_jax.influence.kfac import factor_sums
from ideal_jax.influence.passes import Placement
from ideal_jax.influence.scores import without

KEY = jax.random.key(7)
EXACT = Options(damping=0.2, damping_mode="absolute")
KERNELS = {"layers/kernel": 2, "head/kernel": 1}  # name: L


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def single_example(problem, perturbed, fisher, params, single, zeros):
    """Dense layers' inputs, output gradients and parameter gradients of a batch of one."""
    labelled = single
    if fisher == "sampled":
        labelled = problem.sample_labels(problem.outputs(params, single), single, KEY)

    def loss(params, perturbations):
        out, inputs = perturbed(params, perturbations, single)
        return problem.loss(out, labelled)[0].sum(), inputs

    (gradient, outer), inputs = jax.grad(loss, (0, 1), has_aux=True)(params, zeros)
    return inputs, outer, gradient


def one_by_one(tiny, examples, fisher):
    """Inputs, output gradients, parameter gradients and weight of each example, unpadded."""
    for row in range(len(examples["ids"])):
        length = int(examples["mask"][row].sum())
        single = {k: v[row : row + 1] for k, v in examples.items()}
        single = {k: v[:, :length] if v.ndim > 1 else v for k, v in single.items()}
        zeros = tiny.zeros(tiny.params, single)
        found = single_example(tiny.problem, tiny.perturbed, fisher, tiny.params, single, zeros)
        yield *jax.tree.map(np.asarray, found), float(single["weights"].sum())


def moment(x, layers):
    """Σ over tokens of x xᵀ for each layer, from [L?, 1, T, I]."""
    x = np.asarray(x).reshape(layers, -1, x.shape[-1])
    return np.einsum("lti,ltj->lij", x, x)


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
@pytest.mark.parametrize("reduction", ["token", "example"])
def test_factors_equal_loops_over_single_examples(tiny, fisher, reduction):
    examples = tiny.examples(8, reduction=reduction)
    a, g, positions, weight = 0, 0, 0, 0
    for inputs, outer, _, w in one_by_one(tiny, examples, fisher):
        a, g = a + moment(inputs["up"], 2), g + moment(outer["up"], 2)
        positions, weight = positions + inputs["up"].shape[2], weight + w
    sums = [
        factor_sums(tiny.problem, fisher, 8192, Placement(), tiny.params, KEY, batch)
        for batch in tiny.batches(examples, 3, extra_tokens=2)
    ]
    total = jax.tree.map(lambda *x: np.sum(x, axis=0), *sums)
    np.testing.assert_allclose(total.inputs["layers/kernel"][:, 0], a, rtol=1e-12)
    np.testing.assert_allclose(total.outputs["layers/kernel"][:, 0], g, rtol=1e-10, atol=1e-14)
    assert total.positions == positions == examples["mask"].sum()
    np.testing.assert_allclose(total.weight, weight)


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_refitted_eigenvalues_and_diagonal_equal_single_gradients(tiny, fisher):
    examples = tiny.examples(8)
    blocks = fit(tiny, tiny.batches(examples, 3), refit=True, fisher=fisher)
    expected = {name: 0 for name in KERNELS}
    diagonal = {"embed": 0, "layers/bias": 0}
    weight = 0
    for _, _, gradient, w in one_by_one(tiny, examples, fisher):
        kernels = {"layers/kernel": gradient["layers"]["kernel"]}
        kernels["head/kernel"] = gradient["head"]["kernel"][None]
        for name, kernel in kernels.items():
            basis = blocks.bases[name]
            rotated = np.einsum("lai,lab,lbo->lio", basis.inputs[:, 0], kernel, basis.outputs[:, 0])
            expected[name] += rotated**2
        diagonal["embed"] += gradient["embed"] ** 2
        diagonal["layers/bias"] += gradient["layers"]["bias"] ** 2
        weight += w
    for name, value in expected.items():
        np.testing.assert_allclose(
            blocks.bases[name].eigenvalues, value / weight, rtol=1e-9, atol=1e-13
        )
    assert set(blocks.diagonal) == set(diagonal)
    for name, value in diagonal.items():
        np.testing.assert_allclose(blocks.diagonal[name], value / weight, rtol=1e-9, atol=1e-15)


def fit(tiny, batches, *, refit, problem=None, **options):
    options = Options(**{"damping": 0.2, "damping_mode": "absolute", **options})
    problem = problem or tiny.problem
    return fit_blocks(problem, tiny.params, batches, key=KEY, options=options, refit=refit)


def dense_block(basis, layer):
    """Q (λ) Qᵀ of one layer, on kernels flattened row by row."""
    q = np.kron(basis.inputs[layer, 0], basis.outputs[layer, 0])
    return q @ np.diag(np.asarray(basis.eigenvalues[layer]).ravel()) @ q.T


def test_ekfac_is_closer_to_the_exact_fisher_than_kfac(tiny):
    examples = tiny.examples(30)
    batches = tiny.batches(examples, 30)
    per_example = list(one_by_one(tiny, examples, "sampled"))
    weight = sum(w for *_, w in per_example)
    fitted = {refit: fit(tiny, batches, refit=refit) for refit in (False, True)}
    for name, layers in KERNELS.items():
        for layer in range(layers):
            parts = name.split("/")
            gradients = np.stack(
                [np.asarray(g[parts[0]][parts[1]]) for _, _, g, _ in per_example]
            ).reshape(30, layers, -1)[:, layer]
            fisher = gradients.T @ gradients / weight
            error = {
                refit: np.linalg.norm(dense_block(blocks.bases[name], layer) - fisher)
                for refit, blocks in fitted.items()
            }
            assert error[True] < 0.95 * error[False]
            # K-FAC neglects how positions go together: it is of the right size, not exact.
            assert error[False] < np.linalg.norm(fisher)


def test_kfac_is_exact_for_one_layer_with_one_token():
    """Least squares y = xW with noises crossed with inputs: a and g are independent in the data."""
    rng = np.random.default_rng(0)
    inputs, noises = rng.normal(size=(6, 3)), rng.normal(size=(4, 2))
    batch = {
        "x": jnp.asarray(np.repeat(inputs, 4, axis=0))[:, None],
        "noise": jnp.asarray(np.tile(noises, (6, 1)))[:, None],
        "c": jnp.ones((24, 1)),
    }
    taps = Taps(
        run=lambda p, taps, b: taps["w"](b["x"], b["x"] @ p["w"]),
        mask=lambda b: b["c"] > 0,
        layers=(TapLayer("w", ("w",)),),
    )
    problem = Problem(
        outputs=lambda p, b: b["x"] @ p["w"],
        loss=lambda out, b: (
            0.5 * jnp.sum((out - b.get("y", 0)) ** 2, (1, 2)) * b["c"][:, 0],
            b["c"][:, 0],
        ),
        sample_labels=lambda out, b, key: {**b, "y": out + b["noise"]},
        taps=taps,
    )
    params = {"w": jnp.asarray(rng.normal(size=(3, 2)))}
    exact = np.kron(inputs.T @ inputs / 6, noises.T @ noises / 4)
    for refit in (False, True):
        blocks = fit_blocks(problem, params, [batch], key=KEY, options=EXACT, refit=refit)
        if not refit:
            np.testing.assert_allclose(dense_block(blocks.bases["w"], 0), exact, atol=1e-14)
        units = {"w": jnp.eye(6).reshape(6, 3, 2)}
        solved = np.asarray(solve_blocks(blocks, units).solutions["w"]).reshape(6, 6)
        np.testing.assert_allclose(solved, np.linalg.inv(exact + 0.2 * np.eye(6)), atol=1e-12)


@pytest.mark.parametrize("refit", [False, True])
def test_solve_inverts_multiply_and_equals_dense_algebra(tiny, refit):
    blocks = fit(tiny, tiny.batches(tiny.examples(8), 4), refit=refit)
    flat, unravel = ravel_pytree(tiny.params)
    units = jax.vmap(unravel)(jnp.eye(flat.size))
    solved = solve_blocks(blocks, units)
    dense = np.zeros((flat.size, flat.size))
    sizes = {"embed": 28, "head/kernel": 20, "layers/bias": 8, "layers/kernel": 32}
    start = 0
    for name, size in sizes.items():
        part = slice(start, start + size)
        if name in blocks.diagonal:
            dense[part, part] = np.diag(np.asarray(blocks.diagonal[name]).ravel())
        else:
            step = size // KERNELS[name]
            for layer in range(KERNELS[name]):
                at = slice(start + layer * step, start + (layer + 1) * step)
                dense[at, at] = dense_block(blocks.bases[name], layer)
        start += size
    flatten = jax.vmap(lambda t: ravel_pytree(t)[0])
    damped = dense + 0.2 * np.eye(flat.size)
    np.testing.assert_allclose(flatten(multiply_blocks(blocks, units)), damped, atol=1e-13)
    np.testing.assert_allclose(flatten(solved.solutions), np.linalg.inv(damped), atol=1e-12)
    assert solved.residuals.max() < 1e-13


@pytest.mark.parametrize("refit", [False, True])
def test_padding_and_batch_size_change_nothing(tiny, refit):
    examples = tiny.examples(9)
    vector = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=float)).reshape(1, *x.shape),
                          tiny.params)  # fmt: skip
    solutions = [
        solve_blocks(fit(tiny, batches, refit=refit), vector).solutions
        for batches in (tiny.batches(examples, 9), tiny.batches(examples, 4, extra_tokens=3))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), *solutions)


@pytest.mark.parametrize("refit", [False, True])
def test_signs_of_eigenvectors_change_nothing(tiny, refit):
    blocks = fit(tiny, tiny.batches(tiny.examples(8), 8), refit=refit)
    signs = jnp.array([1.0, -1, -1, 1])
    flipped = {n: b._replace(inputs=b.inputs * signs) for n, b in blocks.bases.items()}
    vector = jax.tree.map(lambda x: x[None], tiny.params)
    one = solve_blocks(blocks, vector).solutions
    two = solve_blocks(dataclasses.replace(blocks, bases=flipped), vector).solutions
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), one, two)


def test_relative_damping_is_by_block(tiny):
    blocks = fit(
        tiny, tiny.batches(tiny.examples(8), 4), refit=True, damping=0.5, damping_mode="relative"
    )
    for name, basis in blocks.bases.items():
        np.testing.assert_allclose(
            blocks.damping[name], 0.5 * np.mean(basis.eigenvalues, axis=(1, 2))
        )
    np.testing.assert_allclose(blocks.damping["embed"], 0.5 * np.mean(blocks.diagonal["embed"]))
    sizes = {"embed": [28], "layers/bias": [8], "layers/kernel": [16, 16], "head/kernel": [20]}
    values = [
        (v, s) for n in sizes for v, s in zip(blocks.block_damping()[n], sizes[n], strict=True)
    ]
    mean = sum(v * s for v, s in values) / 88
    np.testing.assert_allclose(blocks.mean_damping(), mean)


def test_regulariser_enters_every_block(tiny):
    batches = tiny.batches(tiny.examples(8), 4)
    vector = jax.tree.map(lambda x: x[None], tiny.params)
    plain = multiply_blocks(fit(tiny, batches, refit=True), vector)
    ridged = multiply_blocks(fit(tiny, batches, refit=True, problem=tiny.ridged), vector)
    jax.tree.map(
        lambda r, p, v: np.testing.assert_allclose(r, p + 0.1 * v, atol=1e-12),
        ridged,
        plain,
        vector,
    )


def test_uncovered_parameters_can_be_dropped(tiny):
    blocks = fit(tiny, tiny.batches(tiny.examples(8), 4), refit=True, uncovered="drop")
    vector = jax.tree.map(lambda x: x[None], tiny.params)
    covered = without(vector, frozenset({"embed", "layers/bias"}))
    solved = solve_blocks(blocks, covered)
    assert jax.tree.structure(solved.solutions) == jax.tree.structure(covered)
    assert solved.residuals.max() < 1e-13
    assert list(parts(blocks, covered)) == ["all"]
    rest = parts(fit(tiny, tiny.batches(tiny.examples(8), 4), refit=True), vector)["uncovered"]
    assert np.all(np.asarray(rest["head"]["kernel"]) == 0)
    np.testing.assert_array_equal(rest["embed"], vector["embed"])


def test_wide_factors_are_split_into_diagonal_blocks(tiny):
    batches = tiny.batches(tiny.examples(8), 8)
    whole = factor_sums(tiny.problem, "sampled", 8192, Placement(), tiny.params, KEY, batches[0])
    split = factor_sums(tiny.problem, "sampled", 3, Placement(), tiny.params, KEY, batches[0])
    assert split.inputs["layers/kernel"].shape == (2, 2, 2, 2)
    assert split.outputs["head/kernel"].shape == (1, 5, 1, 1)
    full = np.asarray(whole.inputs["layers/kernel"])[:, 0]
    np.testing.assert_allclose(split.inputs["layers/kernel"][:, 1], full[:, 2:, 2:], rtol=1e-12)
    vector = jax.tree.map(lambda x: x[None], tiny.params)
    for refit in (False, True):
        blocks = fit(tiny, batches, refit=refit, max_factor=3)
        solved = solve_blocks(blocks, vector)
        back = multiply_blocks(blocks, solved.solutions)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), back, vector)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (TapLayer("up", ("layers", "weight"), True), "no parameter at 'layers/weight'"),
        (TapLayer("up", ("layers", "kernel"), False), "TapLayer.scanned"),
    ],
)
def test_wrong_layers_are_refused(tiny, layer, message):
    taps = Taps(tiny.taps.run, tiny.taps.mask, (layer,))
    problem = Problem(tiny.outputs, tiny.loss, tiny.sample_labels, taps=taps)
    with pytest.raises(UserError, match=message):
        fit_blocks(problem, tiny.params, [], key=KEY, options=EXACT, refit=False)
