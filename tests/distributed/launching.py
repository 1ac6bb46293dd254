"""Starts Python processes with virtual devices, alone or as two processes of one run."""

import os
import socket
import subprocess
import sys


def start(command, devices, extra=None):
    env = {
        **os.environ,
        # Eight devices on two busy processors may wait for each other longer than XLA's 40 seconds.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
        "JAX_PLATFORMS": "cpu",
        # What these tests compare is how programs are split; most of their time is compilation.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        **(extra or {}),
    }
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*running, status=0):
    outputs = [process.communicate(timeout=600)[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == status, output
    return outputs


def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def two_processes(command, devices=2, extra=None):
    """Told where they are by JAX's own variables."""
    common = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port()}", "JAX_NUM_PROCESSES": "2"}
    return [
        start(command, devices, {**common, **(extra or {}), "JAX_PROCESS_ID": str(k)})
        for k in range(2)
    ]


def slurm_step(command, tasks, devices):
    """As ``srun`` starts its tasks."""
    common = {
        "SLURM_JOB_ID": str(port()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(tasks),
        "JAX_COORDINATOR_PORT": str(port()),
    }
    return [
        start(command, devices, {**common, "SLURM_PROCID": str(k), "SLURM_LOCALID": str(k)})
        for k in range(tasks)
    ]


def tpu_slices(command, slices, hosts, devices):
    """As GKE starts the pods of a JobSet over several TPU slices."""
    common = {
        "TPU_WORKER_HOSTNAMES": ",".join(["localhost"] * hosts),
        "MEGASCALE_NUM_SLICES": str(slices),
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost:8080",
        "JAX_COORDINATOR_PORT": str(port()),
    }
    return [
        start(command, devices, {**common, "MEGASCALE_SLICE_ID": str(s), "TPU_WORKER_ID": str(h)})
        for s in range(slices)
        for h in range(hosts)
    ]
