"""Real local processes through the scripts: a run by SLURM, one alone, the hosts of a TPU pod.

srun and gcloud are stand-ins that do here what the real ones do on other machines: start the
command they are given, once per task or host, in that machine's environment.
"""

import contextlib
import json
import os
import socket
import sys
import textwrap

import numpy as np
import pytest

TINY = """
import pathlib
from ideal_jax.config import load

def get_config():
    c = load({root!r} + "/tests/runs/smallest.py")
    c.data.workers = 0
    c.base.steps = 0
    c.training.steps = 4
    c.mixture.rounds = 0
    c.eval.tasks = ""
    return c
"""

SRUN = """
    import os, signal, subprocess, sys
    argv = sys.argv[1:]
    assert argv[0] == "--kill-on-bad-exit=1"
    ids = [{"SLURM_PROCID": str(k), "SLURM_LOCALID": str(k)} for k in range(2)]
    tasks = [subprocess.Popen(argv[1:], env={**os.environ, **who}) for who in ids]
    signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
    codes = [task.wait() for task in tasks]
    sys.exit(max(c if c >= 0 else 128 - c for c in codes))
"""

# Hosts are folders; a command runs in all of them at once, as gcloud's --worker=all does.
GCLOUD = """
    import os, pathlib, shutil, subprocess, sys
    verb, hosts = sys.argv[4], [pathlib.Path(os.environ["HOSTS"], str(k)) for k in range(2)]
    if verb == "scp":
        for host in hosts:
            (host / "tmp").mkdir(parents=True, exist_ok=True)
            shutil.copy(sys.argv[5], host / sys.argv[6].partition(":")[2])
    elif verb == "ssh":
        (command,) = [word[10:] for word in sys.argv if word.startswith("--command=")]
        running = []
        for k, host in enumerate(hosts):
            env = {**os.environ, "HOME": str(host), "TMPDIR": str(host / "tmp")}
            env |= {"TPU_WORKER_HOSTNAMES": "localhost,localhost", "TPU_WORKER_ID": str(k)}
            running.append(subprocess.Popen(["bash", "-c", command], cwd=host, env=env))
        sys.exit(max(process.wait() for process in running))
    else:
        print("ACTIVE")
"""


def python(text):
    return f"#!{sys.executable}\n{textwrap.dedent(text)}"


def free_port(ports=(0,)):
    """The first of these that nobody listens on; 0: any."""
    for port in ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return probe.getsockname()[1]
    pytest.fail("no port is free")


@pytest.fixture
def tiny(launch):
    """The words of a run of seconds in a folder of this name; its results once it is done."""
    config = launch.folder / "a tiny.py"
    config.write_text(TINY.format(root=str(launch.root)))
    assert not {name for name in os.environ if name.startswith(("SLURM_", "JAX_COORD"))}

    def words(name):
        return ["run", f"--config={config}", f"--workdir={launch.folder / name}"]

    def results(name):
        folder = launch.folder / name
        found = json.loads((folder / "config.json").read_text())
        lines = (folder / "rounds" / "00" / "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in lines]
        return found["devices"]["processes"], losses

    return words, results


def slurm(folder, **more):
    return {
        # jax takes the coordinator's port from it: 61440 + job % 4096
        "SLURM_JOB_ID": str(free_port(range(61440 + os.getpid() % 4096, 65536)) - 61440),
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_SUBMIT_DIR": str(folder),
        **more,
    }


def test_two_slurm_tasks_train_what_one_process_trains(launch, tiny):
    words, results = tiny
    launch.add("srun", python(SRUN))
    by_slurm = launch.call("slurm.sbatch", *words("by slurm"), **slurm(launch.root))
    assert by_slurm.status == 0, by_slurm
    alone = launch.call("gpu.sh", *words("alone"))
    assert alone.status == 0, alone
    assert "report: " in alone.stdout
    assert by_slurm.stdout.count("report: ") == 1  # one of them speaks
    (one, expected), (two, losses) = results("alone"), results("by slurm")
    assert (one, two, len(expected)) == (1, 2, 2)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


# Joins the run as every verb does, and no more.
JOIN = """
    import sys
    import jax
    from ideal_jax import processes
    from ideal_jax.runs import cluster
    cluster.initialise()
    processes.barrier("joined")
    line = f"process {jax.process_index()} of {jax.process_count()} {sys.argv[1:]}\\n"
    sys.stdout.write(line)  # at once, or the lines of two processes mix
    sys.stdout.flush()
    processes.leave()
"""


def test_the_hosts_of_a_pod_join(launch):
    launch.add("gcloud", python(GCLOUD))
    launch.add("ideal-jax", python(JOIN))
    done = launch.call(
        "tpu_pod.sh", "run", "--name=pod", "--zone=z", "--", "run", "--workdir=it's a",
        HOSTS=str(launch.folder / "hosts"),
        JAX_COORDINATOR_PORT=str(free_port()),
    )  # fmt: skip
    assert done.status == 0, done
    for k in range(2):
        assert f"""process {k} of 2 ['run', "--workdir=it's a"]""" in done.stdout
        copied = launch.folder / "hosts" / str(k) / "ideal-jax"
        assert (copied / "pyproject.toml").exists()
        assert not (copied / ".git").exists()


def test_a_refusal_comes_back_through_every_script(launch, tiny):
    words, _ = tiny
    launch.add("srun", python(SRUN))
    launch.add("gcloud", python(GCLOUD))
    wrong = [*words("w"), "--config.training.stepz=3"]
    for done in (
        launch.call("gpu.sh", *wrong),
        launch.call("slurm.sbatch", *wrong, **slurm(launch.root)),
        launch.call(
            "tpu_pod.sh", "run", "--name=pod", "--zone=z", "--", *wrong,
            HOSTS=str(launch.folder / "hosts"),
        ),
    ):  # fmt: skip
        assert done.status == 2, done
        assert "unknown key (did you mean training.steps?)" in done.stdout + done.stderr
