"""How the processes of a run find each other: from the environment that started them."""

import os
import re
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from ideal_jax.errors import UserError

_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SECONDS = 1800  # the hosts of one job may come up that far apart
_TPU_PORT = "8482"  # JAX's own choice on TPUs

Environ = Mapping[str, str]


class Place(NamedTuple):
    """A process among those of its run."""

    coordinator: str  # host:port where process 0 listens
    size: int
    rank: int


def initialise() -> None:
    """Joins the other processes of the run, if there are any; once is enough, twice does no harm.

    Found in the environment, the first of these that is there:
      ``JAX_COORDINATOR_ADDRESS=host:port``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``;
      ``JAX_NUM_PROCESSES=auto``: whatever cluster JAX itself recognises;
      the tasks of a SLURM step (``srun``);
      the hosts of a TPU pod, one slice or several, as GKE names them or, on a bare VM, as its
      metadata server does.

    Must come before anything touches a device.

    Raises:
      UserError: a variable is missing or no number, or the others have not come in half an hour.
    """
    if jax.distributed.is_initialized():
        return
    # Its handler would swallow every SIGTERM; see ``processes.termination``.
    jax.config.update("jax_enable_preemption_service", False)
    environ = os.environ
    if environ.get("JAX_NUM_PROCESSES") == "auto":
        _join()
    elif any(name in environ for name in _EXPLICIT):
        _join_at(explicit_place(environ))
    elif is_slurm(environ):
        _take_all_gpus(os.environ)
        _join(cluster_detection_method="slurm")
    elif (place := tpu_place(environ)) is not None:
        _join_at(place)
    elif _is_bare_tpu_vm(environ):
        _join()


def explicit_place(environ: Environ) -> Place:
    """What JAX's own three variables say."""
    for name in _EXPLICIT:
        if name not in environ:
            told = next(other for other in _EXPLICIT if other in environ)
            raise UserError(f"{told}={environ[told]} needs {name} too")
    address = environ[_EXPLICIT[0]]
    if not re.fullmatch(r".+:\d+", address):
        raise UserError(f"{_EXPLICIT[0]}={address}: expected host:port of process 0")
    place = Place(address, _number(environ, _EXPLICIT[1]), _number(environ, _EXPLICIT[2]))
    if place.rank >= place.size:
        raise UserError(f"{_EXPLICIT[2]}={place.rank}: {_EXPLICIT[1]} is {place.size}")
    return place


def is_slurm(environ: Environ) -> bool:
    """Whether this is one of several tasks of a SLURM step.

    Raises:
      UserError: a job over several nodes whose program was not started by ``srun``.
    """
    if "SLURM_JOB_ID" not in environ:
        return False
    if "SLURM_STEP_NODELIST" in environ:
        return _number(environ, "SLURM_NTASKS", "1") > 1
    nodes = environ.get("SLURM_JOB_NUM_NODES", "1")
    if nodes != "1":
        raise UserError(f"the SLURM job has {nodes} nodes: start ideal-jax with srun")
    return False


def tpu_place(environ: Environ) -> Place | None:
    """Where this host is among those of a TPU pod as the environment has them; None: it is alone.

    Processes are counted slice by slice, as JAX does.
    """
    names = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES", "")
    hosts = names.split(",") if re.fullmatch(r"[\w.:,-]+", names) else ["localhost"]
    slices = _number(environ, "MEGASCALE_NUM_SLICES", "1")
    if len(hosts) * slices == 1:
        return None
    index, first = _number(environ, "TPU_WORKER_ID"), hosts[0]
    if slices > 1:
        index += _number(environ, "MEGASCALE_SLICE_ID") * len(hosts)
        first = environ.get("MEGASCALE_COORDINATOR_ADDRESS", "")
        if not first:
            raise UserError("MEGASCALE_NUM_SLICES needs MEGASCALE_COORDINATOR_ADDRESS too")
    port = environ.get("JAX_COORDINATOR_PORT", _TPU_PORT)
    return Place(f"{first.split(':')[0]}:{port}", len(hosts) * slices, index)


def _is_bare_tpu_vm(environ: Environ) -> bool:
    """Whether only the metadata server knows of other hosts."""
    # JAX sets the first where it finds TPU chips and the second where it finds none.
    return (
        "TPU_ML_PLATFORM" in environ
        and "TPU_SKIP_MDS_QUERY" not in environ
        and "TPU_WORKER_HOSTNAMES" not in environ
        and environ.get("JAX_PLATFORMS") != "cpu"
    )


def _take_all_gpus(environ: Any) -> None:
    """All GPUs of its node for a task that is alone there; JAX would give it the first."""
    alone = re.fullmatch(r"1(\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    gpus = environ.get("SLURM_GPUS_ON_NODE", "")
    if alone and gpus.isdecimal():
        environ.setdefault("JAX_LOCAL_DEVICE_IDS", ",".join(map(str, range(int(gpus)))))


def _join_at(place: Place) -> None:
    host = place.coordinator.rpartition(":")[0]
    last = time.monotonic() + _SECONDS
    while not _is_known(host) and time.monotonic() < last:
        time.sleep(1.0)  # in a cluster a name is known once its pod is up
    _join(coordinator_address=place.coordinator, num_processes=place.size, process_id=place.rank)


def _is_known(host: str) -> bool:
    try:
        socket.getaddrinfo(host.strip("[]"), None)
    except socket.gaierror:
        return False
    return True


def _join(**where: Any) -> None:
    try:
        jax.distributed.initialize(initialization_timeout=_SECONDS, **where)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"cannot join the other processes ({reason}); {', '.join(_EXPLICIT)} tell where they "
            "are"
        ) from error


def _number(environ: Environ, name: str, default: str = "") -> int:
    text = environ.get(name, default)
    if not text.isdecimal():
        what = f"{name}={text}" if text else f"{name} is not set"
        raise UserError(f"{what}: expected a whole number, as every process of the run has one")
    return int(text)
