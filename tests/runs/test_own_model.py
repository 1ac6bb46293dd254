"""The README's "Your own model", word for word, on a tiny model with a large vocabulary."""

import contextlib
import io
import json
import pathlib
import re
import shlex

import chatml_model
import pytest
from transformers import AutoTokenizer

from ideal_jax import cli
from ideal_jax.data.tokenizers import digest, load_tokenizer

ROOT = pathlib.Path(__file__).parents[2]
SIZE = 8300  # beyond the 8192 tokens that the config would train for a random model
ANSWERS = {"code": "return 4", "math": "it is four"}
# Smaller, not other: fewer steps, rounds and rows.
SMALLER = """training.steps=50 training.epochs=0 training.batch_size=4 training.learning_rate=0.02
    data.row_length=32 mixture.rounds=0 mixture.counts= data.domains= eval.examples=2
    eval.max_new_tokens=8 logging.progress=False"""


def blocks(language):
    """The code of the section, by language."""
    section = (ROOT / "README.md").read_text().split("## Your own model")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


@pytest.fixture(scope="module")
def place(compiled, tmp_path_factory):
    """A folder in which every command of the section has run."""
    place = tmp_path_factory.mktemp("readme")
    chatml_model.save_chatml_model(place / "models/Qwen3-4B", SIZE)
    chatml_model.write_domains(place / "my_domains", ANSWERS)
    smaller = [f"--config.{flag}" for flag in SMALLER.split()]
    for command in "".join(blocks("bash")).replace("\\\n", " ").splitlines():
        name, *arguments = shlex.split(placed(command, place))
        assert name == "ideal-jax"
        assert cli.main([*arguments, *smaller]) == 0
    return place


def placed(code, place):
    """The code with the README's folders in ``place`` and those of the checkout at its root."""
    code = re.sub(r"\b(models|my_domains|runs)\b(?=[/ ]|$)", rf"{place}/\1", code)
    return code.replace("configs/", f"{ROOT}/configs/")


def said(place, run):
    """Our greedy answer to a question of every domain."""
    (record,) = (place / run / "rounds").glob("*/evaluation.json")
    samples = json.loads(record.read_text())["samples"]
    return {s["domain"]: (s["prompt"], s["generated"]) for s in samples}


def test_transformers_and_peft_say_what_the_run_said(place):
    (code,) = blocks("python")
    whole, adapted = said(place, "runs/qwen"), said(place, "runs/qwen_lora")
    for domain, (question, _) in whole.items():
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            exec(placed(code, place).replace("What is 2 + 2?", question), {})
        assert told.getvalue().splitlines() == [whole[domain][1], adapted[domain][1]]
    # Both have learnt to answer and to stop, so the texts are not equal by being empty.
    assert {domain: answer for domain, (_, answer) in whole.items()} == ANSWERS
    assert {domain: answer for domain, (_, answer) in adapted.items()} == ANSWERS


@pytest.mark.parametrize("run", ["qwen", "qwen_lora"])
@pytest.mark.parametrize("part", ["export", "data/tokenizer", "rounds/00/tokenizer"])
def test_the_tokenizer_comes_out_as_it_went_in(place, run, part):
    before = AutoTokenizer.from_pretrained(place / "models/Qwen3-4B")
    after = AutoTokenizer.from_pretrained(place / "runs" / run / part)
    assert len(after) == SIZE
    assert digest(after) == digest(before)
    assert after.chat_template == chatml_model.TEMPLATE
    assert (after.eos_token, after.pad_token) == ("<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize("run", ["qwen", "qwen_lora"])
def test_a_round_is_a_model_with_that_tokenizer(place, run, tmp_path):
    init = place / "runs" / run / "rounds/00"
    flags = [f"--config={ROOT}/configs/real_small.py", f"--config.data.root={place}/my_domains"]
    flags += ["--config.data.domains=", "--config.mixture.counts=", f"--workdir={tmp_path}/w"]
    assert cli.main(["data", *flags, f"--config.model.init={init}"]) == 0
    found = load_tokenizer(tmp_path / "w/data/tokenizer")
    assert digest(found) == digest(load_tokenizer(place / "models/Qwen3-4B"))
