"""Kills a run at random instants, restarts it with the same command, compares the outcome.

    python benchmarks/kill_test.py --kills=10 --seed=0 [--signal=INT] [--config=configs/tiny.py]
        [--config.x=y …]

One run goes through undisturbed. Others are killed, each restarted in its own work directory until
it gets to its end; a new one is begun while there are kills left. Everything that a run leaves
behind except the time it took must be the same, to the last bit. Exit status 1 if it is not.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
_TIMES = ("seconds", "elapsed", "mfu", "positions_per_second")
_TIMES += ("tokens_per_second", "supervised_tokens_per_second")


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
    """Every JSON that a run left behind, by path and without wall times."""
    files = [workdir / "results.json", *sorted((workdir / "base").glob("*.json*"))]
    files += sorted((workdir / "rounds").glob("*/*.json*"))
    found: dict[str, Any] = {"report.html": (workdir / "report.html").exists()}
    for file in files:
        if file.name == "speed.json":
            continue  # all of it is measured
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        name = str(file.relative_to(workdir))
        found[name] = [timeless(json.loads(line)) for line in lines]
    return found


def timeless(value: Any) -> Any:
    """A JSON value without wall times, at any depth."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in _TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of the files that differ or are there in one outcome only."""
    return sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )


def phase(workdir: pathlib.Path, log: pathlib.Path) -> str:
    """What a killed run was at: its last line, and whether a checkpoint was being written."""
    lines = log.read_text().splitlines()
    # The line that answers an interrupt comes after that of the phase.
    said = [line for line in lines if line and not line.startswith("ideal-jax:")]
    half = [path for path in workdir.rglob("*") if "checkpoint-tmp" in path.name]
    return (said[-1] if said else "starting") + (
        f" [half a checkpoint: {half[0].relative_to(workdir)}]" if half else ""
    )


class Run:
    """One work directory and the command that continues it."""

    def __init__(self, config: list[str], workdir: pathlib.Path):
        self.workdir = workdir
        self.log = workdir.with_suffix(".log")
        self._command = [sys.executable, "-m", "ideal_jax", "run"]
        # A shared cache would spare all but the first run the preparation of the data.
        cache = f"--config.data.cache={workdir.with_suffix('.cache')}"
        self._command += [*config, cache, f"--workdir={workdir}"]

    def start(self, delay: float | None = None, kind: int = signal.SIGKILL) -> tuple[int, float]:
        """(exit status, seconds from the signal, or the start, to the end)."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        began = time.perf_counter()
        with self.log.open("w") as log:
            child = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                # What a shell starts in the background ignores SIGINT, and so do its children.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            try:
                child.wait(delay)
            except subprocess.TimeoutExpired:
                began = time.perf_counter()
                child.send_signal(kind)
                child.wait()
        return child.returncode, time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/tiny.py")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", choices=("KILL", "INT"), default="KILL")
    parser.add_argument("--folder", help="where the runs go and stay; default: a temporary one")
    options, overrides = parser.parse_known_args()
    config = [f"--config={options.config}", *overrides]
    kind = signal.Signals[f"SIG{options.signal}"]
    stopped = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[kind]
    folder = pathlib.Path(options.folder or tempfile.mkdtemp(prefix="kill_test_")).absolute()
    folder.mkdir(parents=True, exist_ok=True)

    # Twice: the first fills the compilation cache, if there is one, and must agree with the second.
    for name in ("warm", "whole"):
        whole = Run(config, folder / name)
        status, seconds = whole.start()
        if status:
            print(whole.log.read_text())
            return 1
    print(f"uninterrupted: {seconds:.1f} s", flush=True)
    expected = outcome(whole.workdir)
    bad = differences(expected, outcome(folder / "warm"))
    print(f"the same again, uninterrupted: {bad or 'identical'}", flush=True)

    draw = random.Random(options.seed)
    kills, life = 0, 0
    while kills < options.kills:
        life += 1
        run = Run(config, folder / f"killed{life}")
        finished = False
        while kills < options.kills and not finished:
            delay = draw.uniform(0.0, 0.7 * seconds)
            status, took = run.start(delay, kind)
            finished = status == 0
            if finished:
                break
            kills += 1
            where = phase(run.workdir, run.log)
            note = "" if status == stopped else f"  EXIT STATUS {status}"
            print(f"kill {kills} (run {life}) after {delay:.1f} s, gone in {took:.1f} s: ", end="")
            print(where + note, flush=True)
            if note:
                print(run.log.read_text())
                bad.append(f"exit status {status}")
        if not finished:
            status, _ = run.start()
        if status:
            print(run.log.read_text())
            return 1
        wrong = differences(expected, outcome(run.workdir))
        print(f"run {life}, finished: {'DIFFERS IN ' + ', '.join(wrong) if wrong else 'identical'}")
        bad += wrong
    print(f"{kills} kills, {len(expected)} files compared: {'FAILED' if bad else 'all identical'}")
    if not options.folder and not bad:
        shutil.rmtree(folder)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
