"""What a folder of Hugging Face holds beside its tensors: read, refused, handed on."""

import json
import warnings

import compiled
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_models import VOCAB, random_model, save, torch_logits
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from ideal_jax.errors import UserError
from ideal_jax.models import check_export, hf_model, load_hf, save_hf

VICUNA = {"_from_model_config": True, "temperature": 0.9, "top_p": 0.6, "pad_token_id": 0}
CHAT = {"bos_token_id": 1, "do_sample": False, "temperature": 0.0, "eos_token_id": [2, 0]}
STRANGE = {"top_k": 0, "max_length": 4096, "written_by": "a tool", "eos_token_id": 2}


def tokenizer():
    words = {str(i): i for i in range(VOCAB)}
    model = models.WordLevel(words, unk_token="0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="2")


def written(folder, name):
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(folder, model of transformers) whose output matrix is the embedding."""
    theirs = random_model("llama", 3)
    assert theirs.config.tie_word_embeddings
    return save(theirs, tmp_path_factory.mktemp("llama") / "m"), theirs


def copy(folder, target, **files):
    """The folder with other contents of some files (text, or an object)."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (target / f"{name}.json").write_text(text)
    return target


@pytest.mark.parametrize("given", [VICUNA, CHAT, STRANGE])
def test_a_generation_config_is_handed_on_as_it_was_written(given, llama, tmp_path):
    folder = copy(llama[0], tmp_path / "in", generation_config=given)
    model, params = load_hf(folder)
    check_export(model, tokenizer(), 2)
    save_hf(tmp_path / "out", model, params, tokenizer())
    assert written(tmp_path / "out", "generation_config.json") == given
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("text", ['{"eos_token_id": ', "", "[1, 2]", "\ufeff{}"])
@pytest.mark.parametrize("name", ["config", "generation_config"])
def test_a_damaged_json_file_is_named_in_one_line(name, text, llama, tmp_path):
    folder = copy(llama[0], tmp_path / "in", **{name: text})
    with pytest.raises(UserError) as error:
        hf_model(folder, "float32")
    assert f"{folder / name}.json: " in str(error.value)
    assert "\n" not in str(error.value)


def test_what_transformers_would_not_save_is_told_before_it_is_needed(llama):
    model = hf_model(llama[0], "float32")
    refused = tokenizer()
    refused.init_kwargs["added_by_a_tool"] = object()
    with pytest.raises(
        UserError, match=r"cannot be exported, transformers says: .*object"
    ) as error:
        check_export(model, refused)
    assert "\n" not in str(error.value)
    values = json.loads(model.origin)
    values["config"]["pad_token_id"] = "none"
    with pytest.raises(UserError, match=r"cannot be exported, transformers says: .*pad_token_id"):
        check_export(type(model)(model.cfg, json.dumps(values)), tokenizer())


@pytest.mark.parametrize(
    ("config", "generation", "end_id", "expected"),
    [
        (2, None, 7, [7, 2]),
        (None, None, 7, [7, 2]),  # the tokenizer's, where the config has none
        ([2, 7], None, 7, [2, 7]),
        (7, {"eos_token_id": 2}, 7, [7, 2]),
        (2, {"eos_token_id": [2, 0], "top_p": 0.9}, 7, [7, 2, 0]),
        (2, {"temperature": 0.9}, 7, 7),
        (2, {"eos_token_id": 2}, None, 2),
    ],
)
def test_an_export_stops_where_training_taught_it_to(
    config, generation, end_id, expected, llama, tmp_path
):
    files = {} if generation is None else {"generation_config": generation}
    folder = copy(llama[0], tmp_path / "in", **files)
    if generation is None:
        (folder / "generation_config.json").unlink()
    values = {**written(folder, "config.json"), "eos_token_id": config}
    (folder / "config.json").write_text(json.dumps(values))
    model, params = load_hf(folder)
    save_hf(tmp_path / "out", model, params, tokenizer(), end_id=end_id)
    found = written(tmp_path / "out", "generation_config.json")
    assert found == {**found, **(generation or {}), "eos_token_id": expected}
    ends = written(tmp_path / "out", "config.json")["eos_token_id"]
    assert end_id is None or end_id in np.atleast_1d(ends)


def test_generate_in_transformers_ends_at_the_end_of_a_turn(tmp_path):
    theirs = random_model("qwen3", 2)  # which says token 7 whatever it is asked
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
        theirs.model.embed_tokens.weight.fill_(1.0)
        theirs.model.norm.weight.fill_(1.0)
    head = torch.zeros_like(theirs.lm_head.weight)
    head[7] = 1.0
    tensors = {**theirs.state_dict(), "lm_head.weight": head}
    folder = save(theirs, tmp_path / "in", tie_word_embeddings=False, eos_token_id=2)
    save_file(tensors, folder / "model.safetensors")
    model, params = load_hf(folder)
    save_hf(tmp_path / "out", model, params, tokenizer(), end_id=7)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    said = again.generate(torch.tensor([[5, 6]]), max_new_tokens=9, do_sample=False)
    assert said.tolist() == [[5, 6, 7]]


@pytest.mark.parametrize(("family", "seed"), [("llama", 3), ("gemma2", 1), ("qwen3", 3)])
def test_an_output_matrix_that_is_not_the_embedding_is_used(family, seed, tmp_path):
    theirs = random_model(family, seed)
    folder = save(theirs, tmp_path / "in", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding + 0.1 * torch.randn_like(embedding)
    save_file(tensors, folder / "model.safetensors")
    with pytest.warns(UserWarning, match=r"lm_head\.weight is another matrix") as told:
        model, params = load_hf(folder)
    assert len(told) == 1
    save_hf(tmp_path / "out", model, params)
    assert written(tmp_path / "out", "config.json")["tie_word_embeddings"] is False
    tokens = np.arange(3, 19)[None]
    ours = np.asarray(compiled.apply(model, params, jnp.asarray(tokens)))
    for where in (folder, tmp_path / "out"):
        again = AutoModelForCausalLM.from_pretrained(where, attn_implementation="eager").eval()
        expected = torch_logits(again, tokens)
        assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()


def test_an_output_matrix_that_is_the_embedding_stays_tied(llama, tmp_path):
    folder = copy(llama[0], tmp_path / "in")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model, params = load_hf(folder)
    assert model.cfg.tie_embeddings
    assert "head" not in params


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ('{"weight_map": ', "not readable as JSON"),
        ("", "not readable as JSON"),
        ("[]", "has no weight_map"),
        ({"metadata": {"total_size": 1}}, "has no weight_map"),
        ({"weight_map": {}}, "has no weight_map"),
        ({"weight_map": {"lm_head.weight": 3}}, "has no weight_map"),
        ({"weight_map": ["model.safetensors"]}, "has no weight_map"),
        ({"weight_map": {"x": "model-2.safetensors"}}, "names model-2.safetensors, which is not"),
    ],
)
def test_a_damaged_index_is_named(index, told, llama, tmp_path):
    folder = copy(llama[0], tmp_path / "in", **{"model.safetensors.index": index})
    with pytest.raises(UserError, match=told) as error:
        load_hf(folder)
    assert str(folder / "model.safetensors.index.json") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 5, 200, 3000])
def test_a_cut_file_of_tensors_is_named(size, llama, tmp_path):
    folder = copy(llama[0], tmp_path / "in")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError) as error:
        load_hf(folder)
    assert f"{file}: not readable as safetensors" in str(error.value)
    assert "\n" not in str(error.value)
