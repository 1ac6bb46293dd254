"""A decoder's scores in reverse mode are its losses' derivatives in forward mode, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ideal_jax import sharding
from ideal_jax.influence.decoder import decoder_problem
from ideal_jax.influence.passes import Placement
from ideal_jax.influence.problem import leaf_indices, leaf_name
from ideal_jax.influence.scores import batch_scores, without
from ideal_jax.models import Decoder, DecoderConfig, LoRA, lora, random_params

SHAPE = {"d_model": 8, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "head_dim": 4, "d_ff": 12}
CASES = {
    "gemma": {
        "unit_offset_norm": True,
        "post_norms": True,
        "qk_norm": True,
        "scale_embedding": True,
        "attention_softcap": 2.0,
        "logit_softcap": 3.0,
        "windows": (3, 0, 3),
        "activation": "gelu_tanh",
    },
    "qwen, untied and recomputed": {
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "tie_embeddings": False,
        "vocab_size": 130,
        "attention": "blocked",
        "remat": "full",
        "unroll": 3,
    },
    "adapters": {"lora": LoRA(2, 4.0, 0.0, "attention/[qvo]$|mlp/"), "remat": "dots"},
}


def made(vocab_size=20, **options):
    """A problem and parameters with nothing at 0 or 1."""
    wide = {"dtype": "float64", "param_dtype": "float64"}
    model = Decoder(DecoderConfig(vocab_size, **SHAPE, **wide, **options))
    params = random_params(model, sharding.make_mesh(), 0)
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(treedef, moved)
    frozen, trained = lora.split(params) if model.cfg.lora else ({}, params)
    return decoder_problem(model), frozen, trained


def batch_of(vocab, segments_BxT, frozen):
    rng = np.random.default_rng(2)
    segments_BxT = np.asarray(segments_BxT, np.int32)
    shape, S = segments_BxT.shape, segments_BxT.max()
    starts = np.concatenate([np.ones((len(segments_BxT), 1)), np.diff(segments_BxT)], axis=1) != 0
    at = np.maximum.accumulate(np.where(starts, np.arange(shape[1]), 0), axis=1)
    batch = {
        "tokens": rng.integers(0, vocab, shape),
        "targets": rng.integers(0, vocab, shape),
        "weights": rng.random(shape) * (segments_BxT > 0),
        "segments": segments_BxT,
        "positions": np.arange(shape[1]) - at,
        "domains": np.zeros(shape[0], np.int32),
        "examples": np.zeros((shape[0], S), np.int32),
    }
    return lora.with_frozen(jax.tree.map(jnp.asarray, batch), frozen)


@pytest.mark.parametrize("packed", [False, True], ids=["one a row", "packed"])
@pytest.mark.parametrize("case", CASES)
def test_reverse_equals_forward(case, packed):
    long = [1] * 131 + [2] * 9  # more than one block of the loss
    segments = [long, [1] * 40 + [2] * 60 + [3] * 30 + [0] * 10]
    if not packed:
        segments = [[1] * 7 + [0] * 2, [1] * 9, [0] * 9]
    with jax.enable_x64(True):
        problem, frozen, params = made(**CASES[case])
        batch = batch_of(20, segments, frozen)
        rng = np.random.default_rng(3)
        tangents = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=(3, *x.shape))), params)
        scores, weights = jax.jit(problem.scores)(params, tangents, batch)

        def forward(tangent):
            return jax.jvp(lambda p: problem.losses(p, batch)[0], (params,), (tangent,))[1]

        expected = jax.jit(jax.vmap(forward))(tangents)
        same = jax.jit(problem.losses)(params, batch)[1]
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(weights, same)
    used = np.asarray(weights) > 0
    assert np.all(np.abs(expected[:, used]) > 1e-3)
    assert np.all(expected[:, ~used] == 0)


@pytest.mark.parametrize("case", CASES)
def test_without_leaves_is_with_zeros_there(case):
    segments = [[1] * 4 + [2] * 5, [1] * 7 + [0] * 2]
    with jax.enable_x64(True):
        problem, frozen, params = made(**CASES[case])
        batch = batch_of(20, segments, frozen)
        rng = np.random.default_rng(3)
        tangents = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=(3, *x.shape))), params)
        names = leaf_indices(params)
        left_out = frozenset(name for name in names if "mlp" not in name or "norm" in name)
        assert 0 < len(left_out) < len(names)
        zeros = jax.tree_util.tree_map_with_path(
            lambda path, x: 0 * x if leaf_name(path) in left_out else x, tangents
        )
        fewer = without(tangents, left_out)
        assert len(jax.tree.leaves(fewer)) == len(names) - len(left_out)
        expected, _ = jax.jit(problem.scores)(params, zeros, batch)
        scores, _ = jax.jit(problem.scores)(params, fewer, batch)
        forward, _ = batch_scores(problem.example_loss, Placement(), params, fewer, batch)
    np.testing.assert_allclose(scores, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(forward, expected, rtol=1e-9, atol=1e-11)
    assert np.any(expected != 0)
