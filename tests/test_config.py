import math
import pathlib
import shutil

import pytest
from ml_collections import ConfigDict

from ideal_jax import config as config_lib
from ideal_jax.errors import UserError

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def load(name="base"):
    return config_lib.load(CONFIGS / f"{name}.py")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_the_configs_load_locked_with_the_keys_of_base(path):
    config = config_lib.load(path)
    assert [key for key, _ in config_lib.flatten(config)] == [
        key for key, _ in config_lib.flatten(load())
    ]
    config_lib.check(config)
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.training.stepz = 1
    with pytest.raises(TypeError):
        config.training.steps = "many"
    with pytest.raises(TypeError):
        config.mixture.keep_total = 0.5


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("training.steps", "12", 12),
        ("mesh.fsdp", "-1", -1),
        ("mixture.step", "1e-1", 0.1),
        ("mixture.step", "1", 1.0),
        ("mixture.keep_total", "False", False),
        ("mixture.keep_total", "1", True),
        ("data.domains", "math, code", "math, code"),
        ("data.root", "", ""),
        ("data.synthetic.noise", "0", 0.0),
    ],
)
def test_override(key, text, value):
    config = load()
    config_lib.override(config, key, text)
    found = dict(config_lib.flatten(config))[key]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("training.steps", "abc", "--config.training.steps=abc: expected a whole number"),
        ("training.steps", "1.5", "expected a whole number"),
        ("training.steps", "", "expected a whole number"),
        ("mixture.step", "x=y: z", "--config.mixture.step=x=y: z: expected a number"),
        ("mixture.keep_total", "maybe", "expected true or false"),
        ("training", "3", "--config.training is a section; set a key in it, such as training."),
        (
            "trainin.steps",
            "3",
            "--config.trainin.steps: unknown key (did you mean training.steps?)",
        ),
        ("steps", "3", "steps?)"),
        ("mixture.keep_totl", "true", "(did you mean mixture.keep_total?)"),
        ("learning_rat", "1", "learning_rate?)"),
        ("zzz", "1", "--config.zzz: unknown key"),
    ],
)
def test_a_wrong_override_is_explained(key, text, message):
    with pytest.raises(UserError) as error:
        config_lib.override(load(), key, text)
    assert message in str(error.value)


def test_a_value_no_flag_can_set():
    with pytest.raises(UserError, match="only the config file can set a tuple"):
        config_lib.override(ConfigDict({"a": (1, 2)}), "a", "3")


def test_check_names_key_value_and_limit():
    config = load()
    config.mixture.step = 1.5
    with pytest.raises(UserError, match=r"mixture.step=1.5: must be in \(0, 1\)"):
        config_lib.check(config)
    config.mixture.step = math.nan
    with pytest.raises(UserError, match=r"mixture\.step=nan: must be a finite number"):
        config_lib.check(config)
    with pytest.raises(UserError, match=r"no key .*configs/base.py"):
        config_lib.check(ConfigDict({"seed": 0}))


def test_changed():
    old, new = load().to_dict(), load()
    assert config_lib.changed(old, new.to_dict()) == []
    new.mesh.fsdp, new.training.log_every, new.mixture.rounds = 4, 1, 9
    assert config_lib.changed(old, new.to_dict()) == []
    new.mixture.rounds, new.data.root = 1, "/x"
    assert config_lib.changed(old, new.to_dict()) == [
        'data.root: "" -> "/x"',
        "mixture.rounds: 2 -> 1",
    ]
    # A key that the other version of the package did not have.
    assert config_lib.changed({}, {"seed": 1}) == ["seed: null -> 1"]


def test_a_shipped_config_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_lib.load("tiny").to_dict() == load("tiny").to_dict()
    assert config_lib.shipped("tiny").to_dict() == load("tiny").to_dict()
    assert config_lib.load("llama3_8b:v6e:4x4").model.remat == "dots"
    for name in ("quikstart", "tiny:x"):
        with pytest.raises(UserError, match=r"quickstart|takes no argument"):
            config_lib.load(name)
    with pytest.raises(UserError, match="no such file; --config=tiny is the one that comes with"):
        config_lib.load("configs/tiny.py")


def test_a_copy_of_forkme_works_anywhere(tmp_path):
    copy = shutil.copy(CONFIGS / "forkme.py", tmp_path / "mine.py")
    assert config_lib.load(copy).to_dict() == load("forkme").to_dict()


def test_comma_strings():
    assert config_lib.names(" math,, code ") == ("math", "code")
    assert config_lib.numbers("k", "", int, 3) is None
    assert config_lib.numbers("k", "1, 2", int, 2) == (1, 2)
    with pytest.raises(UserError, match="k=1,2: 2 values for 3 domains"):
        config_lib.numbers("k", "1,2", int, 3)
    with pytest.raises(UserError, match="k=1,x: expected comma-separated ints"):
        config_lib.numbers("k", "1,x", int, 2)
    with pytest.raises(UserError, match="k='c' is not one of a, b"):
        config_lib.choice("k", "c", ("a", "b"))
