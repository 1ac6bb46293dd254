"""Influence at a checkpoint is that of the run that left it."""

import json

import pytest

from ideal_jax import cli


def influence(runs, workdir, *overrides):
    return cli.main(["influence", *runs.flags(workdir, *overrides)[1:]])


def test_at_a_round_of_a_run_it_is_the_runs_own(runs, whole, tmp_path, capsys):
    checkpoint = f"--config.model.init={whole / 'rounds' / '00'}"
    assert influence(runs, tmp_path / "w", checkpoint) == 0
    text = (tmp_path / "w" / "influence" / "influence.json").read_text()
    found, expected = json.loads(text), json.loads((whole / "rounds/00/influence.json").read_text())
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    printed = capsys.readouterr().out
    assert "influence by identity" in printed
    assert "overall" in printed
    # A second call measures nothing.
    assert influence(runs, tmp_path / "w", checkpoint) == 0
    assert (tmp_path / "w" / "influence" / "influence.json").read_text() == text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "--config.model.init=FOLDER is missing"),
        (("init=nowhere",), "model.init=nowhere holds no finished model"),
        (("init=base", "estimator=adam"), "'adam' needs the training itself"),
        (("init=base", "estimator=metagradient"), "'metagradient' needs the training itself"),
    ],
)
def test_mistakes_are_refused(runs, whole, tmp_path, capsys, overrides, message):
    flags = {
        "init=base": f"--config.model.init={whole / 'base'}",
        "init=nowhere": "--config.model.init=nowhere",
    }
    given = [flags.get(o, f"--config.influence.{o}") for o in overrides]
    assert influence(runs, tmp_path / "w", *given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_the_budget_bounds_what_is_paid(runs, whole, tmp_path):
    def paid(budget):
        flags = [
            f"--config.model.init={whole / 'rounds' / '00'}",
            "--config.influence.fraction=0.0",
            f"--config.influence.budget={budget!r}",
        ]
        workdir = tmp_path / str(budget)
        assert influence(runs, workdir, *flags) == 0
        return json.loads((workdir / "influence" / "influence.json").read_text())["flops_share"]

    least, everything = paid(0.01), paid(100.0)  # one stage there must be
    budget = 0.97 * everything
    assert least < budget
    assert least <= paid(budget) <= budget
