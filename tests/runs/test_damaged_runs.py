"""A damaged file of a run is made again, or named: never a traceback, never another result."""

import json
import shutil

import damaging
import pytest

from ideal_jax import cli, sealed
from ideal_jax import config as config_lib
from ideal_jax.runs.workdir import finished

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


@pytest.mark.parametrize("first", [0, 3])
def test_every_record_is_made_again(runs, whole, copied, capsys, first):
    names = [*RECORDS, "rounds/01/train.json", "rounds/01/evaluation.json", "export.json"]
    names += ["data/dataset.json", "data/settings.json"]
    for number, name in enumerate(names):
        damaging.JSON[(number + first) % len(damaging.JSON)](copied / name)
    assert runs.here(copied) == 0
    out, error = capsys.readouterr()
    for name in names:
        assert out.count(f"{copied / name} is damaged: ") == 1
    assert error == ""
    assert runs.differences(runs.outcome(whole), runs.outcome(copied)) == []
    assert runs.here(copied) == 0
    assert "damaged" not in capsys.readouterr().out


@pytest.mark.parametrize("damage", [*damaging.JSON, damaging.another_digit])
def test_every_kind_of_damage_is_seen(copied, damage):
    config = config_lib.load(damaging.SMALLEST)
    names = RECORDS
    if damage is damaging.another_digit:  # of seconds it does not matter
        names = ("rounds/00/mixture.json", "rounds/00/evaluation.json", "rounds/00/train.json")
    for name in names:
        before = (copied / name).read_bytes()
        assert finished(copied, config)
        damage(copied / name)
        with pytest.raises(sealed.DamagedError, match=f"^{copied / name} is damaged$"):
            sealed.read(copied / name)
        assert finished(copied, config) is None
        (copied / name).write_bytes(before)


@pytest.mark.parametrize("damage", damaging.JSON)
def test_what_only_reads_the_records_names_the_damaged_one(copied, capsys, damage):
    for name in RECORDS:
        before = (copied / name).read_bytes()
        damage(copied / name)
        for who in ("report", "export", "verify"):
            unread = "train.json" in name or damage is damaging.without_all_keys
            if who == "report" and unread:
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


@pytest.mark.parametrize("damage", [damaging.flip])
def test_a_damaged_log_loses_its_lines_only(runs, copied, capsys, damage):
    damage(copied / "rounds/00/metrics.jsonl")
    assert verb("report", copied) == 0
    (copied / "rounds/00/evaluation.json").unlink()
    (copied / "results.json").unlink()
    assert runs.here(copied) == 0
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


def test_the_newest_whole_checkpoint_is_used(runs, whole, copied, capsys):
    checkpoints = copied / "rounds/01/checkpoints"
    damaging.flip(biggest(checkpoints / "8"))
    damaging.another_digit(copied / "rounds/01/evaluation.json")
    damaging.halve(copied / "rounds/01/train.json")
    assert runs.here(copied) == 0
    out, error = capsys.readouterr()
    assert f"{checkpoints}/8 is damaged: that of step 6 is used\n" in out
    assert error == ""
    assert runs.differences(runs.outcome(whole), runs.outcome(copied)) == []


def test_without_a_whole_checkpoint_all_is_trained_again(runs, whole, copied, capsys):
    checkpoints = copied / "rounds/01/checkpoints"
    for step, damage in (("6", damaging.halve), ("8", damaging.flip)):
        damage(biggest(checkpoints / step))
    damaging.empty(copied / "rounds/01/evaluation.json")
    damaging.halve(copied / "base/train.json")
    assert runs.here(copied) == 0
    out, error = capsys.readouterr()
    assert f"{copied}/base/train.json is damaged: the base is trained again\n" in out
    assert f"{checkpoints}/6 is damaged: training starts again\n" in out
    assert error == ""
    assert runs.differences(runs.outcome(whole), runs.outcome(copied)) == []


def test_damaged_parameters_are_made_again(runs, whole, copied, capsys):
    best = json.loads((copied / "results.json").read_text())["best_round"]
    places = copied / "base", copied / f"rounds/{best:02d}"
    damaging.flip(biggest(places[0] / "params"))
    damaging.halve(biggest(places[1] / "params"))
    # Another run refuses them ...
    for place in places:
        other = copied.with_name(f"from_{place.name}")
        assert runs.here(other, f"--config.model.init={place}") == 2
        error = capsys.readouterr().err
        assert error.startswith(f"ideal-jax: {place}/params is damaged: ")
        assert error.count("\n") == 1
    # ... and their own makes them again.
    damaging.empty(places[1] / "evaluation.json")
    shutil.rmtree(copied / "export")
    assert runs.here(copied) == 0
    out, error = capsys.readouterr()
    assert all(f"{place}/params is damaged: " in out for place in places)
    assert error == ""
    assert runs.differences(runs.outcome(whole), runs.outcome(copied)) == []
    weights = [run / "export" / "model.safetensors" for run in (whole, copied)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_what_was_noted_of_the_data_is_made_again(copied, capsys):
    before = json.loads((copied / "data/dataset.json").read_text())
    for damage in damaging.JSON:
        for name in ("dataset", "settings"):
            damage(copied / f"data/{name}.json")
            assert verb("data", copied) == 0
            out, error = capsys.readouterr()
            assert f"{copied}/data/{name}.json is damaged: " in out
            assert error == ""
            assert json.loads((copied / "data/dataset.json").read_text()) == before


def test_data_that_is_another_by_now_is_refused(runs, copied, capsys):
    damaging.empty(copied / "data/dataset.json")
    (copied / "results.json").unlink()
    recorded = json.loads((copied / "config.json").read_text())
    known = {key: value for key, value in recorded.items() if key != sealed.SEAL}
    sealed.write(copied / "config.json", {**known, "data_sha256": "0" * 64})
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
