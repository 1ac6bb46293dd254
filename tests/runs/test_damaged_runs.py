"""A damaged file of a run is made again, or named: never a traceback, never another result."""

import json
import shutil
import sys

import damaging
import pytest

from ideal_jax import cli

ROUND = ("mixture", "train", "evaluation", "influence", "speed")
RECORDS = ("results.json", *(f"rounds/00/{name}.json" for name in ROUND))


def biggest(folder):
    return max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)


@pytest.fixture
def copied(whole, tmp_path):
    """A finished run in a place of its own, as whose records all files are found."""
    shutil.copytree(whole, tmp_path / "w")
    return tmp_path / "w"


def verb(name, workdir, *flags):
    config = [] if name == "report" else [f"--config={damaging.SMALLEST}"]
    return cli.main([name, *config, f"--workdir={workdir}", *flags])


@pytest.mark.parametrize("damage", damaging.JSON)
def test_every_record_of_a_run_is_made_again(runs, whole, copied, capsys, damage):
    names = [*RECORDS, "rounds/01/evaluation.json", "export.json"]
    for name in names:
        damage(copied / name)
    assert runs.here(copied) == 0
    out, error = capsys.readouterr()
    for name in names:
        assert out.count(f"{copied / name} is damaged: ") == 1
    assert error == ""
    expected, found = runs.outcome(whole), runs.outcome(copied)
    assert runs.differences(expected, found) == []
    assert not (copied / "rounds/00/speed.json").exists()
    assert runs.here(copied) == 0
    assert "damaged" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["rounds/01/evaluation.json", "rounds/01/train.json"])
def test_another_digit_is_seen(runs, whole, copied, capsys, name):
    damaging.another_digit(copied / name)
    assert runs.here(copied) == 0
    assert f"{copied / name} is damaged: it is made again\n" in capsys.readouterr().out
    assert runs.differences(runs.outcome(whole), runs.outcome(copied)) == []


@pytest.mark.parametrize("damage", damaging.JSON)
def test_what_only_reads_the_records_names_the_damaged_one(copied, capsys, damage):
    read_by_report = [name for name in RECORDS if "train.json" not in name]
    for name in RECORDS:
        before = (copied / name).read_bytes()
        damage(copied / name)
        for who in ("report", "export", "verify"):
            if who == "report" and name not in read_by_report:
                continue
            assert verb(who, copied) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1
            assert str(copied / name) in error
            assert "rerun" in error or "ideal-jax run makes it again" in error
        (copied / name).write_bytes(before)


@pytest.mark.parametrize("damage", damaging.JSON)
def test_a_damaged_config_is_named(copied, capsys, damage):
    damage(copied / "config.json")
    before = (copied / "config.json").read_bytes()
    for who in ("run", "verify", "export", "data", "report"):
        assert verb(who, copied) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "config.json" in error
    assert (copied / "config.json").read_bytes() == before


@pytest.mark.parametrize("damage", damaging.BYTES)
def test_a_damaged_log_loses_its_lines_only(runs, copied, capsys, damage):
    damage(copied / "rounds/00/metrics.jsonl")
    (copied / "rounds/00/evaluation.json").unlink()
    assert runs.here(copied) == 0
    assert verb("report", copied) == 0
    for line in (copied / "rounds/00/metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["step"] in (2, 4, 6, 8)


@pytest.mark.parametrize("damage", damaging.JSON)
def test_what_verify_found_is_named(runs, copied, capsys, damage):
    file = copied / "verify/round_00/weights.json"
    file.parent.mkdir(parents=True)
    file.write_bytes((copied / "results.json").read_bytes())
    damage(file)
    for who, flags in (("run", []), ("verify", ["--config.verify.method=resample"])):
        assert verb(who, copied, *flags) == 2
        assert capsys.readouterr().err == (
            f"ideal-jax: {file} is damaged; ideal-jax verify makes it again, or remove it\n"
        )


@pytest.mark.parametrize("damage", damaging.BYTES)
def test_the_newest_whole_checkpoint_is_used(runs, whole, copied, capsys, damage):
    checkpoints = copied / "rounds/01/checkpoints"
    damage(biggest(checkpoints / "8"))
    (copied / "rounds/01/evaluation.json").unlink()
    (copied / "rounds/01/train.json").unlink()
    (copied / "results.json").unlink()
    assert runs.here(copied) == 0
    out, error = capsys.readouterr()
    assert f"{checkpoints}/8 is damaged: that of step 6 is used\n" in out
    assert error == ""
    assert runs.differences(runs.outcome(whole), runs.outcome(copied)) == []


def test_without_a_whole_checkpoint_the_round_is_trained_again(runs, whole, copied, capsys):
    checkpoints = copied / "rounds/01/checkpoints"
    for step, damage in (("6", damaging.halve), ("8", damaging.flip)):
        damage(biggest(checkpoints / step))
    damaging.empty(copied / "rounds/01/evaluation.json")
    assert runs.here(copied) == 0
    out, error = capsys.readouterr()
    assert f"{checkpoints}/6 is damaged: training starts again\n" in out
    assert error == ""
    assert runs.differences(runs.outcome(whole), runs.outcome(copied)) == []


@pytest.mark.parametrize("damage", damaging.BYTES)
def test_damaged_parameters_are_made_again(runs, whole, copied, capsys, damage):
    best = json.loads((copied / "results.json").read_text())["best_round"]
    round_ = f"rounds/{best:02d}"
    for folder in ("base", round_):
        damage(biggest(copied / folder / "params"))
    # Another run refuses them ...
    for folder in ("base", round_):
        init = f"--config.model.init={copied / folder}"
        assert runs.here(copied.with_name("other"), init) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"ideal-jax: {copied / folder}/params is damaged: ")
        assert error.count("\n") == 1
    # ... and their own makes them again.
    (copied / round_ / "evaluation.json").unlink()
    shutil.rmtree(copied / "export")
    assert runs.here(copied) == 0
    out, error = capsys.readouterr()
    assert f"{copied}/base/params is damaged: " in out
    assert f"{copied}/{round_}/params is damaged: " in out
    assert error == ""
    assert runs.differences(runs.outcome(whole), runs.outcome(copied)) == []
    weights = [run / "export" / "model.safetensors" for run in (whole, copied)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert runs.here(copied) == 0
    assert "damaged" not in capsys.readouterr().out


def test_a_damaged_base_record(runs, whole, copied, capsys):
    damaging.halve(copied / "base/train.json")
    assert runs.here(copied) == 0
    out, error = capsys.readouterr()
    assert f"{copied}/base/train.json is damaged: the base is trained again\n" in out
    assert error == ""
    assert runs.differences(runs.outcome(whole), runs.outcome(copied)) == []


@pytest.mark.parametrize("damage", damaging.JSON)
def test_what_was_noted_of_the_data_is_made_again(runs, whole, copied, capsys, damage):
    for name in ("dataset", "settings"):
        damage(copied / f"data/{name}.json")
    (copied / "results.json").unlink()
    assert verb("data", copied) == 0
    out, error = capsys.readouterr()
    assert error == ""
    for name in ("dataset", "settings"):
        assert f"{copied}/data/{name}.json is damaged: " in out
    assert runs.here(copied) == 0
    assert runs.differences(runs.outcome(whole), runs.outcome(copied)) == []


def test_data_that_is_another_by_now_is_refused(runs, copied, capsys):
    damaging.empty(copied / "data/dataset.json")
    (copied / "results.json").unlink()
    recorded = json.loads((copied / "config.json").read_text())
    module = sys.modules["ideal_jax.sealed"]
    known = {key: value for key, value in recorded.items() if key != module.SEAL}
    module.write(copied / "config.json", {**known, "data_sha256": "0" * 64})
    assert runs.here(copied) == 2
    error = capsys.readouterr().err
    assert f"{copied}/data was made again, and its sources have changed since" in error
    assert error.count("\n") == 1


def test_a_damaged_influence_is_measured_again(runs, whole, tmp_path, capsys):
    flags = [f"--config.model.init={whole / 'rounds/00'}"]
    workdir = tmp_path / "w"
    assert verb("influence", workdir, *flags) == 0
    file = workdir / "influence/influence.json"
    before = json.loads(file.read_text())
    damaging.halve(file)
    capsys.readouterr()
    assert verb("influence", workdir, *flags) == 0
    assert f"{file} is damaged: it is made again\n" in capsys.readouterr().out
    assert json.loads(file.read_text())["sha256"] == before["sha256"]
