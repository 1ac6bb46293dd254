"""A model keeps its tokenizer: which one is meant, and that another is refused everywhere."""

import json
import shutil

import chatml_model
import pytest
import tokenizers

from ideal_jax import cli
from ideal_jax.data.tokenizers import byte_tokenizer, digest, load_tokenizer, tokens_digest
from ideal_jax.errors import UserError
from ideal_jax.models import Decoder, DecoderConfig, random_params
from ideal_jax.runs.model_tokenizer import choose_tokenizer
from ideal_jax.runs.planning.setting import planned_decoder
from ideal_jax.sharding import make_mesh
from ideal_jax.training.checkpoints import save_model

SIZE = 320


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of Hugging Face with ChatML."""
    folder = tmp_path_factory.mktemp("hf") / "model"
    chatml_model.save_chatml_model(folder, SIZE)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two small domains."""
    root = tmp_path_factory.mktemp("domains")
    chatml_model.write_domains(root, {"a": "yes, of course", "b": "no, never"})
    return root


@pytest.fixture
def copy(checkpoint, tmp_path):
    """The same model, to be spoilt."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.fixture
def config(runs, root):
    """The smallest config with a model and, unless it is "auto", a tokenizer."""

    def make(init, tokenizer="auto"):
        found = cli.config_lib.load(runs.config)
        found.data.root, found.data.domains = str(root), ""
        found.model.init, found.data.tokenizer = str(init), str(tokenizer)
        return found

    return make


@pytest.fixture
def call(runs, root, tmp_path, capsys):
    """(exit status, what was said) of a verb."""

    def verb(name, init, *flags, workdir="w"):
        given = [f"--config.data.root={root}", "--config.data.domains=", *flags]
        arguments = runs.flags(tmp_path / workdir, f"--config.model.init={init}", *given)[1:]
        status = cli.main([name, *arguments])
        told = capsys.readouterr()
        return status, told.out + told.err

    return verb


def saved(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return folder


def own_model(folder, tokenizer):
    """What a run leaves of a model of its own."""
    cfg = DecoderConfig(300, 16, 1, 2, 1, 8, 16, 1e4, 1e-5, True)
    params = random_params(Decoder(cfg), make_mesh(replica=1, fsdp=-1, tensor=1, slices=1), 0)
    save_model(folder, Decoder(cfg), params, tokenizer)
    return folder


def with_other_rules(tokenizer):
    """The same vocabulary; text is split otherwise, so it becomes other ids."""
    tokenizer.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=True
    )
    return tokenizer


def with_other_merges(tokenizer):
    """The same vocabulary, merged in another order."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts["model"]["merges"].reverse()
    tokenizer._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(parts))
    return tokenizer


def with_another_token(tokenizer):
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


OTHERS = {
    "words": lambda: chatml_model.chatml_tokenizer(SIZE, seed=1),
    "size": lambda: chatml_model.chatml_tokenizer(SIZE - 9),
    "rules": lambda: with_other_rules(chatml_model.chatml_tokenizer(SIZE)),
    "merges": lambda: with_other_merges(chatml_model.chatml_tokenizer(SIZE)),
    "added": lambda: with_another_token(chatml_model.chatml_tokenizer(SIZE)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_tokenizer_than_the_models_is_refused(config, checkpoint, other, tmp_path):
    folder = saved(OTHERS[other](), tmp_path / other)
    with pytest.raises(UserError, match="is not the tokenizer of the model") as refused:
        choose_tokenizer(config(checkpoint, folder))
    assert str(folder) in str(refused.value)
    assert "leave data.tokenizer=auto" in str(refused.value)


@pytest.mark.parametrize("verb", ["run", "data", "influence", "verify", "plan"])
@pytest.mark.parametrize("spec", ["byte", "bpe:8192"])
def test_every_verb_refuses_it_and_makes_nothing(call, checkpoint, verb, spec, tmp_path):
    machine = ["--topology=cpu:1"] if verb == "plan" else []
    status, said = call(verb, checkpoint, f"--config.data.tokenizer={spec}", *machine)
    assert status == 2
    assert f"data.tokenizer={spec}" in said
    assert "leave data.tokenizer=auto" in said
    assert not (tmp_path / "w").exists()


def test_the_same_tokens_in_another_place_are_the_models(config, checkpoint, tmp_path):
    folder = saved(chatml_model.chatml_tokenizer(SIZE), tmp_path / "same")
    assert choose_tokenizer(config(checkpoint, folder))[::2] == (str(folder), "")
    assert choose_tokenizer(config(checkpoint, checkpoint))[::2] == (str(checkpoint), "")


def test_another_chat_template_is_used_and_told(call, checkpoint, tmp_path):
    tokenizer = chatml_model.chatml_tokenizer(SIZE)
    tokenizer.chat_template = "Be brief.\n" + chatml_model.TEMPLATE
    tokenizer.eos_token = "<|endoftext|>"
    folder = saved(tokenizer, tmp_path / "template")
    status, said = call("data", checkpoint, f"--config.data.tokenizer={folder}")
    assert status == 0
    assert f"{folder}: the tokens of {checkpoint}, another chat template" in said
    used = load_tokenizer(tmp_path / "w/data/tokenizer")
    assert (used.chat_template, used.eos_token) == (tokenizer.chat_template, "<|endoftext|>")


def test_auto_is_the_models(call, copy, tmp_path):
    assert call("data", copy)[0] == 0
    assert digest(load_tokenizer(tmp_path / "w/data/tokenizer")) == digest(load_tokenizer(copy))
    # It is known by its content: the folder may move, and may not change.
    moved = copy.rename(tmp_path / "moved")
    (tmp_path / "copy").symlink_to(moved)
    assert call("data", copy)[0] == 0
    (moved / "chat_template.jinja").write_text(chatml_model.TEMPLATE + " ")
    status, said = call("data", copy)
    assert (status, "was prepared with other settings (data.tokenizer" in said) == (2, True)


def test_a_tokenizer_that_was_changed_behind_the_data_is_made_again(call, checkpoint, tmp_path):
    assert call("data", checkpoint)[0] == 0
    file = tmp_path / "w/data/tokenizer/chat_template.jinja"
    before = file.read_text()
    file.write_text("{{ messages }}")
    status, said = call("data", checkpoint)
    assert (status, "tokenizer is damaged: it is made again" in said) == (0, True)
    assert file.read_text() == before


def strip(folder, *, keep=()):
    """Leaves ``tokenizer.json`` of the tokenizer, and what is to be kept."""
    for name in {"tokenizer_config.json", "chat_template.jinja"} - set(keep):
        (folder / name).unlink()


@pytest.mark.parametrize("roles", ["config.json", "special_tokens_map.json", "a list", "none"])
def test_tokenizer_json_alone_is_the_models(copy, roles):
    before = load_tokenizer(copy)
    strip(copy, keep=["chat_template.jinja"])
    known = json.loads((copy / "config.json").read_text())
    if roles != "config.json":
        ordinary = before.convert_tokens_to_ids("a")  # as the defaults of a class may name one
        ids = {"eos_token_id": ordinary, "pad_token_id": None, "bos_token_id": ordinary}
        if roles == "a list":
            ids["eos_token_id"] = [before.eos_token_id, ordinary]
        (copy / "config.json").write_text(json.dumps({**known, **ids}))
    if roles == "special_tokens_map.json":
        special = {"eos_token": {"content": "<|im_end|>", "lstrip": False}, "pad_token": "<|pad|>"}
        special["pad_token"] = "<|endoftext|>"
        (copy / "special_tokens_map.json").write_text(json.dumps(special))
    found = load_tokenizer(copy)
    assert tokens_digest(found) == tokens_digest(before)
    assert found.chat_template == chatml_model.TEMPLATE
    assert found.eos_token == (None if roles == "none" else "<|im_end|>")
    assert found.bos_token is None


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2", "mistral"])
def test_no_family_brings_rules_of_its_own(copy, family):
    """What transformers guesses for Gemma does not even know the bytes."""
    before = load_tokenizer(copy)
    strip(copy)
    (copy / "config.json").write_text(json.dumps({"model_type": family, "vocab_size": SIZE}))
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": chatml_model.TEMPLATE}))
    found = load_tokenizer(copy)
    assert found("Is it 4?\n")["input_ids"] == before("Is it 4?\n")["input_ids"]
    assert found.chat_template == chatml_model.TEMPLATE


@pytest.mark.parametrize("left", [(), ("tokenizer_config.json",), ("vocab.json",)])
@pytest.mark.parametrize("verb", ["run", "data", "influence"])
def test_a_model_without_one_is_refused(call, copy, verb, left, tmp_path):
    strip(copy, keep=left)
    (copy / "tokenizer.json").unlink()
    if "vocab.json" in left:  # no merges beside it
        (copy / "vocab.json").write_text("{}")
    status, said = call(verb, copy)
    assert status == 2
    assert f"model.init={copy} has no tokenizer; give data.tokenizer=<folder of the mod" in said
    assert not (tmp_path / "w").exists()


def test_one_that_is_given_for_it_is_taken_at_the_users_word(call, copy, checkpoint, tmp_path):
    strip(copy)
    (copy / "tokenizer.json").unlink()
    status, said = call("data", copy, f"--config.data.tokenizer={checkpoint}")
    assert (status, "nothing can check that it fits" in said) == (0, True)
    for size, spec in ((SIZE + 1, "larger"), (SIZE, "byte")):
        given = saved(chatml_model.chatml_tokenizer(size), tmp_path / "larger")
        given = given if spec == "larger" else "byte"
        status, said = call("data", copy, f"--config.data.tokenizer={given}", workdir=spec)
        assert status == (2 if spec == "larger" else 0)
        assert (f"knows {SIZE} tokens, the tokenizer {SIZE + 1}" in said) == (spec == "larger")


def test_sentencepiece_is_asked_for_by_name(copy, monkeypatch):
    (copy / "tokenizer.json").rename(copy / "tokenizer.model")
    monkeypatch.setattr("ideal_jax.data.tokenizers.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install sentencepiece"):
        load_tokenizer(copy)


@pytest.mark.parametrize("written", [False, True])
def test_a_token_too_many_counts_where_it_can_be_written(call, copy, written):
    """Gemma 3 1B adds one for images that its model does not know."""
    tokenizer = with_another_token(load_tokenizer(copy))
    if written:
        tokenizer.eos_token = "<tool>"
    saved(tokenizer, copy)
    status, said = call("data", copy)
    assert (status, f"knows {SIZE} tokens, the tokenizer {SIZE + 1}" in said) == (
        (2, True) if written else (0, False)
    )


def test_a_random_model_has_what_its_config_names(config, checkpoint):
    for base, data, expected in (
        ("byte", "auto", "byte"),
        ("bpe:300", "auto", "bpe:300"),
        ("bpe:300", "bpe:270", "bpe:270"),
        (str(checkpoint), "auto", str(checkpoint)),
    ):
        found = config("random", data)
        found.base.tokenizer = base
        assert choose_tokenizer(found) == (expected, None, "")


def test_a_model_that_a_run_made_has_its_own(config, checkpoint, tmp_path):
    init = own_model(tmp_path / "m", saved(byte_tokenizer(), tmp_path / "t"))
    choice = choose_tokenizer(config(init))
    assert (choice.spec, choice.own) == (str(init / "tokenizer"), init / "tokenizer")
    assert digest(load_tokenizer(choice.spec)) == digest(byte_tokenizer())
    assert choose_tokenizer(config(init, "byte")).told == ""
    for other in (checkpoint, "bpe:260"):
        with pytest.raises(UserError, match=r"leave data\.tokenizer=auto"):
            choose_tokenizer(config(init, other))


def test_a_trained_tokenizer_is_compared_when_it_is_trained(call, root, tmp_path):
    assert call("data", "random", "--config.data.tokenizer=bpe:270")[0] == 0
    init = own_model(tmp_path / "m", tmp_path / "w/data/tokenizer")
    assert call("data", init, "--config.data.tokenizer=bpe:270", workdir="same")[0] == 0
    assert call("data", init, workdir="auto")[0] == 0
    chatml_model.write_domains(tmp_path / "others", {"a": "nein", "b": "doch, doch, doch"})
    flags = [f"--config.data.root={tmp_path / 'others'}", "--config.data.tokenizer=bpe:270"]
    status, said = call("data", init, *flags, workdir="other")
    assert (status, "data.tokenizer=bpe:270 is not the tokenizer of the model" in said) == (2, True)


def test_a_changed_tokenizer_of_a_checkpoint_is_refused(config, checkpoint, tmp_path):
    init = own_model(tmp_path / "m", saved(byte_tokenizer(), tmp_path / "t"))
    assert choose_tokenizer(config(init)).own == init / "tokenizer"
    (init / "tokenizer/chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(UserError, match="is not what was saved with the model; restore it"):
        choose_tokenizer(config(init))


@pytest.mark.parametrize("part", ["base", "rounds/03"])
def test_a_model_of_an_older_version_takes_its_runs(config, checkpoint, part, tmp_path):
    init = own_model(tmp_path / "old" / part, saved(byte_tokenizer(), tmp_path / "t"))
    shutil.rmtree(init / "tokenizer")
    known = json.loads((init / "model.json").read_text())
    del known["tokenizer"]
    (init / "model.json").write_text(json.dumps(known))
    with pytest.raises(UserError, match=r"give data\.tokenizer=<folder it was trained with>"):
        choose_tokenizer(config(init))
    assert "nothing can check" in choose_tokenizer(config(init, "byte")).told
    with pytest.raises(UserError, match=f"knows 300 tokens, the tokenizer {SIZE}"):
        choose_tokenizer(config(init, checkpoint))
    shutil.copytree(tmp_path / "t", tmp_path / "old/data/tokenizer")
    assert choose_tokenizer(config(init)).own == tmp_path / "old/data/tokenizer"


def test_plan_counts_the_tokens_of_a_random_models_tokenizer(config, checkpoint):
    found = config("random")
    for spec, tokens in ((str(checkpoint), SIZE), ("bpe:4096", 4096)):
        found.base.tokenizer = spec
        assert planned_decoder(found).vocab_size == tokens
