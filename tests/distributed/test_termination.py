"""A scheduler tells one process of two to end: both save the same step, and nothing changes."""

import json
import pathlib

from launching import finish, two_processes

SMALLEST = pathlib.Path(__file__).parents[1] / "runs" / "smallest.py"
SHORTER = (
    "--config.base.steps=0",
    "--config.training.log_every=1",
    "--config.mixture.rounds=0",
    "--config.eval.tasks=",
    "--config.mesh.fsdp=2",
)
# Process 1 tells itself at its fourth step; both count their steps.
PROGRAM = """
import os, signal, sys
import jax
from ideal_jax import processes
from ideal_jax.cli import main

real, steps = processes.Termination.flags, []

def flags(termination):
    steps.append(0)
    if len(steps) == {call} and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    print("steps", len(steps), flush=True)
    return real(termination)

processes.Termination.flags = flags
sys.exit(main({flags!r}))
"""


def run(workdir, call, status):
    flags = ["run", f"--config={SMALLEST}", f"--workdir={workdir}", *SHORTER]
    running = two_processes(["-c", PROGRAM.format(call=call, flags=flags)], devices=1)
    return finish(*running, status=status)


def outcome(workdir):
    record = json.loads((workdir / "rounds" / "00" / "train.json").read_text())
    lines = (workdir / "rounds" / "00" / "metrics.jsonl").read_text().splitlines()
    log = [{key: json.loads(line)[key] for key in ("step", "loss", "grad_norm")} for line in lines]
    return record["params_sha256"], record["tokens"], log


def test_one_process_is_told_and_both_save_the_same_step(tmp_path):
    run(tmp_path / "whole", 0, 0)
    outputs = run(tmp_path / "told", 4, 143)
    steps = [[line for line in text.splitlines() if line.startswith("steps")] for text in outputs]
    assert steps[0] == steps[1]
    assert len(steps[0]) == 5
    assert all("the same command continues" in text for text in outputs)
    saved = tmp_path / "told" / "rounds" / "00" / "checkpoints"
    assert max(int(path.name) for path in saved.iterdir()) == 5
    run(tmp_path / "told", 0, 0)
    assert outcome(tmp_path / "told") == outcome(tmp_path / "whole")
