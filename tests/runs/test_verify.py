"""Verification on the smallest run: what it measures, what it leaves, how it continues."""

import json
import re
import shutil

import numpy as np
import pytest

from ideal_jax import cli

OPTIONS = ("--config.verify.changes=0.1", "--config.verify.estimators=identity,metagradient")


def verify(runs, workdir, *overrides):
    return cli.main(["verify", *runs.flags(workdir, *OPTIONS, *overrides)[1:]])


@pytest.fixture(scope="module")
def verified(runs, whole, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("verified") / "w"
    shutil.copytree(whole, workdir)
    assert verify(runs, workdir) == 0
    return workdir


def record(workdir, method="weights"):
    return json.loads((workdir / "verify" / "round_00" / f"{method}.json").read_text())


def test_slopes_are_those_of_the_two_trainings(verified):
    found = record(verified)
    folder = verified / "verify" / "round_00" / "order_0"
    assert (found["domains"], found["references"]) == (["math", "code"], ["math", "code"])
    [order], sides = found["orders"], []
    for j, domain in enumerate(found["domains"]):
        losses = [
            np.array(json.loads((folder / f"weights_{domain}{sign}0.1.json").read_text())["loss"])
            for sign in "+-"
        ]
        slope = (losses[0] - losses[1]) / 0.2
        np.testing.assert_allclose(np.array(order["truth"]["0.1"])[:, j], slope)
        assert np.abs(slope).max() > 0
        middle = np.array(json.loads((folder / "unmoved.json").read_text())["loss"])
        sides.append(((losses[0] - middle) / 0.1, (middle - losses[1]) / 0.1))
    # So short a run is nearly linear: both sides of the truth say the same.
    up, down = np.transpose(sides, (1, 2, 0))
    assert order["sides"]["0.1"] == pytest.approx(np.corrcoef(up.ravel(), down.ravel())[0, 1])
    assert order["sides"]["0.1"] > 0.9
    # One domain more is the other less: to first order the slopes of the two are opposite.
    truth = np.array(order["truth"]["0.1"])
    assert np.abs(truth.sum(1)).max() < 0.2 * np.abs(truth).max()
    assert not [path for path in folder.glob("weights_*") if path.is_dir()]


def test_the_unmoved_training_is_that_of_the_round(verified):
    unmoved = verified / "verify" / "round_00" / "order_0" / "unmoved" / "train.json"
    of_round = verified / "rounds" / "00" / "train.json"
    digests = [json.loads(f.read_text())["params_sha256"] for f in (unmoved, of_round)]
    assert digests[0] == digests[1]


def test_the_metagradient_of_so_short_a_run_predicts_it(verified):
    rows = {row["estimator"]: row for row in record(verified)["summary"]}
    assert rows["metagradient"]["pearson"] > 0.98
    # Adam's first steps follow signs of gradients. A change that turns some of them does more than
    # the derivative says; how much depends on the size of the change.
    assert 0.7 < rows["metagradient"]["slope"] < 1.6
    assert set(rows) == {"identity", "metagradient"}


def test_the_page_shows_it(verified):
    page = (verified / "report.html").read_text()
    assert "Is the prediction right?" in page
    assert "metagradient, b = 0.1" in page
    assert "built-in method" not in page
    [row] = re.findall(r'<tr><th scope="row">metagradient</th>(.*?)</tr>', page)
    cells = re.findall("<td>(.*?)</td>", row)
    assert cells[0] == "0.1"
    assert cells[3].endswith("%")
    assert cells[4].endswith("%")


def test_a_second_call_trains_nothing_and_a_lost_training_is_repeated(runs, verified, capsys):
    before = record(verified)
    lost = verified / "verify" / "round_00" / "order_0" / "weights_code+0.1.json"
    digest = lost.read_text()
    lost.unlink()
    recorded = (verified / "config.json").read_bytes()
    assert cli.main(["verify", f"--workdir={verified}", *OPTIONS]) == 0
    assert (verified / "config.json").read_bytes() == recorded
    assert lost.read_text() == digest
    assert record(verified) == before
    assert "influence against weights" in capsys.readouterr().out


def test_other_truths(runs, verified):
    assert verify(runs, verified, "--config.verify.method=metagradient") == 0
    rows = {row["estimator"]: row for row in record(verified, "metagradient")["summary"]}
    assert rows["metagradient"]["pearson"] == pytest.approx(1)
    assert rows["metagradient"]["change"] == 0
    flags = ("--config.verify.method=resample", "--config.verify.domains=code")
    assert verify(runs, verified, *flags) == 0
    assert record(verified, "resample")["domains"] == ["code"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=guess", "verify.method='guess' is not one of weights, resample, metagradient"),
        ("changes=0.3,2", "verify.changes=0.3,2: every one must be in (0, 1)"),
        ("estimators=newton", "verify.estimators='newton' is not one of identity, adam,"),
        ("domains=maths", "verify.domains='maths' is not one of math, code"),
        ("round=7", "run that round first"),
    ],
)
def test_mistakes_are_refused(runs, verified, capsys, override, message):
    assert verify(runs, verified, f"--config.verify.{override}") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
