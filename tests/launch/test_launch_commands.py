"""What the scripts would run, word for word, and what they refuse."""

import shlex
import subprocess

import pytest

from ideal_jax import cli
from ideal_jax import config as config_lib

VERB = [
    "run",
    "--config=configs/it's my.py",
    "--workdir=/mnt/share/a b",
    "--config.model.init=$x\\",
]
POD = ["--name=pod", "--zone=us-east5-b"]
SCRIPTS = ["tpu_pod.sh", "gke.sh", "xpk.sh", "gpu.sh", "slurm.sbatch", "reproduce_paper.sh"]


def words(line):
    return shlex.split(line)


def remote(line):
    """The words of what an ssh command runs on the hosts."""
    (command,) = [word.removeprefix("--command=") for word in words(line) if "--command=" in word]
    return words(command)


def test_the_life_of_a_pod(launch):
    done = launch.call(
        "tpu_pod.sh", "watch", *POD, "--topology=2*v5p:4x4x8", "--capacity=spot",
        "--project=mine", "--nfs=10.0.0.2:/share", "--dry-run", "--", *VERB,
    )  # fmt: skip
    assert (done.status, done.stderr) == (0, "")
    create, look, _, pack, copy, install, stop, start, _, delete = done.output
    queue = ["gcloud", "compute", "tpus", "queued-resources"]
    place = ["--zone=us-east5-b", "--project=mine"]
    hosts = ["--worker=all", "--node=all", "--batch-size=all"]
    archive = str(launch.folder / "ideal-jax-pod.tgz")
    assert words(create) == [
        *queue, "create", "pod", *place, "--accelerator-type=v5p-256",
        "--runtime-version=v2-alpha-tpuv5", "--node-count=2", "--node-prefix=pod", "--spot",
    ]  # fmt: skip
    assert words(look) == [*queue, "describe", "pod", *place, "--format=value(state.state)"]
    assert words(pack) == [
        "tar", "-czf", archive, "--exclude=./.*", "--exclude=./runs", "-C", str(launch.root), ".",
    ]  # fmt: skip
    assert words(copy) == [*queue, "scp", archive, "pod:ideal-jax.tgz", *place, *hosts]
    for line in (install, stop, start):
        assert words(line)[:-1] == [*queue, "ssh", "pod", *place, *hosts]
    assert remote(install)[-3:] == ["ideal-jax/launch/tpu_worker.sh", "install", "10.0.0.2:/share"]
    assert remote(stop) == ["ideal-jax/launch/tpu_worker.sh", "stop"]
    assert remote(start) == ["ideal-jax/launch/tpu_worker.sh", "start", "ATTEMPT", *VERB]
    assert words(delete) == [*queue, "delete", "pod", *place, "--force", "--quiet"]
    assert list(launch.folder.iterdir()) == [launch.folder / "bin"]


@pytest.mark.parametrize(
    ("topology", "accelerator", "runtime"),
    [
        ("v4:2x2x4", "v4-32", "tpu-ubuntu2204-base"),
        ("v5e:1x1", "v5litepod-1", "v2-alpha-tpuv5-lite"),
        ("v5e:4x8", "v5litepod-32", "v2-alpha-tpuv5-lite"),
        ("v5p:2x2x1", "v5p-8", "v2-alpha-tpuv5"),
        ("v6e:16x16", "v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_names_of_one_slice(launch, topology, accelerator, runtime):
    done = launch.call("tpu_pod.sh", "up", *POD, f"--topology={topology}", "--dry-run")
    assert words(done.output[0])[6:] == [
        "--zone=us-east5-b", f"--accelerator-type={accelerator}", f"--runtime-version={runtime}",
        "--node-id=pod",
    ]  # fmt: skip
    assert "start" not in done.stdout


def test_run_and_down_need_no_topology(launch):
    done = launch.call("tpu_pod.sh", "run", *POD, "--dry-run", *VERB)
    assert [words(line)[4 if "gcloud" in line else 0] for line in done.output] == [
        "tar", "scp", "ssh", "ssh", "ssh",
    ]  # fmt: skip
    assert remote(done.output[-1])[3:] == VERB
    (delete,) = launch.call("tpu_pod.sh", "down", *POD, "--dry-run").output
    assert words(delete)[4:6] == ["delete", "pod"]


def test_xpk(launch):
    done = launch.call(
        "xpk.sh", "--cluster=c", "--name=n", "--image=i:1", "--topology=4*v6e:4x8",
        "--storage=s", "--zone=z", "--project=p", "--dry-run", "--", *VERB,
    )  # fmt: skip
    *flags, command = words(done.stdout)
    assert flags == [
        "xpk", "workload", "create", "--cluster=c", "--workload=n", "--tpu-type=v6e-32",
        "--num-slices=4", "--zone=z", "--project=p", "--docker-image=i:1", "--storage=s",
        "--max-restarts=100", "--restart-on-exit-codes=1",
        "--termination-grace-period-seconds=120",
    ]  # fmt: skip
    assert words(command.removeprefix("--command=")) == ["ideal-jax", *VERB]


GPU = ["JAX_PLATFORMS=cuda,cpu", "XLA_PYTHON_CLIENT_MEM_FRACTION=0.92", "ideal-jax", *VERB]


def test_gpus(launch):
    done = launch.call("gpu.sh", "--dry-run", *VERB, JAX_PLATFORMS="")
    assert words(done.stdout) == ["env", *GPU]
    srun, note = launch.call("slurm.sbatch", "--dry-run", *VERB, JAX_PLATFORMS="").output
    assert words(srun) == ["srun", "--kill-on-bad-exit=1", "env", *GPU]
    assert "scontrol requeue" in note


def test_what_slurm_reads(launch):
    lines = (launch.root / "launch" / "slurm.sbatch").read_text().splitlines()
    first = next(k for k, line in enumerate(lines) if not line.startswith("#"))
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in lines[:first]
        if line.startswith("#SBATCH")
    )
    assert lines[0] == "#!/usr/bin/env bash"
    assert options["gpus-per-node"] == options["ntasks-per-node"]  # a process per GPU
    assert options["signal"] == "B:USR1@180"
    assert "requeue" in options
    assert len(options) == sum(line.startswith("#SBATCH") for line in lines)


def test_the_paper(launch):
    flags = ["--data=d d", "--workdir=w", "--machine=h200:8", "--dry-run"]
    runs = launch.call("reproduce_paper.sh", *flags).output
    config = "configs/paper_llama31_8b.py:h200:8"
    for line, epochs in zip(runs, (1, 3), strict=True):
        assert words(line) == [
            f"{launch.root}/launch/gpu.sh", "run", f"--config={launch.root}/launch/../{config}",
            "--config.data.root=d d", f"--config.training.epochs={epochs}",
            f"--workdir=w/epochs_{epochs}",
        ]  # fmt: skip
    launcher = ["launch/tpu_pod.sh", "watch", *POD, "--topology=v5e:8x16", "--"]
    model = "--model=my models/llama"
    elsewhere = launch.call("reproduce_paper.sh", *flags, model, "--", *launcher).output
    for line, local in zip(elsewhere, runs, strict=True):
        there = words(local)[1:]
        there[1] = f"--config={config}"
        there.insert(3, "--config.model.init=my models/llama")
        assert words(line) == [*launcher, *there]


def test_what_the_paper_trains(launch):
    flags = ["--data=d", "--workdir=w", "--machine=v5e:4x8", "--dry-run"]
    for line, epochs in zip(launch.call("reproduce_paper.sh", *flags).output, (1, 3), strict=True):
        config, workdir = cli.parse(words(line)[2:], needs_config=True)
        config_lib.check(config)
        assert str(workdir) == f"w/epochs_{epochs}"
        assert (config.training.epochs, config.training.steps) == (epochs, 0)
        assert (config.mixture.rounds, config.mixture.step) == (2, 0.15)
        assert (config.influence.fraction, config.influence.layers) == (0.5, "mlp")


def test_a_printed_line_is_read_back_as_it_was(launch):
    awkward = ["", " ", "'", '"', "a'b\"c", "$(x)", "`x`", "a\\b", "*", "~", "é", "#", "!", "a\nb"]
    words_in = ["run", *awkward]
    done = launch.call("gpu.sh", "--dry-run", *words_in)
    assert words(done.stdout)[4:] == words_in
    echo = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {done.stdout}"], capture_output=True, text=True, check=True
    )
    assert echo.stdout.split("\0")[4:-1] == words_in


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(launch, script):
    done = launch.call(script, "--help")
    assert done.status == 0
    assert f"launch/{script} " in done.stdout
    assert not any(line.startswith("#") or "SBATCH" in line for line in done.output)
    assert "set -euo" not in done.stdout


FULL = {
    "tpu_pod.sh": ["up", *POD, "--topology=v6e:4x4"],
    "gke.sh": ["--name=n", "--image=i", "--topology=v6e:4x4", "--claim=c"],
    "xpk.sh": ["--cluster=c", "--name=n", "--image=i", "--topology=v6e:4x4", "--storage=s"],
    "reproduce_paper.sh": ["--data=d", "--workdir=w", "--machine=v5e:4x8"],
}


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("tpu_pod.sh", [], "expected up, run, watch or down, not ''; --help explains them"),
        ("tpu_pod.sh", ["start"], "expected up, run, watch or down, not 'start'"),
        ("tpu_pod.sh", ["run", *POD], "what should ideal-jax do? as in: run --config="),
        ("tpu_pod.sh", ["down", *POD, "run"], "down runs nothing: 'run' is too much"),
        ("tpu_pod.sh", [*FULL["tpu_pod.sh"], "--capacity=x"], "--capacity=x: expected spot"),
        ("gke.sh", [*FULL["gke.sh"], "--capacity=x", "run"], "--capacity=x: expected spot"),
        ("gpu.sh", [], "what should ideal-jax do?"),
        ("gpu.sh", ["--workdir=w"], "--workdir: unknown flag; known: --dry-run --help"),
        ("slurm.sbatch", [], "what should ideal-jax do?"),
        *[(s, [*FULL[s], "--nmae=x"], "--nmae: unknown flag; known: --") for s in FULL],
        *[(s, [*FULL[s], "--dryrun"], "--dryrun: unknown flag") for s in FULL],
        *[(s, [*FULL[s][:-1], "run"], "=… is missing; --help shows") for s in FULL],
        *[
            (s, [*FULL[s], f"--{flag}={value}", "run"], f"--{flag}={value}: expected")
            for s in ("tpu_pod.sh", "gke.sh", "xpk.sh")
            for flag, value in [
                ("name", "Llama"), ("topology", "0*v6e:4x4"), ("topology", "*v6e:4x4"),
                ("topology", "two*v6e:4x4"), ("topology", "2*2*v6e:4x4"), ("topology", "v7:4x4"),
                ("topology", "v6e"), ("topology", "v6e:4x"), ("topology", "v6e:4x0"),
                ("topology", "v6e:4x4x4"), ("topology", "v5p:4x4"), ("topology", "v5p:2x2xa"),
            ]
        ],
        ("tpu_pod.sh", [*FULL["tpu_pod.sh"], "--name"], "--name needs a value, as in --name=…"),
    ],
)  # fmt: skip
def test_refusals(launch, script, arguments, message):
    done = launch.call(script, *arguments)
    assert done.status == 2, done
    assert done.stderr.startswith(f"{script}: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
