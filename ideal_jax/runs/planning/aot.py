"""Programs compiled ahead of time for devices that are not there, and what the compiler says.

PyPI's libtpu compiles for any TPU on a machine that has none, JAX's CUDA plugin for any GPU. What
has been compiled is kept in a cache by the digest of the program, so a plan asked for again costs
only the tracing.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from ideal_jax.errors import UserError
from ideal_jax.landing import landing
from ideal_jax.runs.planning.counted import matrix_flops
from ideal_jax.runs.planning.gpus import target_config
from ideal_jax.runs.planning.hlo import collective_bytes
from ideal_jax.runs.planning.programs import Program
from ideal_jax.runs.planning.topology import Topology

# libtpu looks for the machine's own TPU: it asks a cloud what the machine is, writes logs, and
# takes a lock that keeps other processes out. Nothing of that is wanted where it only compiles.
_NO_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_LOG_DIR": "disabled",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
# Raised when the fields of ``Compiled`` change their meaning.
_FORMAT = 5


class Compiled(NamedTuple):
    """A compiled program; bytes and FLOPs are those of one device.

    Attributes:
      name: of the program.
      fits: whether the compiler found room in the device's memory.
      seconds: it took to compile; 0 when it was found in the cache.
      argument_bytes, output_bytes, alias_bytes, temp_bytes, code_bytes: what the compiler allots;
        aliased outputs lie in arguments that are given up.
      peak_bytes: all that is held, outputs that are not aliased, temporaries and code; where the
        compiler finds no room, what it says it would need and what is held beside.
      flops: of matrix products outside fused kernels, bodies of loops as often as they run
        (``counted.matrix_flops``).
      flops_once, bytes_once: the compiler's count, which takes the body of a loop once.
      collective_bytes: that pass between devices by kind of operation, bodies of loops as often as
        they run, the larger of operand and result; None where jaxlib cannot read the program.
      by_class: bytes held by ``Program.classes``, unpadded; with "activations", the temporaries.
      refusal: the compiler's words where it does not fit.
    """

    name: str
    fits: bool
    seconds: float
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temp_bytes: int
    code_bytes: int
    peak_bytes: int
    flops: float
    flops_once: float
    bytes_once: float
    collective_bytes: dict[str, int] | None
    by_class: dict[str, int]
    refusal: str


def described_devices(topology: Topology) -> tuple[Any, ...]:
    """Descriptions of TPUs or GPUs that programs can be compiled for.

    Raises:
      UserError: what compiles for them is not installed, or knows no such machine.
    """
    if topology.platform == "tpu":
        return tpu_devices(topology.slice_name, topology.slices)
    return _gpu_devices(topology)


@functools.cache
def tpu_devices(name: str, slices: int = 1) -> tuple[Any, ...]:
    """Descriptions of the devices of a TPU slice such as ``v5e:4x8``.

    Raises:
      UserError: no libtpu, or it knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError('compiling for TPU needs libtpu: pip install "ideal-jax[tpu]"')
    for key, value in _NO_TPU.items():
        os.environ.setdefault(key, value)
    try:
        described = topologies.get_topology_desc(
            topology_name=name, platform="tpu", num_slices=slices
        )
    except Exception as error:
        raise UserError(f"plan.topology={name}: {_first_line(error)}") from error
    return tuple(described.devices)


@functools.cache
def _gpu_devices(topology: Topology) -> tuple[Any, ...]:
    if not _cuda_plugin():
        raise UserError('compiling for GPUs needs JAX\'s plugin: pip install "ideal-jax[cuda]"')
    hosts, each = topology.devices // topology.near, topology.near
    described = topologies.get_topology_desc(
        "", "cuda", target_config=target_config(topology.chip), topology=f"1x{hosts}x{each}"
    )
    return tuple(described.devices)


def compile_program(program: Program, cache: Path) -> Compiled:
    """Compiles for the devices of the program's mesh, or finds what was compiled before.

    Args:
      program: of a mesh of described or real devices.
      cache: folder of results.

    Raises:
      UserError: the compiler refuses for another reason than memory.
    """
    traced = program.trace()
    lowered = traced.lower()
    file = cache / f"{_digest(program, lowered)}.json"
    if file.is_file():
        found = json.loads(file.read_text())
        return Compiled(**{**found, "seconds": 0.0})
    flops = matrix_flops(traced) / program.mesh.size
    compiled = _compile(program, lowered, flops)
    with landing(file) as partial:
        partial.write_text(json.dumps(compiled._asdict(), indent=1))
    return compiled


def bytes_on_device(tree: Any) -> int:
    """Of the abstract arrays in a tree, one device's share."""
    total = 0
    for x in jax.tree.leaves(tree):
        if not isinstance(x, jax.ShapeDtypeStruct):
            continue
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        total += math.prod(shape) * x.dtype.itemsize
    return total


def _compile(program: Program, lowered: Any, flops: float) -> Compiled:
    started = time.perf_counter()
    by_class = {kind: bytes_on_device(tree) for kind, tree in program.classes.items()}
    beside = max(sum(by_class.values()) - bytes_on_device(program.arguments), 0)
    try:
        executable = _waiting(lowered.compile)
    except jax.errors.JaxRuntimeError as error:
        seconds = time.perf_counter() - started
        needed = _needed(str(error))
        if needed is None:
            raise UserError(f"{program.name} does not compile: {_first_line(error)}") from error
        return _refused(program.name, seconds, needed + beside, flops, by_class, _first_line(error))
    memory = executable.memory_analysis()
    cost = executable.cost_analysis() or {}  # none for GPUs that are not there
    kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
    code = memory.generated_code_size_in_bytes
    return Compiled(
        name=program.name,
        fits=True,
        seconds=time.perf_counter() - started,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        code_bytes=code,
        peak_bytes=memory.argument_size_in_bytes + beside + kept + memory.temp_size_in_bytes + code,
        flops=flops,
        flops_once=cost.get("flops", 0.0),
        bytes_once=cost.get("bytes accessed", 0.0),
        collective_bytes=_collectives(executable),
        by_class={**by_class, "activations": memory.temp_size_in_bytes},
        refusal="",
    )


def _collectives(executable: Any) -> dict[str, int] | None:
    try:
        with _silent():
            text = executable.as_text()
    except jax.errors.JaxRuntimeError:  # libtpu has operations that an older jaxlib cannot read
        return None
    return collective_bytes(text)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what XLA itself writes to the process's stderr: a trace of a hundred lines."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _refused(
    name: str, seconds: float, needed: int, flops: float, by_class: dict[str, int], words: str
) -> Compiled:
    arguments = sum(by_class.values())
    return Compiled(
        name, False, seconds, arguments, 0, 0, 0, 0, needed, flops, 0.0, 0.0, {}, by_class, words
    )


def _waiting(work: Callable[[], Any]) -> Any:
    """``work()`` on a thread: compiling takes minutes and would not hear Ctrl-C."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(1.0)
    if errors:
        raise errors[0]
    return results[0]


def _digest(program: Program, lowered: Any) -> str:
    device = program.mesh.devices.flat[0]
    about = [
        _FORMAT,
        program.name,
        device.device_kind,
        program.mesh.devices.shape,
        [str(d) for d in program.mesh.devices.flat],
        jax.__version__,
        _version("libtpu") if device.platform == "tpu" else _cuda_plugin(),
    ]
    sha = hashlib.sha256(json.dumps(about).encode())
    sha.update(lowered.as_text().encode())
    return sha.hexdigest()[:32]


def _cuda_plugin() -> str:
    """Name and version of the newest that is installed; "": none."""
    for name in ("jax-cuda13-plugin", "jax-cuda12-plugin"):
        if version := _version(name):
            return f"{name} {version}"
    return ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _needed(message: str) -> int | None:
    """Bytes that a compiler short of memory says it needs; None: it complains of something else."""
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return None
    found = re.search(r"(?:Used |required for [^(]*\()([\d.]+)([KMGT]?)", message)
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]
