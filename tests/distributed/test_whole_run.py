"""The whole run decides the same on one device, on eight, and on two processes."""

import json
import pathlib

from launching import finish, start, two_processes

TINY = pathlib.Path(__file__).parents[2] / "configs" / "tiny.py"
SHORTER = (
    "--config.base.steps=8",
    "--config.training.steps=8",
    "--config.mixture.rounds=1",
    "--config.influence.estimator=ekfac",
    "--config.eval.tasks=",
)


def test_the_whole_tiny_run_ends_in_the_same_counts(tmp_path):
    def command(name, *mesh):
        flags = [f"--config.mesh.{flag}" for flag in mesh]
        workdir = f"--workdir={tmp_path / name}"
        return ["-m", "ideal_jax", "run", f"--config={TINY}", workdir, *SHORTER, *flags]

    finish(start(command("one"), 1))
    finish(start(command("eight", "fsdp=4", "tensor=2"), 8))
    finish(*two_processes(command("processes", "fsdp=2", "tensor=2")))
    mixtures = {
        name: [r["mixture"] for r in json.loads(path.read_text())["rounds"]]
        for name in ("one", "eight", "processes")
        for path in [tmp_path / name / "results.json"]
    }
    assert mixtures["eight"] == mixtures["one"]
    assert mixtures["processes"] == mixtures["one"]
