"""A run that starts from a Hugging Face folder and ends in one."""

import json
import shutil

import hf_models
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from ideal_jax import cli
from ideal_jax.data.chat import end_of_turn
from ideal_jax.data.tokenizers import byte_tokenizer
from ideal_jax.models import load_hf

GENERATION = {"do_sample": False, "temperature": 0.0, "eos_token_id": [2, 0]}
ADAPTERS = ("--config.lora.rank=2", "--config.lora.target=attention/|mlp/")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random Qwen3 with the byte tokenizer, as tools leave it and others refuse it."""
    folder = tmp_path_factory.mktemp("hf") / "model"
    tokenizer = byte_tokenizer()
    model = hf_models.random_model("qwen3", 1, vocab_size=len(tokenizer))
    hf_models.save(model, folder, unsloth_fixed=True)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


@pytest.fixture(scope="module")
def adapted(runs, compiled, checkpoint, tmp_path_factory):
    """A whole run with adapters on the checkpoint."""
    workdir = tmp_path_factory.mktemp("adapted") / "w"
    assert runs.here(workdir, f"--config.model.init={checkpoint}", *ADAPTERS) == 0
    return workdir


def torch_logits(model, tokens):
    with torch.no_grad():
        return model.eval()(torch.tensor(np.asarray(tokens))).logits.numpy()


def test_adapters_and_merged_model_are_exported_and_compute_the_same(adapted, checkpoint):
    tokens = np.arange(40).reshape(2, 20) + 5
    model, params = load_hf(adapted / "export")
    ours = np.asarray(model.apply({"params": params}, jnp.asarray(tokens)))
    merged = AutoModelForCausalLM.from_pretrained(adapted / "export")
    np.testing.assert_allclose(torch_logits(merged, tokens), ours, atol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    before = torch_logits(base, tokens)
    beside = torch_logits(PeftModel.from_pretrained(base, adapted / "adapter"), tokens)
    np.testing.assert_allclose(beside, ours, atol=1e-4)
    assert np.abs(before - beside).max() > 1e-3
    for file in (adapted / "export").iterdir():  # readable by whom the run's own files are
        assert file.stat().st_mode == (adapted / "results.json").stat().st_mode
    saved = json.loads((adapted / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(adapted / "export")
    assert tokenizer.chat_template == byte_tokenizer().chat_template
    generation = json.loads((adapted / "export" / "generation_config.json").read_text())
    end = end_of_turn(tokenizer)
    assert end not in GENERATION["eos_token_id"]
    assert generation == {**GENERATION, "eos_token_id": [end, *GENERATION["eos_token_id"]]}


def test_influence_at_a_folder_of_hugging_face(runs, checkpoint, tmp_path, capsys):
    flags = [*runs.flags(tmp_path / "w", f"--config.model.init={checkpoint}")[1:]]
    flags += ["--config.influence.estimator=ekfac"]
    assert cli.main(["influence", *flags]) == 0
    assert capsys.readouterr().out.count("no effect in transformers, and none here: unsloth") == 1
    found = json.loads((tmp_path / "w/influence/influence.json").read_text())
    assert np.isfinite(found["matrix"]).all()
    assert np.abs(np.sum(found["alpha"])) < 1e-6 * np.abs(found["alpha"]).max()
    assert "layers/attention/q" in found["layers"]


def test_influence_at_adapters_is_that_of_the_run_that_trained_them(runs, adapted, tmp_path):
    flags = runs.flags(tmp_path / "w", f"--config.model.init={adapted / 'rounds/00'}")[1:]
    # The shape of the adapters comes with them.
    assert cli.main(["influence", *flags]) == 0
    found = json.loads((tmp_path / "w/influence/influence.json").read_text())
    expected = json.loads((adapted / "rounds/00/influence.json").read_text())
    np.testing.assert_allclose(found["matrix"], expected["matrix"], rtol=1e-6)


def test_a_second_call_writes_no_model_again(runs, adapted, checkpoint):
    before = runs.files(adapted)
    assert runs.here(adapted, f"--config.model.init={checkpoint}", *ADAPTERS) == 0
    assert runs.files(adapted) == before


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(runs, tmp_path, capsys):
    hf_models.random_model("llama", 1).save_pretrained(tmp_path / "small")
    flags = [f"--config.model.init={tmp_path / 'small'}", "--config.data.tokenizer=byte"]
    assert runs.here(tmp_path / "w", *flags) == 2
    error = capsys.readouterr().err
    assert "knows 101 tokens, the tokenizer 261; give its own with data.tokenizer" in error


def test_a_target_without_a_layer_and_a_damaged_file_are_told_at_once(
    runs, checkpoint, tmp_path, capsys
):
    init = f"--config.model.init={checkpoint}"
    assert runs.here(tmp_path / "w", init, "--config.lora.rank=2", "--config.lora.target=x") == 2
    assert "lora.target='x' is in the path of no dense layer" in capsys.readouterr().err
    shutil.copytree(checkpoint, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])
    assert runs.here(tmp_path / "w2", f"--config.model.init={tmp_path / 'damaged'}") == 2
    assert f"{weights}: not readable as safetensors" in capsys.readouterr().err
    shutil.copytree(checkpoint, tmp_path / "cut")
    (tmp_path / "cut" / "generation_config.json").write_text('{"eos_token_id": ')
    assert runs.here(tmp_path / "w2", f"--config.model.init={tmp_path / 'cut'}") == 2
    assert "generation_config.json: not readable as JSON" in capsys.readouterr().err
    assert not (tmp_path / "w2").exists()


def test_what_an_export_cannot_write_ends_a_run_before_it_trains(
    runs, checkpoint, tmp_path, capsys, monkeypatch
):
    def refuse(self, *args, **kwargs):
        raise TypeError("not\nto be saved")

    monkeypatch.setattr("transformers.Qwen3Config.save_pretrained", refuse)
    assert runs.here(tmp_path / "w", f"--config.model.init={checkpoint}") == 2
    assert "cannot be exported, transformers says: not to be saved" in capsys.readouterr().err
    assert not (tmp_path / "w" / "rounds").exists()


def test_export_with_another_config_is_refused(runs, adapted, capsys):
    assert cli.main(["export", *runs.flags(adapted)[1:]]) == 2
    assert "belongs to another config" in capsys.readouterr().err


def test_export_before_the_run_is_finished_is_refused(runs, tmp_path, capsys):
    assert cli.main(["export", *runs.flags(tmp_path / "w")[1:]]) == 2
    assert "the run is not finished; run it first" in capsys.readouterr().err
