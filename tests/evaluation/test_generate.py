"""Greedy generation equals picking the argmax of the whole prefix, token by token."""

import compiled
import jax
import jax.numpy as jnp
import numpy as np

from ideal_jax import sharding
from ideal_jax.evaluation import Losses, generate_all, make_generate
from ideal_jax.models import Decoder, DecoderConfig

END = 4
CFG = DecoderConfig(
    vocab_size=40, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24
)


def test_generation_equals_teacher_forced_argmax():
    model = Decoder(CFG)
    params = compiled.init(model, 3)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, 40, size).astype(np.int32) for size in (3, 9, 5, 14, 7)]
    generate = jax.jit(make_generate(model, max_new_tokens=10, end_id=END))
    mesh = sharding.make_mesh()
    found = dict(
        generate_all(generate, mesh, params, prompts, batch_size=2, widths=(8, 16), end_id=END)
    )
    assert sorted(found) == [0, 1, 2, 3, 4]
    # One shape for every prefix: what comes after a position does not reach it.
    forward = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
    ended = 0
    for index, prompt in enumerate(prompts):
        sequence = list(prompt)
        for _ in range(10):
            padded = np.zeros((1, 24), np.int32)
            padded[0, : len(sequence)] = sequence
            following = int(jnp.argmax(forward(padded)[0, len(sequence) - 1]))
            if following == END:
                ended += 1
                break
            sequence.append(following)
        np.testing.assert_array_equal(found[index], sequence[len(prompt) :])


def test_generation_stops_at_the_end_token():
    model = Decoder(CFG)
    params = compiled.init(model, 3)
    # Whatever comes in, the end token scores highest.
    params["final_norm"]["scale"] = jnp.zeros_like(params["final_norm"]["scale"])
    generate = jax.jit(make_generate(model, max_new_tokens=4, end_id=0))
    new = generate(params, jnp.full((2, 3), 7), jnp.asarray([3, 2]))
    np.testing.assert_array_equal(new, np.zeros((2, 4)))


def test_losses_are_ratios_with_their_standard_error():
    rng = np.random.default_rng(0)
    weight = rng.integers(1, 9, 4000).astype(float)
    loss = weight * 0.7 + rng.normal(0, 1, 4000)
    losses = Losses(np.arange(4000), loss, weight)
    assert losses.mean() == loss.sum() / weight.sum()
    means = []
    for _ in range(400):
        pick = rng.integers(0, 4000, 4000)
        means.append(Losses(pick, loss[pick], weight[pick]).mean())
    assert abs(losses.stderr() / np.std(means) - 1) < 0.15
    assert len(losses.take(np.asarray([3, 5])).items) == 2
