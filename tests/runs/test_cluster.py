"""The environments of clusters lead to the right place among the processes, or to one line."""

import re

import pytest

from ideal_jax.errors import UserError
from ideal_jax.runs import cluster

POD = {"TPU_WORKER_HOSTNAMES": "host-0,host-1,host-2,host-3", "TPU_WORKER_ID": "2"}
SLICES = {
    **POD,
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "job-slice-0-0.job:8080",
}
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}
THREE = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        ({"TPU_WORKER_HOSTNAMES": "WARNING: not found, please set TPU_WORKER_HOSTNAMES"}, None),
        (POD, ("host-0:8482", 4, 2)),
        ({**POD, "JAX_COORDINATOR_PORT": "99"}, ("host-0:99", 4, 2)),
        ({**POD, "TPU_PROCESS_ADDRESSES": "a:8476,b:8476,c:8476"}, ("a:8482", 3, 2)),
        (SLICES, ("job-slice-0-0.job:8482", 8, 6)),
        (
            {**SLICES, "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
            ("job-slice-0-0.job:8482", 2, 1),
        ),
    ],
)
def test_hosts_of_tpus(environ, place):
    assert cluster.tpu_place(environ) == place


@pytest.mark.parametrize(
    ("environ", "several"),
    [
        ({}, False),
        (STEP, True),
        ({**STEP, "SLURM_NTASKS": "1"}, False),
        # A batch script or an allocation of one node, without srun: the program is alone.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_JOB_NUM_NODES": "1"}, False),
    ],
)
def test_tasks_of_slurm(environ, several):
    assert cluster.is_slurm(environ) is several


def without(environ, name):
    return {key: value for key, value in environ.items() if key != name}


@pytest.mark.parametrize(
    ("find", "environ", "told"),
    [
        (
            cluster.explicit_place,
            without(THREE, "JAX_PROCESS_ID"),
            "JAX_COORDINATOR_ADDRESS=10.0.0.1:1234 needs JAX_PROCESS_ID too",
        ),
        (
            cluster.explicit_place,
            without(THREE, "JAX_COORDINATOR_ADDRESS"),
            "JAX_NUM_PROCESSES=4 needs JAX_COORDINATOR_ADDRESS too",
        ),
        (
            cluster.explicit_place,
            {**THREE, "JAX_COORDINATOR_ADDRESS": "10.0.0.1"},
            "JAX_COORDINATOR_ADDRESS=10.0.0.1: expected host:port",
        ),
        (cluster.explicit_place, {**THREE, "JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4: "),
        (cluster.explicit_place, {**THREE, "JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID=x: expected a"),
        (cluster.tpu_place, without(POD, "TPU_WORKER_ID"), "TPU_WORKER_ID is not set"),
        (cluster.tpu_place, without(SLICES, "MEGASCALE_SLICE_ID"), "MEGASCALE_SLICE_ID is not set"),
        (
            cluster.tpu_place,
            without(SLICES, "MEGASCALE_COORDINATOR_ADDRESS"),
            "MEGASCALE_NUM_SLICES needs MEGASCALE_COORDINATOR_ADDRESS too",
        ),
        (cluster.is_slurm, {**STEP, "SLURM_NTASKS": "two"}, "SLURM_NTASKS=two: expected a"),
        (
            cluster.is_slurm,
            {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "4"},
            "the SLURM job has 4 nodes: start ideal-jax with srun",
        ),
    ],
)
def test_half_set_environments_are_told_in_one_line(find, environ, told):
    with pytest.raises(UserError, match="^" + re.escape(told)) as error:
        find(environ)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("environ", "devices"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_GPUS_ON_NODE": "8"}, "0,1,2,3,4,5,6,7"),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_GPUS_ON_NODE": "8"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1"}, None),
    ],
)
def test_a_task_alone_on_its_node_has_all_its_gpus(environ, devices):
    found = dict(environ)
    cluster._take_all_gpus(found)
    assert found.get("JAX_LOCAL_DEVICE_IDS") == devices
