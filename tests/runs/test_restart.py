"""Whatever kills a run, the same command continues it to the same bits."""

import json
import shutil
import signal
import sys

# Kills its own process in call number ``call`` of a function, before or after what it does.
DIE = """
import json, os, signal, sys
from ideal_jax import processes, runs
from ideal_jax.cli import main
from ideal_jax.data import store
from ideal_jax.runs import influence_progress, train_run
from ideal_jax.training import checkpoints, loop

ideal_run = sys.modules["ideal_jax.runs.ideal_run"]  # the package has a function of that name

def die(owner, name, call, after=False):
    real, calls = getattr(owner, name), []
    def wrapped(*arguments, **options):
        calls.append(name)
        if len(calls) == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **options)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, wrapped)

def told(call):
    real, calls = processes.Termination.flags, []
    def flags(termination):
        calls.append(0)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(termination)
    processes.Termination.flags = flags

def die_writing(status):
    real = json.dump
    def half(value, file, **options):
        if value.get("status") == status:
            file.write('{"rounds": [')
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        real(value, file, **options)
    json.dump = half

"""

# In the order of a run: each start gets as far as its own.
POINTS = {
    "between two token stores": "die(store.TokenStore, 'write', 3)",
    "in a step of the base, between checkpoints": "die(loop, '_report', 5)",
    "in the asynchronous save of a checkpoint": (
        "die(checkpoints.ocp.CheckpointManager, 'save', 3, after=True)"
    ),
    "the base recorded, its checkpoints still there": (
        "die(train_run, 'write_json', 1, after=True)"
    ),
    "told to end in a step of the round": "told(3)",
    "in the influence": "die(influence_progress.InfluenceProgress, '_tick', 2)",
    "results.json half-written": "die_writing('finished')",
}
TOLD = "told to end; everything is saved and the same command continues"


def test_killed_anywhere(runs, whole, tmp_path):
    workdir, cache = tmp_path / "w", f"--config.data.cache={tmp_path / 'cache'}"
    for point, statement in POINTS.items():
        child = runs.start(workdir, cache, program=DIE + statement)
        _, error = child.communicate()
        if statement.startswith("told"):
            assert child.returncode == 143, error
            assert error == f"ideal-jax: {TOLD}\n"
            assert (workdir / "rounds" / "00" / "checkpoints" / "4").exists()
        else:
            assert (child.returncode, error) == (-signal.SIGKILL, ""), point
    assert runs.here(workdir, cache) == 0
    assert runs.differences(runs.outcome(whole), runs.outcome(workdir)) == []
    assert not [path for path in tmp_path.rglob("*") if "tmp" in path.name]
    assert not (workdir / "base" / "checkpoints").exists()


def test_an_older_checkpoint_half_removed(runs, whole, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "rounds" / "01")
    for name in ("results.json", "rounds/00/evaluation.json", "rounds/00/influence.json"):
        (workdir / name).unlink()
    checkpoints = workdir / "rounds" / "00" / "checkpoints"
    shutil.rmtree(checkpoints / "6" / "state" / "d")
    (checkpoints / "3" / "state").mkdir(parents=True)
    (checkpoints / "7.orbax-checkpoint-tmp").mkdir()
    assert runs.here(workdir) == 0
    assert runs.differences(runs.outcome(whole), runs.outcome(workdir)) == []
    assert not (checkpoints / "7.orbax-checkpoint-tmp").exists()


def test_results_hold_no_speed_and_finite_numbers(whole):
    text = (whole / "results.json").read_text()
    assert "per_second" not in text
    assert "NaN" not in text


def test_more_rounds_continue_to_what_a_straight_run_gives(runs, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "raised")
    for name in ("raised", "straight"):
        assert runs.here(tmp_path / name, "--config.mixture.rounds=2") == 0
    straight = runs.outcome(tmp_path / "straight")
    assert runs.differences(straight, runs.outcome(tmp_path / "raised")) == []
    rounds = straight["results.json"][0]["rounds"]
    assert [record["round"] for record in rounds] == [0, 1, 2]
    assert len({record["params_sha256"] for record in rounds}) == 3


def test_a_run_that_stopped_by_itself_goes_on_when_told(runs, whole, tmp_path, monkeypatch):
    module = sys.modules["ideal_jax.runs.ideal_run"]  # the package has a function of that name
    with monkeypatch.context() as patch:
        patch.setattr(module, "is_settled", lambda matrix: True)
        assert runs.here(tmp_path / "w") == 0
        results = json.loads((tmp_path / "w" / "results.json").read_text())
        assert results["stopped"]
        assert len(results["rounds"]) == 1
        assert runs.here(tmp_path / "w", "--config.mixture.stop=False") == 0
    assert runs.differences(runs.outcome(whole), runs.outcome(tmp_path / "w")) == []


def test_a_given_base_gives_the_same_run(runs, whole, tmp_path):
    assert runs.here(tmp_path / "w", f"--config.model.init={whole / 'base'}") == 0
    expected, found = runs.outcome(whole), runs.outcome(tmp_path / "w")
    assert expected["results.json"][0]["rounds"] == found["results.json"][0]["rounds"]


def test_a_run_that_diverges_says_so(runs, tmp_path):
    flags = ("--config.base.learning_rate=100", "--config.training.weight_decay=1000")
    child = runs.start(tmp_path / "w", *flags)  # ends while a checkpoint is being saved
    _, error = child.communicate()
    assert child.returncode == 2
    assert error.startswith(
        ("ideal-jax: base: the loss is not", "ideal-jax: base: the gradient is not")
    )
    assert "the training diverged; lower base.learning_rate" in error
    assert error.count("\n") == 1
