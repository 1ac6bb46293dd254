"""Pods that are preempted, connections that break, jobs whose time is over."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

# Answers looks at the pod, and the `start` of a run, with the next of what PLAN lists; notes calls.
GCLOUD = f"""#!{sys.executable}
import json, os, pathlib, sys
plan = pathlib.Path(os.environ["PLAN"])
told = json.loads(plan.read_text())

def following(kind):
    answer = told[kind].pop(0) if len(told[kind]) > 1 else told[kind][0]
    plan.write_text(json.dumps(told))
    return answer

verb, words = sys.argv[4], " ".join(sys.argv)
if verb == "describe":
    answer = following("states")
    if answer is None:
        sys.exit("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: no such")
    if answer == "no answer":
        sys.exit("ERROR: the network is unreachable")
    print(answer)
elif verb == "list":
    print(following("slices").replace(",", "\\n"))
else:
    step = verb if verb != "ssh" else words.split("tpu_worker.sh ")[1].split()[0]
    with open(os.environ["CALLS"], "a") as calls:
        print(step, file=calls)
    if step == "start":
        sys.exit(following("runs"))
    if step == "create" and told["slices"] == ["no quota"]:
        sys.exit("ERROR: quota")
"""
NEW = ["create", "scp", "install", "stop", "start"]
AGAIN = ["scp", "install", "stop", "start"]
GONE = ["delete"]


@pytest.fixture
def watch(launch):
    """Watches a pod of this plan; returns (status, the steps that were taken, what was said)."""
    launch.add("gcloud", GCLOUD)

    def call(states, runs, slices=("READY",)):
        plan, calls = launch.folder / "plan.json", launch.folder / "calls"
        plan.write_text(json.dumps({"states": states, "runs": runs, "slices": slices}))
        done = launch.call(
            "tpu_pod.sh", "watch", "--name=pod", "--zone=z", "--topology=v6e:4x4", "--", "run",
            PLAN=str(plan), CALLS=str(calls), PAUSE="0",
        )  # fmt: skip
        steps = calls.read_text().split() if calls.exists() else []
        return done.status, steps, done.stdout + done.stderr

    return call


def test_a_run_that_nothing_disturbs(watch):
    states = [None, "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    assert watch(states, [0])[:2] == (0, NEW + GONE)


@pytest.mark.parametrize("state", ["SUSPENDED", "SUSPENDING", "FAILED"])
def test_a_preempted_pod_is_made_again_and_the_run_goes_on(watch, state):
    states = [None, "ACTIVE", state, state, "CREATING", "ACTIVE"]
    status, steps, said = watch(states, [255, 0])
    assert (status, steps) == (0, NEW + GONE + NEW + GONE)
    assert f"the run ended with status 255, pod: {state}" in said


def test_a_slice_that_is_gone_is_a_pod_that_is_gone(watch):
    # The queue still calls the pod active; looks: new, after the run, before the next, new, end.
    slices = ["READY,READY", "READY,PREEMPTED", "READY,PREEMPTED", "READY,READY"]
    status, steps, said = watch([None, "ACTIVE"], [255, 0], slices=slices)
    assert (status, steps) == (0, NEW + GONE + NEW + GONE)
    assert "the run ended with status 255, pod: PREEMPTED" in said


def test_a_pod_that_does_not_start(watch):
    status, steps, said = watch([None, "FAILED"], [0])
    assert (status, steps) == (1, ["create", *["delete", "create"] * 4, *GONE])
    assert "pod did not start; why: gcloud compute tpus queued-resources describe pod" in said


def test_many_preemptions_in_a_row(watch):
    states = [None, *["ACTIVE", "SUSPENDED", "SUSPENDED"] * 6, "ACTIVE"]
    status, steps, _ = watch(states, [255] * 6 + [0])
    assert (status, steps) == (0, (NEW + GONE) * 7)


def test_a_queueing_pod_of_an_earlier_watch_is_waited_for(watch):
    assert watch(["WAITING_FOR_RESOURCES", "ACTIVE"], [0])[:2] == (0, AGAIN + GONE)


def test_a_broken_connection_runs_again_on_the_same_pod(watch):
    assert watch(["ACTIVE"], [255, 255, 0])[:2] == (0, AGAIN * 3 + GONE)


def test_no_answer_is_not_taken_for_no_pod(watch):
    states = ["ACTIVE", "ACTIVE", "no answer", "no answer", "ACTIVE"]
    status, steps, said = watch(states, [255, 0])
    assert (status, steps) == (0, AGAIN + AGAIN + GONE)
    assert "the network is unreachable" in said


def test_what_was_refused_is_not_tried_again(watch):
    assert watch([None, "ACTIVE"], [2])[:2] == (2, NEW + GONE)


def test_a_host_that_waited_in_vain_for_a_preempted_one_refused_nothing(watch):
    states = [None, "ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE"]
    assert watch(states, [2, 0])[:2] == (0, NEW + GONE + NEW + GONE)


def test_what_always_fails_ends_and_the_pod_with_it(watch):
    status, steps, said = watch([None, "ACTIVE"], [1])
    assert (status, steps) == (1, NEW + AGAIN * 4 + GONE)
    assert "failed five times in a row" in said


def test_a_pod_that_cannot_be_made(watch):
    status, steps, said = watch([None], [0], slices=["no quota"])
    assert (status, steps) == (1, ["create"] * 5)
    assert said.count("ERROR: quota") == 5


# One host -----------------------------------------------------------------------------------------

# Counts its starts; ends when the file `end` appears, with the status in it.
SLOW = """#!/bin/bash
echo start >>"$HOME/starts"
trap 'echo told to go; exit 143' TERM
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
    assert "working" in first.communicate(timeout=20)[0]
    assert first.returncode == 1  # it did not end by itself
    end.write_text("0")
    assert second.wait(timeout=20) == 0


def test_stop_tells_the_run_to_go(worker):
    begin, started, _ = worker
    running = begin("start", "one", "run", "x")
    started(1)
    assert begin("stop").wait(timeout=20) == 0
    assert "told to go" in running.communicate(timeout=20)[0]
    assert begin("stop").wait(timeout=20) == 0


def test_a_worker_needs_to_be_told_what(worker):
    assert worker[0]("begin").wait() == 2


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
