"""One host of a pod, and one job of SLURM: installing, losing the connection, being told to end."""

import os
import shutil
import signal
import subprocess
import time

import pytest

# Counts its starts; ends when the file `end` appears, with the status in it. Told to go, it needs
# time for its last words, as a run does for a checkpoint.
SLOW = """#!/bin/bash
trap 'sleep 1.5; echo told to go; exit 143' TERM
echo start >>"$HOME/starts"
echo "working on $*"
while [ ! -e "$HOME/end" ]; do sleep 0.1; done
exit "$(cat "$HOME/end")"
"""


@pytest.fixture
def worker(launch):
    """start(attempt) -> the process that follows it; say(status) ends the run."""
    launch.add("ideal-jax", SLOW)
    env = {
        **os.environ,
        "PATH": f"{launch.folder / 'bin'}:{os.environ['PATH']}",
        "HOME": str(launch.folder),
        "TMPDIR": str(launch.folder),
    }
    script = launch.root / "launch" / "tpu_worker.sh"

    def begin(*words):
        return subprocess.Popen([script, *words], env=env, stdout=subprocess.PIPE, text=True)

    def started(times):
        file = launch.folder / "starts"
        for _ in range(200):
            if file.exists() and file.read_text().count("start") == times:
                return
            time.sleep(0.05)
        pytest.fail(f"not started {times} times")

    yield begin, started, launch.folder / "end"
    begin("stop").wait()


def test_a_lost_connection_leaves_the_run_alone(worker):
    begin, started, end = worker
    first = begin("start", "one", "run", "a b")
    started(1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = begin("start", "one", "run", "a b")
    time.sleep(0.5)
    end.write_text("7")
    output, _ = second.communicate(timeout=20)
    assert second.returncode == 7
    assert output.count("working on run a b") == 1
    assert begin("start", "one", "run", "a b").wait() == 7  # and once more when it has ended
    started(1)


def test_another_attempt_ends_the_one_before(worker):
    begin, started, end = worker
    first = begin("start", "one", "run", "x")
    started(1)
    second = begin("start", "two", "run", "x")
    started(2)
    assert "told to go" in first.communicate(timeout=20)[0]
    assert first.returncode == 143  # it did not end by itself
    end.write_text("0")
    assert second.wait(timeout=20) == 0


def test_stop_tells_the_run_to_go(worker):
    begin, started, _ = worker
    running = begin("start", "one", "run", "x")
    started(1)
    assert begin("stop").wait(timeout=20) == 0
    assert "told to go" in running.communicate(timeout=20)[0]
    assert running.returncode == 143
    assert begin("stop").wait(timeout=20) == 0


def test_a_worker_needs_to_be_told_what(worker):
    assert worker[0]("begin").wait() == 2


# What a TPU image has: Python 3.10, and nothing else of use; uv brings another.
OLD_PYTHON = """#!/bin/sh
case "$*" in
    "-m pip install --user"*uv) mkdir -p "$HOME/.local/bin" && cp "$HOME/uv" "$HOME/.local/bin" ;;
    *) exit 1 ;;
esac
"""
UV = """#!/bin/sh
[ "$*" = "python find 3.12" ] && echo "$HOME/new_python" || [ "$*" = "python install 3.12" ]
"""
NEW_PYTHON = """#!/bin/sh
echo "$*" >>"$HOME/installed"
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip install"*) cp "$HOME/ideal-jax" "${0%/*}" ;;
esac
"""
IDEAL_JAX = """#!/bin/sh
echo "with $*"
"""
SUDO = """#!/bin/sh
echo "$*" >>"$HOME/sudo"
"""
TOOLS = "bash cat chmod cksum cp cut dirname env mkdir printf rm setsid sh sleep tail touch"


def test_a_bare_host_installs_once_and_runs(launch):
    home, tools = launch.folder / "home", launch.folder / "tools"
    shutil.copytree(launch.root / "launch", home / "launch")
    shutil.copy(launch.root / "pyproject.toml", home)
    tools.mkdir()
    for tool in TOOLS.split():
        (tools / tool).symlink_to(shutil.which(tool))
    texts = {
        "tools/python3": OLD_PYTHON,
        "tools/sudo": SUDO,
        "tools/mountpoint": "#!/bin/sh\nexit 1\n",
    }
    for name, text in {
        **texts,
        "home/uv": UV,
        "home/new_python": NEW_PYTHON,
        "home/ideal-jax": IDEAL_JAX,
    }.items():
        path = launch.folder / name
        path.write_text(text)
        path.chmod(0o755)

    def host(*words):
        env = {"PATH": str(tools), "HOME": str(home), "TMPDIR": str(home)}
        command = [home / "launch" / "tpu_worker.sh", *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    for _ in range(2):
        done = host("install", "10.0.0.2:/share")
        assert done.returncode == 0, done
    installed = (home / "installed").read_text()
    assert installed.count("-m venv") == 1
    assert installed.count("-m pip install") == 1
    assert installed.count(f"--editable {home}[tpu]") == 1
    mounted = (home / "sudo").read_text().splitlines()
    assert mounted[:4] == [
        "apt-get update --quiet",
        "apt-get install --yes --quiet nfs-common",
        "mkdir -p /mnt/share",
        "mount -t nfs -o local_lock=flock 10.0.0.2:/share /mnt/share",
    ]
    done = host("start", "one", "run", "--workdir=w")
    assert (done.returncode, done.stdout) == (0, "with run --workdir=w\n")


# SLURM --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "queued"), [(signal.SIGUSR1, "requeue 77\n"), (signal.SIGTERM, "")]
)
def test_a_job_whose_time_is_over_queues_again(launch, sent, queued):
    launch.add("srun", '#!/bin/bash\nshift; exec "$@"\n')
    launch.add("scontrol", '#!/bin/sh\necho "$@" >>"$HOME/scontrol"\n')
    launch.add("ideal-jax", SLOW)
    env = {
        **os.environ,
        "PATH": f"{launch.folder / 'bin'}:{os.environ['PATH']}",
        "HOME": str(launch.folder),
        "SLURM_JOB_ID": "77",
        "SLURM_SUBMIT_DIR": str(launch.root),
    }
    # As SLURM does: a copy, somewhere else.
    copy = launch.folder / "slurm_script"
    copy.write_text((launch.root / "launch" / "slurm.sbatch").read_text())
    job = subprocess.Popen(
        ["bash", copy, "run"], env=env, cwd=launch.folder, stdout=subprocess.PIPE, text=True
    )
    while not (launch.folder / "starts").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    job.send_signal(sent)
    output, _ = job.communicate(timeout=20)
    assert job.returncode == 143
    assert "told to go" in output
    noted = launch.folder / "scontrol"
    assert (noted.read_text() if noted.exists() else "") == queued


def test_a_job_that_was_submitted_elsewhere(launch, tmp_path):
    copy = launch.add("slurm_script", (launch.root / "launch" / "slurm.sbatch").read_text())
    done = subprocess.run(
        ["bash", copy, "run"], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "SLURM_SUBMIT_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("slurm.sbatch: submit it from the folder of ideal-jax")
