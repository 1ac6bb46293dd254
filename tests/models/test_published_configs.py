"""config.json as publishers wrote it: all its keys, smaller sizes, random weights.

The texts in ``published/`` are of checkpoints of every family, from public copies, model cards and
documentation. Programs are run operation by operation: all texts share the operations' shapes.
"""

import json
import pathlib
import warnings

import compiled
import jax
import numpy as np
import pytest
import torch
from hf_models import torch_logits
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from ideal_jax.models import hf_model, load_hf, save_hf

TEXTS = sorted((pathlib.Path(__file__).parent / "published").glob("*.json"))
VOCAB, T, ORIGINAL, WINDOW = 97, 24, 16, 5  # T is beyond every window and original length
# What transformers does not read of each text, as it is told.
UNREAD = {
    "Qwen2.5-7B-Instruct-1M": "dual_chunk_attention_config",
    "SmolLM2-135M-Instruct": "is_llama_config, transformers.js_config",
    "Yarn-Llama-2-7b-64k": "rope_scaling.finetuned",
    "gemma-2-27b": "cache_implementation, sliding_window_size",
    "gemma-2-2b": "cache_implementation",
    "gemma-2-9b-it": "cache_implementation, sliding_window_size",
    "gemma-3-1b-it": "cache_implementation",
    "vicuna-7b-v1.3": "max_sequence_length",
    "vicuna-7b-v1.5-16k": "max_sequence_length",
}


def shrunk(values):
    """All keys of a config, with sizes that take no time; what decides stays in proportion."""
    small = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "pad_token_id": 0}
    layers = small["num_hidden_layers"] = 7 if values["model_type"] == "gemma3_text" else 2
    heads, groups = values["num_attention_heads"], values.get("num_key_value_heads")
    small |= {"num_attention_heads": 4, "head_dim": 16, "max_window_layers": 1}
    if "head_dim" not in values:
        small["hidden_size"] = 64  # heads of the same size, whose operations are shared
    small["num_key_value_heads"] = {heads: 4, 1: 1}.get(groups, 2)
    small |= {"sliding_window": WINDOW, "sliding_window_size": WINDOW}
    small["layer_types"] = values.get("layer_types", [])[:layers]
    rope = dict(values.get("rope_scaling") or {})
    if "original_max_position_embeddings" in rope:
        rope["original_max_position_embeddings"] = ORIGINAL
    # The length of pre-training, times what the text says it was stretched by.
    longer = values["max_position_embeddings"] / (values.get("rope_scaling") or {}).get(
        "original_max_position_embeddings", values["max_position_embeddings"]
    )
    small |= {"rope_scaling": rope or None, "max_position_embeddings": int(ORIGINAL * longer)}
    return {k: small[k] if k in small and v is not None else v for k, v in values.items()}


def write(folder, values, seed=0):
    """A folder with this config and random weights; the model of transformers."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    config = AutoConfig.from_pretrained(folder, attn_implementation="eager")
    theirs = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            spread = 0.3 if parameter.ndim == 1 else 1.5 / parameter.shape[-1] ** 0.5
            parameter.normal_(std=spread, generator=generator)
            if name.endswith("norm.weight") and "gemma" not in values["model_type"]:
                parameter.add_(1.0)
    tensors = dict(theirs.state_dict())
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    return theirs


def our_logits(model, params, tokens):
    with jax.disable_jit():
        return np.asarray(compiled.apply(model, params, tokens))


@pytest.mark.parametrize("text", TEXTS, ids=[path.stem for path in TEXTS])
def test_a_published_config_computes_what_it_does_in_transformers(text, tmp_path):
    theirs = write(tmp_path / "in", shrunk(json.loads(text.read_text())))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        model, params = load_hf(tmp_path / "in")
    told = [str(w.message) for w in told if "config.json" in str(w.message)]
    unread = UNREAD.get(text.stem)
    file = tmp_path / "in" / "config.json"
    assert told == (
        [f"{file}: no effect in transformers, and none here: {unread}"] if unread else []
    )
    tokens = np.random.default_rng(1).integers(0, VOCAB, (1, T))
    expected = torch_logits(theirs, tokens)
    largest = np.abs(expected).max()
    assert np.abs(our_logits(model, params, tokens) - expected).max() < 1e-4 * min(1, largest)
    save_hf(tmp_path / "out", model, params)
    again = AutoConfig.from_pretrained(tmp_path / "out")
    assert again.rope_parameters == theirs.config.rope_parameters
    assert hf_model(tmp_path / "out", "float32").cfg == model.cfg
