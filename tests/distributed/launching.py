"""Starts Python processes with virtual devices, alone or as two processes of one run."""

import os
import socket
import subprocess
import sys


def start(command, devices, extra=None):
    env = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
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


def finish(*running):
    for process in running:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output


def two_processes(command, extra=None):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", **(extra or {})}
    return [start(command, 2, {**common, "JAX_PROCESS_ID": str(k)}) for k in range(2)]
