import json
import sys

import pytest

from ideal_jax.runs.workdir import read_json, write_json


def test_a_finished_run_returns_at_once_and_unchanged(runs, whole, monkeypatch, capsys):
    module = sys.modules["ideal_jax.runs.ideal_run"]  # the package has a function of that name
    monkeypatch.setattr(module, "open_session", lambda *_: pytest.fail("opened"))
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert runs.here(whole) == 0
    # Where and how fast may change, even when there is nothing left to do.
    assert runs.here(whole, "--config.training.log_every=1", "--config.mesh.fsdp=-1") == 0
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    out = capsys.readouterr().out
    assert "scores per round" in out
    rounds = json.loads((whole / "results.json").read_text())["rounds"]
    assert all(f" {record['selection_loss']:.4f} " in out for record in rounds)  # it decides
    assert f"report: {whole / 'report.html'}" in out


def test_a_lost_report_is_written_again(runs, whole):
    text = (whole / "report.html").read_bytes()
    (whole / "report.html").unlink()
    assert runs.here(whole) == 0
    assert (whole / "report.html").read_bytes() == text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps=9", "training.steps: 8 -> 9"),
        ("mixture.rounds=0", "mixture.rounds: 1 -> 0"),
        ("loss.reduction=example", 'loss.reduction: "token" -> "example"'),
        ("data.synthetic.noise=0.5", "data.synthetic.noise: 0.4 -> 0.5"),
    ],
)
def test_another_config_is_refused(runs, whole, capsys, override, message):
    before = runs.files(whole)
    assert runs.here(whole, f"--config.{override}") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "choose another --workdir or restore the value" in error
    assert error.count("\n") == 1
    assert runs.files(whole) == before


def test_the_config_is_recorded_as_resolved(whole):
    recorded = json.loads((whole / "config.json").read_text())
    assert recorded["config"]["training"]["steps"] == 8
    assert recorded["command"].startswith("ideal-jax run --config=")
    assert recorded["devices"]["count"] >= 1
    assert recorded["versions"]["jax"]


def test_json_is_whole_or_absent(tmp_path):
    write_json(tmp_path / "a" / "x.json", {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a" / "x.json", {"x": float("nan")})
    assert read_json(tmp_path / "a" / "x.json") == {"x": 1}
