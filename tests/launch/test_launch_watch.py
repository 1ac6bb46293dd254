"""What the watch of a pod decides when pods are preempted, refused or out of reach."""

import json
import sys

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
