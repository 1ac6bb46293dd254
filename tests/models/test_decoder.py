"""The decoder against itself: packing, cache."""

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ideal_jax.models import Decoder, DecoderConfig, empty_cache, output_matrix

SHAPE = {
    "vocab_size": 50,
    "d_model": 16,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 6,
    "d_ff": 24,
}


def build(**changes):
    model = Decoder(DecoderConfig(**{**SHAPE, **changes}))
    return model, compiled.init(model)


def random_tokens(shape, seed=1):
    return jax.random.randint(jax.random.key(seed), shape, 0, SHAPE["vocab_size"])


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_logits_have_the_real_vocabulary_and_hidden_gives_them(tie_embeddings, remat):
    model, params = build(tie_embeddings=tie_embeddings, remat=remat)
    tokens_BxT = random_tokens((3, 7))
    logits = compiled.apply(model, params, tokens_BxT)
    hidden = compiled.apply(model, params, tokens_BxT, method=Decoder.hidden)
    assert logits.shape == (3, 7, 50)
    assert logits.dtype == jnp.float32
    by_hand = hidden @ output_matrix(model.cfg, params)
    np.testing.assert_allclose(by_hand[..., :50], logits, rtol=1e-5, atol=1e-5)


def test_a_token_sees_only_what_came_before():
    model, params = build()
    tokens_BxT = random_tokens((1, 8))
    changed = tokens_BxT.at[0, 5].add(1)
    a = compiled.apply(model, params, tokens_BxT)
    b = compiled.apply(model, params, changed % 50)
    np.testing.assert_array_equal(a[:, :5], b[:, :5])
    assert jnp.abs(a[:, 5:] - b[:, 5:]).min(axis=-1).max() > 0


def test_packed_examples_do_not_see_each_other():
    model, params = build()
    first, second = random_tokens((1, 5), 1), random_tokens((1, 4), 2)
    packed = jnp.concatenate([first, second, jnp.zeros((1, 3), jnp.int32)], axis=1)
    segments = jnp.asarray([[1] * 5 + [2] * 4 + [0] * 3])
    positions = jnp.asarray([[*range(5), *range(4), *range(3)]])
    together = compiled.apply(model, params, packed, positions, segments)
    for alone, part in ((first, slice(0, 5)), (second, slice(5, 9))):
        expected = compiled.apply(model, params, alone)
        np.testing.assert_allclose(together[:, part], expected, atol=2e-6)


def test_the_cache_changes_nothing():
    model, params = build()
    tokens_BxT = random_tokens((2, 9))
    expected = compiled.apply(model, params, tokens_BxT)
    cache = empty_cache(model.cfg, 2, 12)
    pieces = []
    for low, high in ((0, 4), (4, 5), (5, 9)):
        positions = jnp.broadcast_to(jnp.arange(low, high), (2, high - low))
        logits, cache = compiled.apply(
            model, params, tokens_BxT[:, low:high], positions, cache, method=Decoder.decode
        )
        pieces.append(logits)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), expected, atol=3e-6)


@pytest.mark.parametrize("attention", ["xla", "blocked"])
@pytest.mark.parametrize("windows", [(), (3, 0)])
def test_prompts_of_any_length_fill_the_cache(attention, windows):
    local = 100.0 if windows else 0.0
    model, params = build(attention=attention, windows=windows, local_rope_theta=local)
    tokens_BxT, lengths = random_tokens((2, 9)), [7, 4]
    cache = empty_cache(model.cfg, 2, 9)
    found, cache = compiled.apply(
        model, params, tokens_BxT[:, :7], jnp.asarray(lengths), cache, method=Decoder.prefill
    )
    after = jnp.asarray([[7], [4]])
    more, _ = compiled.apply(model, params, tokens_BxT[:, 7:8], after, cache, method=Decoder.decode)
    for row, length in enumerate(lengths):
        prompt = tokens_BxT[row : row + 1, :length]
        longer = jnp.concatenate([prompt, tokens_BxT[row : row + 1, 7:8]], axis=1)
        expected = compiled.apply(model, params, longer)[0]
        np.testing.assert_allclose(found[row], expected[-2], atol=3e-6)
        np.testing.assert_allclose(more[row, 0], expected[-1], atol=3e-6)


def test_rotary_attention_depends_on_distance_only():
    model, params = build()
    tokens_BxT = random_tokens((1, 6))
    near = compiled.apply(model, params, tokens_BxT, jnp.arange(6)[None])
    far = compiled.apply(model, params, tokens_BxT, jnp.arange(6)[None] + 100)
    np.testing.assert_allclose(near, far, atol=1e-4)
