"""Tiny random models of every family, made by transformers and torch."""

import json

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

VOCAB = 101


def _shape(rng):
    head_dim = int(rng.choice([8, 16]))
    kv_heads = int(rng.choice([1, 2]))
    return {
        "vocab_size": VOCAB,
        "hidden_size": int(rng.choice([24, 32])),
        "intermediate_size": int(rng.choice([40, 48])),
        "num_hidden_layers": int(rng.integers(2, 5)),
        "num_attention_heads": kv_heads * int(rng.choice([2, 4])),
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": 256,
        "rms_norm_eps": float(rng.choice([1e-5, 1e-6])),
        "tie_word_embeddings": bool(rng.integers(2)),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _llama(rng):
    scaled = {
        "rope_type": "llama3",
        "rope_theta": 50.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    ropes = [{"rope_type": "default", "rope_theta": 500.0}, scaled]
    ropes.append({"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0})
    return transformers.LlamaConfig(
        **_shape(rng),
        rope_parameters=ropes[rng.integers(3)],
        attention_bias=bool(rng.integers(2)),
        mlp_bias=bool(rng.integers(2)),
    )


def _mistral(rng):
    return transformers.MistralConfig(
        **_shape(rng), sliding_window=[None, 3, 7][rng.integers(3)], rope_theta=1e6
    )


def _qwen2(rng):
    shape = _shape(rng)
    shape["hidden_size"] = shape["num_attention_heads"] * shape.pop("head_dim")
    return transformers.Qwen2Config(
        **shape, use_sliding_window=bool(rng.integers(2)), sliding_window=4, max_window_layers=1
    )


def _qwen3(rng):
    return transformers.Qwen3Config(**_shape(rng), attention_bias=bool(rng.integers(2)))


def _gemma2(rng):
    return transformers.Gemma2Config(
        **_shape(rng),
        sliding_window=int(rng.integers(3, 7)),
        query_pre_attn_scalar=int(rng.choice([16, 20])),
        attn_logit_softcapping=[None, 2.0][rng.integers(2)],
        final_logit_softcapping=[None, 3.0][rng.integers(2)],
    )


def _gemma3(rng):
    full = [{"rope_type": "default"}, {"rope_type": "linear", "factor": 8.0}][rng.integers(2)]
    return transformers.Gemma3TextConfig(
        **{**_shape(rng), "num_hidden_layers": 7},
        sliding_window=int(rng.integers(3, 7)),
        query_pre_attn_scalar=16,
        rope_parameters={
            "full_attention": {**full, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )


CONFIGS = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
}


def random_model(family, seed, vocab_size=VOCAB):
    """A torch model with weights, biases and norms far from their initial values."""
    config = CONFIGS[family](np.random.default_rng(seed))
    config.vocab_size = vocab_size
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim == 1 else 1.5 / parameter.shape[-1] ** 0.5
            parameter.normal_(std=spread)
            if name.endswith("norm.weight") and "gemma" not in family:
                parameter.add_(1.0)
    return model


def save(model, folder, **changes):
    """Saves a model, with ``changes`` in its config.json."""
    model.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def torch_logits(model, tokens, **inputs):
    """float32[B, T, V]."""
    with torch.no_grad():
        inputs = {name: torch.tensor(np.asarray(value)) for name, value in inputs.items()}
        return model(torch.tensor(np.asarray(tokens)), **inputs).logits.float().numpy()
