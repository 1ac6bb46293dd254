"""Influence over low-rank adapters, against dense matrices in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ideal_jax import sharding
from ideal_jax.influence import Options, Sample, estimate
from ideal_jax.influence.decoder import decoder_problem
from ideal_jax.models import Decoder, DecoderConfig, LoRA, lora, random_params

SHAPE = {"d_model": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_dim": 4, "d_ff": 8}
CONFIG = DecoderConfig(
    12,
    **SHAPE,
    dtype="float64",
    param_dtype="float64",
    lora=LoRA(2, 4.0, 0.0, "attention/[qvo]$|mlp/"),
)


class Adapted:
    """A decoder with adapters, samples of two domains, and its dense matrices."""

    def __init__(self):
        self.problem = decoder_problem(Decoder(CONFIG))
        self.frozen, start = lora.split(random_params(Decoder(CONFIG), sharding.make_mesh(), 0))
        flat, self.unravel = ravel_pytree(start)
        self.flat = flat + 0.3 * jax.random.normal(jax.random.key(1), flat.shape, flat.dtype)
        self.params = self.unravel(self.flat)
        self.domains = {"a": self.sample(1, 0), "b": self.sample(2, 1)}
        self.references = {"a": self.sample(3, 0), "b": self.sample(4, 1)}
        self.curvature = [*self.domains["a"].batches, *self.domains["b"].batches]

    def sample(self, seed, domain, count=12, length=6):
        rng = np.random.default_rng(seed)
        tokens = rng.integers(0, 12, (count, length + 1))
        tokens[:, ::2] = (tokens[:, ::2] + domain) % (6 + 6 * domain)
        batch = {
            "tokens": jnp.asarray(tokens[:, :-1]),
            "targets": jnp.asarray(tokens[:, 1:]),
            "weights": jnp.asarray(rng.integers(0, 2, (count, length)), float).at[:, -1].set(1.0),
            "positions": jnp.broadcast_to(jnp.arange(length), (count, length)),
            "segments": jnp.ones((count, length), jnp.int32),
            "domains": jnp.full(count, domain),
            "examples": jnp.arange(count)[:, None],
        }
        return Sample([lora.with_frozen(batch, self.frozen)], count)

    def sums(self, sample):
        """(Σ∇ℓ, Σw)."""
        (batch,) = sample.batches

        @jax.jit
        @functools.partial(jax.grad, has_aux=True)
        def total(flat, batch):
            loss, weight = self.problem.loss(self.outputs(batch, flat), batch)
            return jnp.sum(loss), jnp.sum(weight)

        gradient, weight = total(self.flat, batch)
        return np.asarray(gradient), float(weight)

    def outputs(self, batch, flat):
        return self.problem.outputs(self.unravel(flat), batch)

    def ggn(self):
        """(1/W) Σ c_t J_tᵀ (diag p − ppᵀ) J_t."""

        @jax.jit
        def of(batch):
            outputs = functools.partial(self.outputs, batch)
            jacobian = jax.jacfwd(outputs)(self.flat)
            p = jax.nn.softmax(outputs(self.flat))
            inner = jnp.einsum("btv,btvi->bti", p, jacobian)
            c = batch["weights"]
            total = jnp.einsum("bt,btv,btvi,btvj->ij", c, p, jacobian, jacobian)
            return total - jnp.einsum("bt,bti,btj->ij", c, inner, inner)

        weight = sum(float(batch["weights"].sum()) for batch in self.curvature)
        return np.asarray(sum(map(of, self.curvature))) / weight

    def squares(self):
        """(1/W) Σ_x (∇ℓ(x))², example by example."""

        @jax.jit
        @jax.grad
        def gradient(flat, batch, row):
            return self.problem.loss(self.outputs(batch, flat), batch)[0][row]

        total, weight = 0.0, 0.0
        for batch in self.curvature:
            for row in range(len(batch["tokens"])):
                total += np.asarray(gradient(self.flat, batch, row)) ** 2
            weight += float(batch["weights"].sum())
        return total / weight

    def influence(self, inverse):
        """A from explicit gradients and an explicit inverse."""
        found = [self.sums(sample) for sample in self.domains.values()]
        weight = sum(w for _, w in found)
        overall = sum(g for g, _ in found) / weight
        solved = [inverse @ g / w for g, w in map(self.sums, self.references.values())]
        return np.array([[-s @ (g - w * overall) / weight for g, w in found] for s in solved])

    def estimate(self, estimator, **given):
        matrix, _ = estimate(
            self.problem,
            self.params,
            domains=self.domains,
            references=self.references,
            curvature=self.curvature,
            estimator=estimator,
            **given,
        )
        return matrix


@pytest.fixture(scope="module")
def adapted():
    with jax.enable_x64(True):
        yield Adapted()


def test_every_tap_is_an_adapter_and_shares_what_its_layer_reads(adapted):
    layers = {layer.name: layer.shares for layer in adapted.problem.taps.layers}
    assert all(name.endswith(("/lora_a", "/lora_b")) for name in layers)
    assert len(layers) == 12
    assert layers["layers/attention/v/lora_a"] == layers["layers/attention/q/lora_a"]
    assert layers["layers/mlp/up/lora_a"] == layers["layers/mlp/gate/lora_a"]


def test_ggn_cg_equals_the_dense_solve(adapted):
    options = Options(tolerance=1e-11, iterations=400)
    matrix = adapted.estimate("ggn_cg", options=options)
    ggn = adapted.ggn()
    inverse = np.linalg.inv(ggn + matrix.damping * np.eye(len(ggn)))
    expected = adapted.influence(inverse)
    np.testing.assert_allclose(matrix.matrix, expected, atol=1e-8 * np.abs(expected).max())


def test_ekfac_is_nearer_to_the_dense_solve_than_no_curvature(adapted):
    options = Options(damping=0.1)
    ggn = adapted.ggn()
    damping = 0.1 * np.trace(ggn) / len(ggn)
    exact = adapted.influence(np.linalg.inv(ggn + damping * np.eye(len(ggn))))

    def distance(matrix):
        """One minus the cosine: the size of an approximate inverse is its own."""
        return 1 - np.sum(matrix * exact) / np.linalg.norm(matrix) / np.linalg.norm(exact)

    found = distance(adapted.estimate("ekfac", options=options).matrix)
    assert found < distance(adapted.estimate("identity").matrix)
    assert found < 0.1


def test_adam_divides_by_the_roots_of_its_second_moment(adapted):
    moment = jnp.asarray(np.random.default_rng(0).random(adapted.flat.shape))
    options = Options(damping=0.05, damping_mode="absolute")
    matrix = adapted.estimate("adam", options=options, second_moment=adapted.unravel(moment))
    expected = adapted.influence(np.diag(1 / (np.sqrt(np.asarray(moment)) + 0.05)))
    np.testing.assert_allclose(matrix.matrix, expected, rtol=1e-8)


def test_fisher_diag_squares_every_examples_gradient(adapted):
    options = Options(damping=1e-3, damping_mode="absolute", fisher="empirical")
    matrix = adapted.estimate("fisher_diag", options=options)
    expected = adapted.influence(np.diag(1 / (adapted.squares() + 1e-3)))
    np.testing.assert_allclose(matrix.matrix, expected, rtol=1e-8)


@pytest.mark.parametrize("estimator", ["fisher_diag", "kfac", "ekfac"])
def test_parameters_without_a_factor_have_a_diagonal(adapted, estimator):
    """Half of the adapters have factors; the frozen matrices are no rows of a batch."""
    model = Decoder(CONFIG)
    some = decoder_problem(model, layers="mlp/.*")
    assert len(some.taps.layers) < len(adapted.problem.taps.layers)
    matrix, _ = estimate(
        some,
        adapted.params,
        domains=adapted.domains,
        references=adapted.references,
        curvature=adapted.curvature,
        estimator=estimator,
    )
    assert np.isfinite(matrix.matrix).all()
    assert matrix.estimator == estimator
