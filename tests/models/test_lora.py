import dataclasses

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_models import VOCAB, random_model, save
from ml_collections import FrozenConfigDict
from peft import PeftModel
from transformers import AutoModelForCausalLM

from ideal_jax import sharding
from ideal_jax.models import (
    Decoder,
    LoRA,
    decoder_loss,
    load_hf,
    lora,
    random_params,
    save_hf,
    save_peft,
)
from ideal_jax.training import adamw, init_state, make_train_step

ADAPTERS = LoRA(rank=3, alpha=6.0, dropout=0.0, target="attention/[qvo]$|mlp/")


def batch(seed=0, **extra):
    tokens = np.random.default_rng(seed).integers(3, VOCAB, (4, 10)).astype(np.int32)
    return {
        "tokens": jnp.asarray(tokens),
        "targets": jnp.roll(tokens, -1, axis=1),
        "weights": jnp.ones(tokens.shape, jnp.float32),
        "positions": jnp.broadcast_to(jnp.arange(10), tokens.shape),
        "segments": jnp.ones(tokens.shape, jnp.int32),
        **extra,
    }


def adapted(model, params, adapters=ADAPTERS, seed=0):
    """(model with adapters, frozen, fresh adapters, adapters that change a lot)."""
    model = Decoder(dataclasses.replace(model.cfg, lora=adapters), model.origin)
    fresh = random_params(model, sharding.make_mesh(), seed, part=lambda p: lora.split(p)[1])
    moved = jax.tree.map(
        lambda x: 0.3 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), fresh
    )
    return model, params, fresh, moved


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = save(random_model("qwen3", 2), tmp_path_factory.mktemp("qwen"))
    return folder, *load_hf(folder)


def logits(model, params, tokens):
    return np.asarray(compiled.apply(model, params, tokens))


def test_fresh_adapters_change_nothing(qwen):
    _, plain, params = qwen
    model, frozen, fresh, _ = adapted(plain, params)
    tokens = batch()["tokens"]
    whole = lora.all_params(fresh, {lora.FROZEN: frozen})
    np.testing.assert_array_equal(logits(model, whole, tokens), logits(plain, params, tokens))


def test_only_chosen_dense_layers_of_blocks_have_adapters(qwen):
    _, plain, params = qwen
    _, _, fresh, _ = adapted(plain, params, LoRA(2, 2.0, 0.0, "q$|head"))
    assert list(fresh) == ["layers"]
    assert fresh["layers"].keys() == {"attention"}
    assert fresh["layers"]["attention"].keys() == {"q"}


def test_merged_and_exported_adapters_compute_the_same(qwen, tmp_path):
    folder, plain, params = qwen
    model, frozen, _, moved = adapted(plain, params)
    tokens = batch()["tokens"]
    beside = logits(model, lora.all_params(moved, {lora.FROZEN: frozen}), tokens)
    assert np.abs(beside - logits(plain, params, tokens)).max() > 0.1
    whole = lora.merged(model.cfg, frozen, moved)
    np.testing.assert_allclose(logits(plain, whole, tokens), beside, atol=1e-5)
    save_hf(tmp_path / "merged", plain, whole)
    again, reread = load_hf(tmp_path / "merged")
    np.testing.assert_allclose(logits(again, reread, tokens), beside, atol=1e-5)
    save_peft(tmp_path / "adapter", model, moved, str(folder))
    base = AutoModelForCausalLM.from_pretrained(folder)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(np.asarray(tokens))).logits.numpy()
    np.testing.assert_allclose(expected, beside, atol=1e-4)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_training_moves_adapters_and_keeps_state_for_them_alone(qwen, micro_batches):
    _, plain, params = qwen
    model, frozen, fresh, _ = adapted(plain, params)
    options = FrozenConfigDict(
        {
            "learning_rate": 1e-2,
            "warmup": 0.0,
            "schedule": "constant",
            "final_learning_rate": 0.0,
            "clip_norm": 1.0,
            "moment_dtype": "",
            "beta1": 0.9,
            "beta2": 0.99,
            "epsilon": 1e-8,
            "weight_decay": 0.0,
        }
    )
    optimizer = adamw(options, 20)
    step = jax.jit(make_train_step(decoder_loss(model), optimizer, micro_batches))
    state = init_state(fresh, optimizer)
    held = [x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim > 1]
    assert sorted(held) == sorted(2 * [x.shape for x in jax.tree.leaves(fresh)])
    losses = []
    for _ in range(20):
        state, metrics = step(state, lora.with_frozen(batch(), frozen))
        losses.append(float(metrics.loss))
    assert losses[-1] < losses[0] - 0.1
    assert all(
        not np.array_equal(x, y)
        for x, y in zip(*map(jax.tree.leaves, (state.params, fresh)), strict=True)
    )


def test_dropout_is_a_function_of_step_and_row(qwen):
    _, plain, params = qwen
    model, frozen, _, moved = adapted(plain, params, ADAPTERS._replace(dropout=0.5))
    loss = jax.jit(decoder_loss(model))

    def at(step, row=0):
        keys = jnp.asarray([[step, row + k] for k in range(4)], jnp.uint32)
        return float(loss(moved, lora.with_frozen(batch(dropout=keys), frozen))[0])

    without = float(loss(moved, lora.with_frozen(batch(), frozen))[0])
    assert at(3) == at(3)
    assert len({at(3), at(4), at(3, row=1), without}) == 4
    same = float(
        jax.jit(decoder_loss(adapted(plain, params)[0]))(moved, lora.with_frozen(batch(), frozen))[
            0
        ]
    )
    assert without == pytest.approx(same, rel=1e-6)
