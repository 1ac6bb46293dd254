"""Influence at a checkpoint is that of the run that left it."""

import json
import shutil

import pytest

from ideal_jax import cli
from ideal_jax.sealed import SEAL


def influence(runs, workdir, *overrides):
    return cli.main(["influence", *runs.flags(workdir, *overrides)[1:]])


def test_at_a_round_of_a_run_it_is_the_runs_own(runs, whole, tmp_path, capsys):
    checkpoint = f"--config.model.init={whole / 'rounds' / '00'}"
    assert influence(runs, tmp_path / "w", checkpoint) == 0
    text = (tmp_path / "w" / "influence" / "influence.json").read_text()
    found, expected = json.loads(text), json.loads((whole / "rounds/00/influence.json").read_text())
    where = {"model": str(whole / "rounds" / "00"), "given": [20, 60]}
    own = {"seconds": 0, SEAL: ""}
    assert {**found, **own} == {**expected, **own, **where}
    printed = capsys.readouterr().out
    assert "influence by identity" in printed
    assert "overall" in printed
    assert "Sizes of α mean nothing by themselves" in printed
    for given, proposed in zip((20, 60), found["counts"], strict=True):
        assert f"{given} → {proposed}" in printed
    page = (tmp_path / "w" / "report.html").read_text()
    assert f"What more of each domain would do to {whole}" in page
    assert "Measured at" in page
    assert "not finished" not in page
    for given, proposed in zip((20, 60), found["counts"], strict=True):
        assert f"<td>{given} → {proposed}</td>" in page
    # A second call measures nothing, and needs the folder alone.
    again = ["influence", f"--workdir={tmp_path / 'w'}"]
    assert influence(runs, tmp_path / "w", checkpoint) == 0
    assert cli.main(again) == 0
    assert (tmp_path / "w" / "influence" / "influence.json").read_text() == text
    recorded = json.loads((tmp_path / "w" / "config.json").read_text())["command"]
    assert recorded.startswith("ideal-jax influence --config=")
    assert cli.main([*again, "--config.influence.damping=0.2"]) == 2
    assert "influence.damping: 0.1 -> 0.2" in capsys.readouterr().err


@pytest.fixture
def moved(whole, tmp_path):
    """The run, in another place."""
    return shutil.copytree(whole, tmp_path / "moved")


def test_of_a_run_the_folder_is_enough(runs, moved, capsys):
    """At its best round's model and mixture, beside the run and not in it."""
    best = json.loads((moved / "results.json").read_text())["best_round"]
    before = {path: text for path, text in runs.files(moved).items() if path.suffix != ".html"}
    flags = ["influence", f"--workdir={moved}"]
    assert cli.main(flags) == 0
    assert f"measured at rounds/{best:02d}" in capsys.readouterr().out
    for number in (0, 1):
        assert cli.main([*flags, f"--config.influence.round={number}"]) == 0
    found = [json.loads((moved / f"influence/0{k}/influence.json").read_text()) for k in (0, 1)]
    for number, record in enumerate(found):
        mixture = json.loads((moved / f"rounds/0{number}/mixture.json").read_text())
        assert record["given"] == [domain["count"] for domain in mixture["domains"]]
        assert (record["round"], record["model"]) == (number, f"rounds/0{number}")
    # The run has no influence of its last round; of the first it is the run's own.
    own = json.loads((moved / "rounds/00/influence.json").read_text())
    assert {key: found[0][key] for key in own} == {**own, SEAL: found[0][SEAL]}
    assert found[1]["matrix"] != own["matrix"]
    page = (moved / "report.html").read_text()
    assert page.count("Measured at the model of round 0") == 1
    assert "Measured at the model of round 1, by ideal-jax influence" in page
    after = runs.files(moved)
    assert {path: after[path] for path in before} == before
    capsys.readouterr()
    for flag, message in (
        ("round=7", "influence.round=7: round 7 of "),
        ("estimator=ekfac", 'influence.estimator: "identity" -> "ekfac"'),
    ):
        assert cli.main([*flags, f"--config.influence.{flag}"]) == 2
        assert message in capsys.readouterr().err


def test_the_other_verbs_need_no_more(moved, capsys):
    results = (moved / "results.json").read_bytes()
    recorded = (moved / "config.json").read_bytes()
    shutil.rmtree(moved / "export")
    (moved / "export.json").unlink()
    for verb in ("run", "export", "report"):
        assert cli.main([verb, f"--workdir={moved}"]) == 0
        assert (moved / "export" / "model.safetensors").exists()
    assert (moved / "results.json").read_bytes() == results
    assert (moved / "config.json").read_bytes() == recorded
    capsys.readouterr()
    assert cli.main(["verify", f"--workdir={moved}", "--config.training.steps=9"]) == 2
    assert "training.steps: 8 -> 9" in capsys.readouterr().err


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
