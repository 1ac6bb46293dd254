"""The best way to train on a machine, and the nearest one that fits."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from ideal_jax.errors import UserError
from ideal_jax.models import LoRA
from ideal_jax.runs.planning import memory
from ideal_jax.runs.planning.published import efficiency
from ideal_jax.runs.planning.setting import Amounts, Setting, check_divides
from ideal_jax.runs.planning.speed import mfu, seconds
from ideal_jax.runs.planning.topology import parse_topology
from ideal_jax.runs.planning.work import train_work

_REMAT = ("none", "dots", "full", "offload")
_MOST_ROWS = 256  # of a device, when the largest batch is looked for


class Candidate(NamedTuple):
    """A way to train, by formula."""

    setting: Setting
    seconds: float
    mfu: float
    room: memory.Room


def candidates(s: Setting, amounts: Amounts) -> list[Candidate]:
    """Every mesh and remat policy that fits the setting's batch, fastest first.

    Each with the fewest micro-batches of those that are as fast; replicas are a multiple of the
    slices.
    """
    fit = [c for c in (judged(option, amounts) for option in _options(s)) if c.room.fits]
    best: dict[tuple, Candidate] = {}
    for c in sorted(fit, key=lambda c: (round(c.seconds, 4), c.setting.micro_batches)):
        t = c.setting
        best.setdefault((t.replica, t.fsdp, t.tensor, t.cfg.remat), c)
    return list(best.values())


def judged(s: Setting, amounts: Amounts) -> Candidate:
    """Speed and room of a setting."""
    step = seconds(s, train_work(s), efficiency(s.topology.chip.name))
    return Candidate(s, step, mfu(s, step), memory.room(s, memory.memory(s, amounts)))


def largest_batch(s: Setting) -> int:
    """Rows of the largest training batch that fits the mesh; 0: not even one row a device."""
    best = 0
    for rows in range(1, _MOST_ROWS + 1):
        batch = rows * s.ways * s.micro_batches
        needed = memory.room(s, {"train": memory.train_memory(s._replace(batch=batch))})
        if not needed.fits:
            break
        best = batch
    return best


def nearest(s: Setting, amounts: Amounts) -> tuple[dict[str, Any], Candidate] | None:
    """(config keys to change, what they give) of the first change that makes everything fit.

    In this order: mesh, remat and micro-batches; smaller influence batches and factors; Adam's
    first moment in bfloat16; a smaller batch; adapters; more devices.
    """
    for changes, option, less in _ladder(s, amounts):
        found = candidates(option, less)
        if found:
            told = {k: v for k, v in found[0].setting.changes().items() if s.changes()[k] != v}
            return {**changes, **told}, found[0]
    return None


def _options(s: Setting) -> Iterator[Setting]:
    devices = s.topology.devices
    for replica in _divisors(devices):
        for tensor in _divisors(devices // replica):
            option = s._replace(replica=replica, tensor=tensor, fsdp=devices // replica // tensor)
            if replica % s.topology.slices or not _divides(option):
                continue
            for remat in _REMAT:
                for micro in _divisors(max(s.batch // option.ways, 1)):
                    if s.batch % (option.ways * micro) == 0:
                        cfg = dataclasses.replace(s.cfg, remat=remat)
                        yield option._replace(cfg=cfg, micro_batches=micro)


def _ladder(s: Setting, a: Amounts) -> Iterator[tuple[dict[str, Any], Setting, Amounts]]:
    yield {}, s, a
    small = s.influence.copy_and_resolve_references()
    with small.unlocked():
        small.batch_size, small.layer_groups = 1, 4
        small.max_factor = min(small.max_factor, 2048)
    keys: dict[str, Any] = (
        {}
        if not a.updates
        else {
            "influence.tangents": 1,
            "influence.batch_size": 1,
            "influence.layer_groups": 4,
            "influence.max_factor": small.max_factor,
        }
    )
    less = s._replace(influence=small), a._replace(tangents=1)
    yield keys, *less
    halved = less[0]._replace(moment_bytes=min(2, s.moment_bytes))
    keys_halved = {**keys, "training.moment_dtype": "bfloat16"}
    yield keys_halved, halved, less[1]
    batch = s.batch // 2
    while batch >= s.topology.devices:
        fewer = {**keys_halved, "training.batch_size": batch}
        yield fewer, halved._replace(batch=batch), less[1]
        batch //= 2
    if s.cfg.lora is None:
        adapters = LoRA(16, 16.0, 0.0, "attention/|mlp/")
        cfg = dataclasses.replace(s.cfg, lora=adapters, param_dtype="bfloat16")
        lora = {"lora.rank": 16, "model.param_dtype": "bfloat16"}
        yield lora, s._replace(cfg=cfg, moment_bytes=2), a
        yield {**keys, **lora}, less[0]._replace(cfg=cfg, moment_bytes=2), less[1]
    for factor in (2, 4, 8, 16, 32, 64):
        name = _larger(s, factor)
        more = less[0]._replace(topology=parse_topology(name))
        more = more._replace(batch=max(s.batch, more.topology.devices))
        yield {**keys, "plan.topology": name, "training.batch_size": more.batch}, more, less[1]


def _larger(s: Setting, factor: int) -> str:
    """The machine with ``factor`` times the devices: its shortest axes doubled."""
    shape = list(s.topology.shape)
    while factor > 1:
        shape[shape.index(min(shape))] *= 2
        factor //= 2
    kind = s.topology.name.rsplit(":", 1)[0]
    return f"{kind}:{'x'.join(map(str, shape))}"


def _divides(s: Setting) -> bool:
    try:
        check_divides(s.cfg, s.fsdp, s.tensor)
    except UserError:
        return False
    return s.batch % s.ways == 0


def _divisors(number: int) -> list[int]:
    return [k for k in range(1, number + 1) if number % k == 0]
