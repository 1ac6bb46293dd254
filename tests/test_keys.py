"""Every key is explained, marked and limited; no value of any key ends in a traceback."""

import math
import pathlib
import re
import time

import pytest

from ideal_jax import config as config_lib
from ideal_jax import sharding, training
from ideal_jax.errors import UserError
from ideal_jax.influence.estimators import ESTIMATORS, METAGRADIENT
from ideal_jax.keys import LIMITS, keys
from ideal_jax.models import REMAT
from ideal_jax.models.kernels import KERNELS
from ideal_jax.runs import session
from ideal_jax.runs.verify_run import METHODS

BASE = config_lib.shipped("base")
DEFAULTS = dict(config_lib.flatten(BASE))

WHOLE = (-1, 0, 1, 2**31, 10**21, 10**5000)
REAL = (math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, -5e-324, 1e-300)
TEXTS = (
    *("", " ", "x" * 300, "x" * 10**5, "/y" * 3000, "naïve-日本-🙂", "nonsense", "../x", "a,b"),
    *(
        ",",
        "1,,2",
        "nan,1",
        "1e999",
        "9" * 5000,
        "a\0b",
        "a\nb",
        "\ud800",
        "\udc80",
        "~no-such-user/x",
    ),
    *("(", "(" * 500 + ")" * 500, "a{99999999999}", "bpe:0", "bpe:" + "9" * 30, "12:1", "v5e:" * 9),
)


def wrong_values(name):
    """What somebody may give a key of this kind."""
    if isinstance(DEFAULTS[name], str):
        return TEXTS
    if isinstance(DEFAULTS[name], bool):
        return (None,)
    # Of a number that no float holds ConfigDict itself says no.
    return (*WHOLE[:-1], *REAL, None) if isinstance(DEFAULTS[name], float) else (*WHOLE, None)


def refusal(changes, looks_for_models=True):
    """What the checks before any work say; "" if they take it."""
    config = BASE.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    try:
        config_lib.check(config)
        if looks_for_models:
            session.check(config, sharding.make_mesh(**config.mesh.to_dict()))
    except UserError as error:
        return str(error)
    return ""


def test_every_line_of_base_is_a_key_with_a_meaning():
    text = (pathlib.Path(__file__).parents[1] / "configs" / "base.py").read_text()
    lines = [line for line in text.splitlines() if re.match(r"    \w+\.\w+ = ", line)]
    sections = [line for line in lines if re.search(r" = \w+ = ConfigDict\(\)", line)]
    assert len(lines) - len(sections) == len(keys())
    assert all(re.search(r"  # \[(result|runtime)\] ....", x) for x in lines if x not in sections)
    assert keys().keys() == {*DEFAULTS, "data.sources"}
    assert {name for name, key in keys().items() if key.limit is None} == {"data.sources"}


def test_every_key_has_limits_of_its_kind():
    limited = {name for name, value in DEFAULTS.items() if not isinstance(value, bool)}
    assert limited == LIMITS.keys()
    for name, value in DEFAULTS.items():
        kind = getattr(keys()[name].limit, "kind", type(value))
        assert kind is type(value), name
    config_lib.check(BASE)


def test_choices_are_those_of_the_program():
    estimators = {*ESTIMATORS, METAGRADIENT}
    for name in ("influence.estimator", "verify.estimators"):
        assert set(LIMITS[name].names) == estimators
    assert set(LIMITS["model.remat"].names) == {*REMAT}
    assert set(LIMITS["model.attention"].names) == {"auto", *KERNELS}
    assert LIMITS["verify.method"].names == METHODS
    for name in LIMITS["training.schedule"].names:
        config = BASE.copy_and_resolve_references()
        config.training.schedule = name
        training.schedule(config.training, 10)


@pytest.mark.parametrize("name", DEFAULTS)
def test_no_value_ends_in_a_traceback(name, tmp_path, monkeypatch):
    """Each is taken, or refused in a line that names the key, at once."""
    monkeypatch.chdir(tmp_path)
    spent = time.process_time()
    for value in wrong_values(name):
        told = refusal({name: value}, looks_for_models=name != "model.init")
        assert "\n" not in told
        assert len(told) < 400
        assert not told or name.rpartition(".")[2] in told, told
    assert time.process_time() - spent < 0.02 * len(wrong_values(name))


@pytest.mark.parametrize(
    "name",
    [
        *("eval.batch_size", "eval.max_new_tokens", "model.d_model", "model.head_dim"),
        *("lora.rank", "data.row_length", "training.steps", "mesh.fsdp", "influence.iterations"),
    ],
)
def test_what_no_machine_holds_is_refused(name):
    assert re.fullmatch(rf"{name}=10{{21}}: must be at most \d+", refusal({name: 10**21}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.head_dim", 15, "model.head_dim=15: must be even"),
        ("training.epsilon", 0.0, "training.epsilon=0.0: must be at least 1e-30"),
        ("training.steps", None, "training.steps=None: expected a whole number"),
        ("data.root", "a\nb", r"data.root='a\nb': has a character that no name has"),
        ("data.cache", "/" + "x" * 300, r"too long for a path"),
        ("data.tokenizer", "bpe:1e9", "expected auto, byte, bpe:<size> or a folder"),
        ("verify.changes", "0.1,2", r"verify.changes=0.1,2: every one must be in (0, 1)"),
        ("mixture.counts", "5,-1", "mixture.counts=5,-1: every one must be at least 1"),
        ("eval.tasks", "exact_match,x", "eval.tasks='x' is not one of exact_match"),
        ("mixture.keep_total", None, "mixture.keep_total=None: expected true or false"),
    ],
)
def test_each_kind_says_what_it_wants(key, value, message):
    assert message in refusal({key: value})
