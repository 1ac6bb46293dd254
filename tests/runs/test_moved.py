"""A work directory with adapters that moved: what it saved is found again."""

import json
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

from ideal_jax import cli
from ideal_jax.data.tokenizers import byte_tokenizer, digest, load_tokenizer
from ideal_jax.runs.base_model import frozen_folder
from ideal_jax.runs.model_tokenizer import own_tokenizer

ADAPTERS = ("--config.lora.rank=2", "--config.mixture.rounds=0")


@pytest.fixture(scope="module", params=[2, 0], ids=["trained base", "random base"])
def moved(request, runs, compiled, tmp_path_factory):
    """(the work directory where it is now, the flags of its run)."""
    place = tmp_path_factory.mktemp("moved")
    flags = (*ADAPTERS, f"--config.base.steps={request.param}")
    assert runs.here(place / "w", *flags) == 0
    (place / "w").rename(place / "v")
    return place / "v", flags


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(40).reshape(2, 20) + 5).logits


def test_nothing_that_other_runs_read_names_the_old_place(moved):
    workdir, _ = moved
    for file in workdir.rglob("model.json"):
        assert str(workdir.parent) not in file.read_text()
    assert json.loads((workdir / "rounds/00/model.json").read_text())["base"] == "../../base"


def test_all_it_left_carries_its_tokenizer(moved):
    workdir, _ = moved
    for part in ("base", "rounds/00"):
        assert own_tokenizer(str(workdir / part)) == workdir / part / "tokenizer"
        assert digest(load_tokenizer(workdir / part / "tokenizer")) == digest(byte_tokenizer())


def test_its_adapters_name_their_model_wherever_they_are_read_from(moved, monkeypatch):
    workdir, _ = moved
    for folder, init in ((workdir, "rounds/00"), (workdir / "rounds", "../../v/rounds/00")):
        monkeypatch.chdir(folder)
        assert frozen_folder(init) == str(workdir / "base")


def test_influence_at_its_adapters(moved, runs, tmp_path):
    workdir, _ = moved
    flags = runs.flags(tmp_path / "i", f"--config.model.init={workdir / 'rounds/00'}")[1:]
    assert cli.main(["influence", *flags]) == 0
    assert (tmp_path / "i/influence/influence.json").exists()


def test_its_adapters_name_their_model_after_an_export(moved, runs):
    workdir, flags = moved
    before = logits(AutoModelForCausalLM.from_pretrained(workdir / "export"))
    for lost in ((), ("export", "export.json")):  # nothing to do, and everything
        for name in lost:
            path = workdir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert cli.main(["export", *runs.flags(workdir, *flags)[1:]]) == 0
        named = json.loads((workdir / "adapter/adapter_config.json").read_text())
        assert named["base_model_name_or_path"] == str(workdir / "adapter_base")
        base = AutoModelForCausalLM.from_pretrained(workdir / "adapter_base")
        beside = PeftModel.from_pretrained(base, workdir / "adapter")
        by_name = AutoPeftModelForCausalLM.from_pretrained(workdir / "adapter")
        whole = AutoModelForCausalLM.from_pretrained(workdir / "export")
        for model in (beside, by_name, whole):
            torch.testing.assert_close(logits(model), before, atol=1e-4, rtol=0)


def test_adapters_of_a_model_that_is_gone(moved, runs, tmp_path, capsys):
    workdir, _ = moved
    shutil.copytree(workdir / "rounds/00", tmp_path / "alone")
    flags = runs.flags(tmp_path / "i", f"--config.model.init={tmp_path / 'alone'}")[1:]
    assert cli.main(["influence", *flags]) == 2
    error = capsys.readouterr().err
    assert "alone holds adapters of the model" in error
    assert f'give its new place as "base" in {tmp_path / "alone" / "model.json"}' in error


def test_a_model_beside_the_run_stays_where_it_is(runs, moved, tmp_path, monkeypatch):
    """A relative ``model.init`` is read from the current folder; what is saved needs no such."""
    workdir, _ = moved
    monkeypatch.chdir(tmp_path)
    shutil.copytree(workdir / "adapter_base", "model")
    assert runs.here("w", "--config.model.init=model", *ADAPTERS) == 0
    monkeypatch.chdir("/")
    saved = json.loads((tmp_path / "w/rounds/00/model.json").read_text())
    assert saved["base"] == str(tmp_path / "model")
    by_name = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "w/adapter")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "w/export")
    torch.testing.assert_close(logits(by_name), logits(whole), atol=1e-4, rtol=0)
