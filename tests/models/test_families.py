import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hf_models import CONFIGS, VOCAB, random_model, save, torch_logits
from transformers import AutoModelForCausalLM

from ideal_jax import sharding
from ideal_jax.errors import UserError
from ideal_jax.evaluation import make_generate
from ideal_jax.models import (
    DecoderConfig,
    decoder_loss,
    hf_model,
    hf_remarks,
    load_hf,
    save_hf,
)
from ideal_jax.models.config import LoRA
from ideal_jax.models.rope import RopeScaling

T = 24


def rows():
    """Tokens, positions and segments: left-padded, right-padded, packed."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, VOCAB, (3, T))
    segments = np.ones((3, T), np.int32)
    segments[0, :9] = segments[1, 17:] = 0
    segments[2, 8:19], segments[2, 19:] = 2, 0
    positions = np.zeros((3, T), np.int32)
    for row in range(3):
        for segment in (1, 2):
            here = segments[row] == segment
            positions[row, here] = np.arange(here.sum())
    return tokens, positions, segments


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("family", CONFIGS)
def test_logits_tensors_and_exports_equal_those_of_transformers(family, seed, tmp_path):
    theirs = random_model(family, seed)
    model, params = load_hf(save(theirs, tmp_path / "in"))
    tokens, positions, segments = rows()
    apply = jax.jit(lambda p, *inputs: model.apply({"params": p}, *inputs))
    ours = np.asarray(apply(params, tokens, positions, segments))
    padded = {"attention_mask": segments[:2], "position_ids": positions[:2].astype(np.int64)}
    expected = torch_logits(theirs, tokens[:2], **padded)
    real = segments[:2] > 0
    largest = np.abs(expected[real]).max()
    assert np.abs(ours[:2][real] - expected[real]).max() < 1e-5 * largest
    for segment in (1, 2):
        alone = segments[2] == segment
        expected = torch_logits(theirs, tokens[2:, alone])
        assert np.abs(ours[2, alone] - expected[0]).max() < 1e-5 * largest
    save_hf(tmp_path / "out", model, params)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert np.array_equal(torch_logits(theirs, tokens[:1]), torch_logits(again.eval(), tokens[:1]))


@pytest.mark.parametrize("family", CONFIGS)
def test_a_fine_tuned_export_says_in_transformers_what_it_says_here(family, tmp_path):
    model, params = load_hf(save(random_model(family, 5), tmp_path / "in"))
    loss = jax.jit(decoder_loss(model))
    tokens, positions, segments = rows()
    batch = {
        "tokens": jnp.asarray(tokens),
        "targets": jnp.roll(tokens, -1, axis=1),
        "weights": jnp.asarray(segments > 0, jnp.float32),
        "positions": jnp.asarray(positions),
        "segments": jnp.asarray(segments),
    }

    @jax.jit
    def tuned(params):
        def step(params, _):
            grads = jax.grad(lambda p: loss(p, batch)[0])(params)
            clip = 1 / jnp.maximum(1, optax.tree.norm(grads))
            return jax.tree.map(lambda p, g: p - 0.05 * clip * g, params, grads), None

        return jax.lax.scan(step, params, None, length=5)[0]

    new = tuned(params)
    assert float(loss(new, batch)[0]) < float(loss(params, batch)[0])
    save_hf(tmp_path / "out", model, new)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    prompts = tokens[:, :10]
    generated = theirs.eval().generate(
        torch.tensor(prompts),
        attention_mask=torch.ones(prompts.shape, dtype=torch.long),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    generate = jax.jit(make_generate(model, max_new_tokens=12, end_id=-1))
    ours = generate(new, jnp.asarray(prompts, jnp.int32), jnp.full(3, 10))
    assert np.array_equal(ours, generated[:, 10:].numpy())


def test_bfloat16_is_kept_bit_for_bit_and_sharded_files_have_an_index(tmp_path):
    theirs = random_model("qwen3", 1).to(torch.bfloat16)
    model, params = load_hf(save(theirs, tmp_path / "in"), dtype="bfloat16")
    save_hf(tmp_path / "out", model, params, shard_bytes=10_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    stored = sum(t.numel() * t.element_size() for t in set(theirs.parameters()))
    assert index["metadata"]["total_size"] == stored
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in theirs.state_dict().items())
    reread, same = load_hf(tmp_path / "out", dtype="bfloat16")
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, same))
    assert reread.cfg == model.cfg


def test_the_config_of_the_hub_before_transformers_5_is_understood(tmp_path):
    folder = save(random_model("llama", 1), tmp_path)
    file = folder / "config.json"
    values = json.loads(file.read_text())
    del values["rope_parameters"]
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 32, "rope_type": "llama3"}
    values |= {"rope_theta": 500000.0, "rope_scaling": scaling, "torch_dtype": "float32"}
    file.write_text(json.dumps(values))
    model, _ = load_hf(folder)
    assert model.cfg.rope_theta == 500_000.0
    assert model.cfg.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 32)


@pytest.mark.parametrize(
    ("family", "change", "told"),
    [
        ("llama", {"model_type": "lama"}, "did you mean llama?"),
        ("llama", {"model_type": "mixtral"}, "model_type 'mixtral' is not supported"),
        ("llama", {"hidden_act": "relu"}, "activation 'relu' is not supported"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, "quantization_config="),
        ("llama", {"is_causal": False}, "is_causal=False"),
        ("llama", {"sliding_window": 8}, "sliding_window=8"),
        ("llama", {"per_layer_config": {"0": {"hidden_size": 8}}}, "per-layer attribute"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 2}, "'chunked_attention' of layer_types"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 2}, "sliding_window is None"),
        ("gemma2", {"hidden_act": "gelu"}, "hidden_act='gelu' is not hidden_activation='gelu_py"),
        ("gemma3_text", {"hidden_act": "silu"}, "hidden_act='silu' is not hidden_activation="),
        ("mistral", {"layer_types": ["full_attention"] * 2}, "model_type 'ministral'"),
        ("mistral", {"layer_types": ["full_attention"] * 9}, "must be equal to the number"),
        ("llama", {"hidden_size": "wide"}, "not a valid config"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma3_text", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping=30.0"),
        (
            "gemma3_text",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_type 'yarn' is not supported",
        ),
    ],
)
def test_what_is_not_computed_is_refused_by_name(family, change, told, tmp_path):
    folder = save(random_model(family, 1), tmp_path, **change)
    with pytest.raises(UserError) as error:
        load_hf(folder)
    assert told in str(error.value)
    assert str(folder / "config.json") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "change", "told"),
    [
        ("qwen2", {"use_mrope": False, "rope_scaling": None, "pruned_heads": {}}, ""),
        ("qwen3", {"gradient_checkpointing": True, "auto_map": {"AutoConfig": "x.Y"}}, ""),
        ("gemma2", {"hidden_act": "gelu_pytorch_tanh"}, ""),
        ("llama", {"use_parallel_residual": True}, "use_parallel_residual"),
        ("llama", {"layer_types": ["full_attention"] * 2, "top_k": 50}, "layer_types, top_k"),
        ("mistral", {"unsloth_fixed": True, "max_seq_len": 4096}, "max_seq_len, unsloth_fixed"),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": 2.0, "finetuned": True}},
            "rope_scaling.finetuned",
        ),
    ],
)
def test_a_key_that_transformers_does_not_read_is_told_once(family, change, told, tmp_path):
    folder = save(random_model(family, 1), tmp_path, **change)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", UserWarning)
        model = hf_model(folder, "float32")
        assert not heard
        remarks = hf_remarks(folder, model)
    line = f"{folder / 'config.json'}: no effect in transformers, and none here: {told}"
    assert remarks == ([line] if told else [])


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        load_hf(tmp_path)
    folder = save(random_model("llama", 1), tmp_path / "x")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        load_hf(folder)


def test_a_name_of_the_hub_is_found_in_its_cache(tmp_path, monkeypatch):
    cache = tmp_path / "hub" / "models--some--model"
    expected = random_model("llama", 1)
    save(expected, cache / "snapshots" / "abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", cache.parent)
    _, params = load_hf("some/model")
    embedding = expected.state_dict()["model.embed_tokens.weight"].numpy()
    np.testing.assert_array_equal(params["embedding"][:VOCAB], embedding)
    with pytest.raises(UserError, match="some/other: no such folder, and the hub says"):
        load_hf("some/other")


def test_missing_foreign_and_misshapen_tensors_are_named(tmp_path):
    theirs = random_model("llama", 4)
    broken = dict(theirs.state_dict())
    del broken["model.layers.1.mlp.up_proj.weight"]
    theirs.save_pretrained(tmp_path / "missing", state_dict=broken)
    with pytest.raises(UserError, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        load_hf(tmp_path / "missing")
    foreign = {**theirs.state_dict(), "model.layers.0.extra.weight": torch.zeros(2)}
    theirs.save_pretrained(tmp_path / "foreign", state_dict=foreign)
    with pytest.raises(UserError, match=r"model\.layers\.0\.extra\.weight is no tensor"):
        load_hf(tmp_path / "foreign")
    folder = save(theirs, tmp_path / "shape", vocab_size=VOCAB + 1)
    with pytest.raises(UserError, match=r"model\.embed_tokens\.weight is \(101, "):
        load_hf(folder)


def test_nothing_is_overwritten(tmp_path):
    model, params = load_hf(save(random_model("llama", 1), tmp_path / "in"))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        save_hf(tmp_path / "out", model, params)


def test_a_mesh_gets_the_shards_it_asked_for(tmp_path):
    folder = save(random_model("llama", 1), tmp_path)
    mesh = sharding.make_mesh(fsdp=1, tensor=1)
    _, placed = load_hf(folder, mesh=mesh)
    _, plain = load_hf(folder)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, placed, plain))
    assert all(x.sharding.mesh == mesh for x in jax.tree.leaves(placed))


def test_a_config_survives_json():
    cfg = DecoderConfig(
        VOCAB, 8, 2, 2, 1, 4, 16, windows=(3, 0), rope_scaling=RopeScaling("linear", 2.0)
    )
    for whole in (cfg, DecoderConfig(VOCAB, 8, 2, 2, 1, 4, 16, lora=LoRA(2, 4.0, 0.0, "q$"))):
        assert DecoderConfig.of_json(json.loads(json.dumps(whole.to_json()))) == whole
