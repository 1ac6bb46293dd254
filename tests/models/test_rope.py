"""Stretched rotary positions against transformers."""

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hf_models import VOCAB, torch_logits
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ideal_jax.errors import UserError
from ideal_jax.evaluation import make_generate
from ideal_jax.models import load_hf
from ideal_jax.models.families import decoder_config
from ideal_jax.models.rope import rope_frequencies

SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


def config(rope, theta=1e4, longest=4096, **shape):
    rope = {**rope, "rope_theta": theta}
    return transformers.LlamaConfig(
        **{**SHAPE, **shape}, max_position_embeddings=longest, rope_parameters=rope
    )


@pytest.mark.parametrize(
    "rope",
    [
        YARN,
        {**YARN, "type": "yarn", "factor": 16.0},
        {**YARN, "truncate": False},
        {**YARN, "beta_fast": 8, "beta_slow": 2},
        {**YARN, "beta_fast": None, "beta_slow": 0},
        {**YARN, "attention_factor": 0.7},
        {**YARN, "mscale": 0.707, "mscale_all_dim": 1.2},
        {**YARN, "mscale": 1.0},
        {**YARN, "factor": None},
        {**YARN, "factor": 1.0},
        {**YARN, "original_max_position_embeddings": 4},
        {"rope_type": "yarn", "factor": 2.0},  # the original length is the config's
        {"rope_type": "dynamic", "factor": 2.0},
    ],
)
@pytest.mark.parametrize(("theta", "head_dim"), [(1e4, 16), (1e6, 128)])
def test_frequencies_are_those_of_transformers(rope, theta, head_dim):
    theirs = config(rope, theta, head_dim=head_dim)
    expected, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs, "cpu")
    scaling = decoder_config(theirs, "x", "float32").rope_scaling
    np.testing.assert_allclose(rope_frequencies(head_dim, theta, scaling), expected, rtol=1e-5)
    assert scaling.attention_factor == pytest.approx(factor)


@pytest.mark.parametrize(
    ("rope", "told"),
    [
        (
            {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
            "longrope",
        ),
        ({**YARN, "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({**YARN, "factor": -1.0}, "factor=-1.0"),
        ({"rope_type": "linear", "factor": None}, "factor=None"),
        ({"rope_type": "dynamic", "factor": "two"}, "factor='two'"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(rope, told):
    with pytest.raises(UserError, match=told):
        decoder_config(config(rope), "x", "float32")


def test_an_example_has_the_base_of_its_own_length(tmp_path):
    """Dynamic: in a row of any neighbours an example is what it is alone in transformers."""
    theirs = _dynamic(tmp_path)
    model, params = load_hf(tmp_path)
    lengths = (14, 20, 16, 6)  # the original length is 16
    tokens = np.random.default_rng(0).integers(3, VOCAB, (1, sum(lengths)))
    segments = np.repeat(np.arange(4), lengths)[None]
    positions = np.concatenate([np.arange(length) for length in lengths])[None]
    with jax.disable_jit():
        ours = np.asarray(compiled.apply(model, params, tokens, positions, segments))
    for segment in range(4):
        own = segments[0] == segment
        expected = torch_logits(_fresh(theirs), tokens[:, own])
        assert np.abs(ours[:, own] - expected).max() < 1e-4


def test_answers_that_grow_beyond_the_original_length_are_those_of_transformers(tmp_path):
    theirs = _dynamic(tmp_path)
    model, params = load_hf(tmp_path)
    generate = jax.jit(make_generate(model, max_new_tokens=14, end_id=-1))
    prompts = np.random.default_rng(1).integers(3, VOCAB, (3, 19))
    lengths = np.asarray([9, 15, 19])
    ours = generate(params, jnp.asarray(prompts, jnp.int32), jnp.asarray(lengths))
    for row, length in enumerate(lengths):
        expected = _fresh(theirs).generate(
            torch.tensor(prompts[row : row + 1, :length]),
            max_new_tokens=14,
            do_sample=False,
            eos_token_id=None,
        )
        assert np.array_equal(ours[row], expected[0, length:].numpy())


def _dynamic(folder):
    torch.manual_seed(0)
    made = config({"rope_type": "dynamic", "factor": 4.0}, 1e2, 16)
    made._attn_implementation = "eager"
    theirs = AutoModelForCausalLM.from_config(made).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=1.5 / parameter.shape[-1] ** 0.5)
    theirs.save_pretrained(folder)
    return theirs


def _fresh(theirs):
    """Without the frequencies of what it saw before."""
    again = AutoModelForCausalLM.from_config(theirs.config).eval()
    again.load_state_dict(theirs.state_dict())
    return again
