"""The mistakes of a new user: each one line that helps, exit code 2, nothing written."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import ideal_jax
from ideal_jax import cli, usage
from ideal_jax.errors import UserError
from ideal_jax.keys import keys
from ideal_jax.runs import session, train_run

TINY = pathlib.Path(__file__).parents[1] / "configs" / "tiny.py"


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
    """None of these gets as far as a training step."""
    monkeypatch.setattr(train_run.training, "train", lambda **_: pytest.fail("trained"))


@pytest.fixture
def no_data(monkeypatch):
    """And most not as far as the data."""
    monkeypatch.setattr(session, "prepare", lambda *_, **__: pytest.fail("prepared data"))


@pytest.fixture
def refused(tmp_path, capsys):
    """Calls the command; returns its one line."""

    def call(*arguments, verb="run", config=TINY, workdir=tmp_path / "w"):
        flags = [f"--config={config}"] if config else []
        flags += [f"--workdir={workdir}"] if workdir else []
        before = tree(tmp_path)
        assert cli.main([verb, *flags, *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("ideal-jax: ")
        assert error.count("\n") == 1
        assert "Traceback" not in error
        after = tree(tmp_path)
        assert {name: after.get(name) for name in before} == before
        assert not (tmp_path / "w" / "config.json").exists()
        return error

    return call


def tree(folder):
    """Content of every file."""
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_domains(root, **domains):
    """A data root with a train and a reference file of 8 examples for every domain."""
    for name, changes in domains.items():
        (root / name).mkdir(parents=True)
        for part in ("train", "reference"):
            prompts = [f"{name} {part} {i}" for i in range(20)]
            lines = [json.dumps({"prompt": p, "response": "yes"}) for p in prompts]
            for number, line in changes.items() if part == "train" else ():
                lines[number - 1] = line
            (root / name / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return root


# Flags and config files ---------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], ["--debug", "--help"]])
def test_help(arguments, capsys):
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith("usage: ideal-jax VERB")


@pytest.mark.parametrize("verb", list(usage.VERBS))
def test_every_verb_explains_itself(verb, capsys):
    """Its own flags, and the keys that matter for it with default, meaning and limits."""
    told = []
    for arguments in ([verb, "--help"], [verb, "-h", "--wrong=1"], ["help", verb]):
        assert cli.main(arguments) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] == told[2]
    assert told[0].startswith(f"usage: ideal-jax {verb} ")
    assert "--workdir=DIR" in told[0]
    own = {"run": "mixture.step=0.15", "influence": "influence.round=-1", "data": "--show=N"}
    own |= {"verify": "verify.changes=0.15,0.5", "plan": "--topology=MACHINE"}
    for name, text in own.items():
        assert (text in told[0]) == (name == verb or (name, verb) == ("run", "influence"))
    assert all(part in keys() or any(key.startswith(f"{part}.") for key in keys())
               for part in usage.VERBS[verb].keys)  # fmt: skip


def test_every_key_is_explained(capsys):
    assert cli.main(["help", "keys"]) == 0
    text = " " + " ".join(capsys.readouterr().out.split())
    for name, key in keys().items():
        assert f" {name}=" in text
        assert " ".join(key.meaning.split()) in text
    assert cli.main(["help", "mixture.step"]) == 0
    one = capsys.readouterr().out
    assert "mixture.step=0.15" in one
    assert "(0, 1)" in one
    assert cli.main(["help", "mesh"]) == 0
    assert capsys.readouterr().out.count("mesh.") == 4
    assert cli.main(["help", "mixture.stp"]) == 2
    assert "no verb, key or section of keys (did you mean" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--version"], ["run", "--version"], ["--debug", "--version"]]
)
def test_version(arguments, capsys):
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"ideal-jax {ideal_jax.__version__}\n"


def test_no_arguments_show_the_usage(capsys):
    assert cli.main([]) == 2
    assert "usage: ideal-jax VERB" in capsys.readouterr().out


def test_an_unknown_verb(refused):
    assert "unknown verb 'rnu' (did you mean run?); verbs: run," in refused(verb="rnu")
    assert "the verb comes first, as in: ideal-jax run --config=" in refused(
        verb=f"--config={TINY}"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--wandb"], "--wandb: unknown flag\n"),
        (["--wandb", "--workdir=x"], "--wandb: unknown flag\n"),
        (["--epochs", "3"], "--epochs: unknown flag\n"),
        (["-v"], "--v: unknown flag\n"),
        (["--search"], "--search: unknown flag\n"),
        (["--show=3"], "--show: unknown flag\n"),
        (["--resume", "yes"], "--resume: unknown flag\n"),
        (["--debug=1"], "--debug takes no value"),
        (["--config", "--workdir=x"], "--config: needs a value, as in --config=VALUE"),
        (["--workdir=" + "x" * 300], "too long for a path"),
        (["--workdir=a\0b"], "has a character that no name has"),
        (["--workdir=~no-such-user/w"], "no home folder of that name"),
        (["--config.training.steps=" + "9" * 5000], "expected a whole number"),
        (["--config.data.root=a\nb"], "data.root='a\\nb'"),
        (["--config=nonsense"], "--config=nonsense: no shipped config; there are base, forkme,"),
        (["--config=" + "x" * 300 + ".py"], "no such file"),
        (["--config=a\0b.py"], "no such file"),
        (["--wrkdir=x"], "--wrkdir: unknown flag (did you mean --workdir?)"),
        (["--confg.training.steps=3"], "--confg.training.steps: unknown flag"),
        (["stray"], "unexpected argument 'stray'; flags look like --workdir=DIR"),
        (["--workdir="], "--workdir=DIR is missing"),
        (["--config.training.steps"], "--config.training.steps: needs a value, as in"),
        (["--config.training.steps=abc"], "--config.training.steps=abc: expected a whole number"),
        (
            ["--config.training.steps", "1.5"],
            "--config.training.steps=1.5: expected a whole number",
        ),
        (["--config.mixture.keep_total=maybe"], "expected true or false"),
        (["--config.training.stepz=3"], "unknown key (did you mean training.steps?)"),
        (["--config.training=3"], "--config.training is a section"),
    ],
)
def test_flags(refused, tmp_path, arguments, message):
    assert message in refused(*arguments)
    assert not (tmp_path / "w").exists()


def test_missing_flags(refused):
    error = refused(config=None)
    assert "--config=FILE.py is missing (there is no run in " in error
    assert "--config=quickstart is a start" in error
    assert "--workdir=DIR is missing" in refused(workdir=None)
    assert "--workdir=gs://a/b: not a folder; docs/launch.md" in refused(workdir="gs://a/b")
    assert "--config=no/such.py: no such file" in refused(config="no/such.py")


def test_flags_may_be_written_with_a_space_and_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ["--config", str(TINY), "--workdir", "~/w", "--config.mesh.fsdp", "-1"]
    config, workdir = cli.parse(
        [*arguments, "--config.seed=1", "--config.seed=2"], needs_config=True
    )
    assert (workdir, config.mesh.fsdp, config.seed) == (tmp_path / "w", -1, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "my.py:1: SyntaxError: invalid syntax"),
        ("x = 1\n", "my.py: the file defines no get_config()"),
        ("import nothing_such\n", "my.py:1: ModuleNotFoundError: No module named 'nothing_such'"),
        ("def get_config():\n    return {}\n", "get_config() gives dict, no ConfigDict"),
        ("def get_config():\n    c = 1\n    c.x = 2\n", "my.py:3: AttributeError: 'int' object"),
        (
            "from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict()\n",
            "the config has no key seed; configs/base.py shows them all",
        ),
        (
            "from ideal_jax.config import load\n\ndef get_config():\n"
            f"    c = load({str(TINY)!r})\n    c.training.stepz = 1\n",
            'my.py:5: AttributeError: Key "stepz" does not exist and cannot be added since the '
            'config is locked. Did you mean "steps" instead of "stepz"?',
        ),
        (
            "from ideal_jax.config import load\n\ndef get_config():\n"
            f"    c = load({str(TINY)!r})\n    c.training.steps = 'x'\n",
            "my.py:5: TypeError: Could not override field 'steps'",
        ),
    ],
)
def test_config_files(refused, tmp_path, text, message):
    (tmp_path / "my.py").write_text(text)
    assert message in refused(config=tmp_path / "my.py")
    assert not (tmp_path / "w").exists()


def test_a_config_that_is_no_python_file(refused, tmp_path):
    (tmp_path / "my.yaml").write_text("a: 1\n")
    assert "not a Python file" in refused(config=tmp_path / "my.yaml")


def test_debug_shows_where(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        cli.main(["run", "--config=no.py", f"--workdir={tmp_path / 'w'}", "--debug"])
    command = [sys.executable, "-m", "ideal_jax", "run", "--config=no.py", "--workdir=w"]
    for before, after, traced in (
        ([], [], False),
        ([], ["--debug"], True),
        (["--debug"], [], True),
    ):
        arguments = [*command[:3], *before, *command[3:], *after]
        done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
        assert ("Traceback" in done.stderr) == traced
        assert "no such file" in done.stderr
        assert done.returncode == (1 if traced else 2)


# Values -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.n_layers", 0, "model.n_layers=0: must be at least 1"),
        ("model.n_kv_heads", 3, "model.n_heads=4 is no multiple of model.n_kv_heads=3"),
        ("model.dtype", "float8", "model.dtype='float8' is not one of float32"),
        ("model.init", "no/such", "no/such: no such folder, and the hub says"),
        ("training.batch_size", 0, "training.batch_size=0: must be at least 1"),
        ("training.batch_size", -8, "training.batch_size=-8: must be at least 1"),
        ("training.micro_batches", 3, "training.batch_size=16 is no multiple of 3"),
        ("training.log_every", 0, "training.log_every=0: must be at least 1"),
        ("training.checkpoint_every", 0, "training.checkpoint_every=0: must be at least 1"),
        ("training.steps", -1, "training.steps=-1: must be at least 0"),
        ("training.steps", 0, "training.steps and training.epochs are both 0"),
        ("training.learning_rate", "inf", "training.learning_rate=inf: must be a finite number"),
        ("training.learning_rate", -1, "training.learning_rate=-1.0: must be above 0"),
        ("training.schedule", "cosin", "training.schedule='cosin' is not one of cosine, linear"),
        ("base.steps", -1, "base.steps=-1: must be at least 0"),
        ("seed", -1, "seed=-1: must be at least 0"),
        ("loss.reduction", "mean", "loss.reduction='mean' is not one of token, example"),
        ("loss.block", 0, "loss.block=0: must be at least 1"),
        ("eval.tasks", "gsm8k", "eval.tasks='gsm8k' is not one of exact_match"),
        ("eval.examples", 1, "eval.examples=1: must be at least 2"),
        ("influence.estimator", "kfca", "influence.estimator='kfca' is not one of identity,"),
        ("influence.reference_examples", 1, "must be at least 2, or there is no error bar"),
        ("influence.fraction", -0.1, "influence.fraction=-0.1: must be in [0, 1]"),
        ("influence.fraction", 1.5, "influence.fraction=1.5: must be in [0, 1]"),
        ("influence.damping_mode", "rel", "influence.damping_mode='rel'"),
        ("influence.inversion", "cholesky", "influence.inversion='cholesky' is not one of damped,"),
        ("influence.inversion", "tikhonov", "choose influence.estimator='kfac'"),
        ("influence.important", 0, "influence.important=0.0: must be in (0, 1]"),
        ("influence.layer_groups", 0, "influence.layer_groups=0: must be at least 1"),
        ("influence.confidence", 1, "influence.confidence=1.0: must be in (0, 1)"),
        ("influence.iterations", 0, "influence.iterations=0: must be at least 1"),
        ("influence.weights", "1,2", "influence.weights=1,2: 2 values for 5 domains"),
        ("influence.weights", "0,0,0,0,0", "influence.weights=0,0,0,0,0: needs a positive sum"),
        ("influence.weights", "nan,1,1,1,1", "=nan,1,1,1,1: every one must be a finite"),
        ("mixture.step", 1, "mixture.step=1.0: must be in (0, 1)"),
        ("mixture.step", -0.1, "mixture.step=-0.1: must be in (0, 1)"),
        ("mixture.rounds", -1, "mixture.rounds=-1: must be at least 0"),
        ("mixture.counts", "1,2", "mixture.counts=1,2: 2 values for 5 domains"),
        ("mixture.counts", "1,2,3,4,0", "mixture.counts=1,2,3,4,0: every one must be at least 1"),
        ("mixture.counts", "1,2,3,4,x", "expected comma-separated ints"),
        ("mesh.fsdp", 3, "mesh.fsdp=3 × mesh.tensor=1 does not cover the"),
        ("mesh.fsdp", 0, "does not cover the"),
        ("mesh.tensor", -1, "does not cover the"),
        ("data.root", "no/such", "data.root no/such does not exist"),
    ],
)
def test_values_are_checked_before_the_data(refused, key, value, message):
    assert message in refused(f"--config.{key}={value}")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.row_length", 0, "data.row_length=0: must be at least 1"),
        ("data.window", 0, "data.window=0: must be at least 1"),
        ("data.domains", "mth", "(did you mean math?)"),
        ("data.tokenizer", "no/such", 'tokenizer "no/such" does not exist'),
        ("data.synthetic.counts", "1,2", "data.synthetic.counts=1,2: 2 values for 5 domains"),
        ("data.synthetic.reference", 3, "domain math has 3 reference examples; at least 4"),
        ("data.synthetic.test", 1, "domain math has 1 test examples; at least 2 are needed"),
        ("influence.layers", "(", "influence.layers='(' is no regular expression"),
        ("influence.layers", "mpl", "influence.layers='mpl' matches none of"),
        (
            "mixture.min_share",
            0.5,
            "mixture.min_share=0.5 for each of 5 domains is 250%",
        ),
    ],
)
def test_values_are_checked_before_the_training(refused, key, value, message):
    assert message in refused(f"--config.{key}={value}")


def test_a_mended_value_needs_no_other_work_directory(refused, tmp_path):
    for wrong in ("--config.mixture.min_share=0.5", "--config.influence.layers=("):
        refused(wrong)
    with pytest.raises(pytest.fail.Exception, match="trained"):
        cli.main(["run", f"--config={TINY}", f"--workdir={tmp_path / 'w'}"])


def test_a_base_that_no_run_wrote(refused, tmp_path):
    (tmp_path / "base").mkdir()
    init = f"--config.model.init={tmp_path / 'base'}"
    assert "base holds no finished model (model.json)" in refused(init)
    (tmp_path / "base" / "model.json").write_text(json.dumps({"d_model": 99}))
    assert "model.json is no description of a model" in refused(init)


# Data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "half', "a/train.jsonl:17: not valid JSON"),
        ("[1]", "a/train.jsonl:17: expected a JSON object, found list"),
        ('{"messages": [{"role": "user", "content": "x"}]}', ":17: has no assistant turn"),
        ('{"messages": [{"role": "me", "content": "x"}]}', ':17: "role" must be one of system'),
        ('{"question": "x"}', ':17: needs "messages", or "prompt" and "response"'),
    ],
)
def test_a_bad_line_is_named(refused, tmp_path, line, message):
    root = write_domains(tmp_path / "raw", a={17: line}, b={})
    assert message in refused(f"--config.data.root={root}", "--config.data.test_examples=4")


def test_bad_folders(refused, tmp_path):
    root = write_domains(tmp_path / "raw", a={}, b={})
    flags = [f"--config.data.root={root}", "--config.data.test_examples=4"]
    assert 'holds no domain "c"' in refused(*flags, "--config.data.domains=a,c")
    assert 'data.domains names "a" twice' in refused(*flags, "--config.data.domains=a,a")
    assert "mixture.counts=1,2,3: 3 values for 2" in refused(
        *flags, "--config.mixture.counts=1,2,3"
    )
    (root / "b" / "train.jsonl").write_text("\n")
    assert "b/train.jsonl holds no examples" in refused(*flags)
    (root / "b" / "train.jsonl").write_text('{"prompt": "p", "response": "r"}\n' * 20)
    (root / "b" / "reference.jsonl").unlink()
    assert "b/train.jsonl: of 20 examples only 0 can be held out" in refused(*flags)
    (tmp_path / "empty").mkdir()
    assert "holds no domain" in refused(f"--config.data.root={tmp_path / 'empty'}")


# Work directories ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_data")
def test_work_directories_that_cannot_be(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "file is a file; give a folder" in refused(workdir=tmp_path / "file")
    assert "cannot write there (Not a directory)" in refused(workdir=tmp_path / "file" / "w")
    assert "--workdir=/proc/w: cannot write there" in refused(workdir="/proc/w")
    assert "/proc/self holds " in refused(workdir="/proc/self")


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("thesis.tex", "holds thesis.tex but no config.json: not a work directory"),
        ("data", "holds data but no config.json"),
        ("config.json", "its config.json is not one of an ideal-jax run"),
    ],
)
def test_a_strangers_folder_is_not_touched(refused, tmp_path, name, message):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text('{"model_type": "llama"}')
    assert message in refused(workdir=folder)
    assert os.listdir(folder) == [name]


def test_a_full_disk_is_told_in_one_line(refused, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "/w/data/x")

    monkeypatch.setattr(session, "prepare", full)
    assert "/w/data/x: No space left on device" in refused()
    monkeypatch.setattr(session, "prepare", lambda *_, **__: os.stat("/no/such/file"))
    with pytest.raises(FileNotFoundError):
        refused()


def test_report_of_nothing(refused, tmp_path):
    assert "no such folder" in refused(verb="report", config=None)
    (tmp_path / "x").mkdir()
    assert "not a work directory" in refused(verb="report", config=None, workdir=tmp_path / "x")
    assert "--workdir=DIR is missing" in refused(verb="report", config=None, workdir=None)
