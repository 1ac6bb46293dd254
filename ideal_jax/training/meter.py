"""How fast a training is and what its wall time goes into.

    MFU = model FLOPs of a step / (seconds of the step × devices × peak FLOP/s of the chip)
    goodput = seconds in which the devices worked on steps that count / wall time

(MFU: Chowdhery et al., arXiv 2204.02311, appendix B.) The loop never waits for the devices to be
measured: a thread of its own notes when each step's result is there. Wall time is that of all
starts of a training; what lies between a kill and the next start is not in it.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from ideal_jax.chips import chip_of


class Stamps(NamedTuple):
    """Instants of one step, in seconds of one clock."""

    asked: float  # the loop wanted the batch
    got: float  # it was on the devices
    sent: float  # the step was given to the devices
    finished: float  # its result was there


@dataclasses.dataclass
class Tally:
    """What a training has counted in all its starts; lies in every checkpoint."""

    positions: int = 0  # padding included
    tokens: int = 0  # not padding
    supervised_tokens: int = 0
    seconds: float = 0.0  # wall time, of which the following are parts
    step_seconds: float = 0.0  # the devices worked on steps
    start_seconds: float = 0.0  # state made or read, up to the first batch
    compile_seconds: float = 0.0  # of the step
    data_seconds: float = 0.0  # the devices waited for a batch
    checkpoint_seconds: float = 0.0  # the loop waited for a checkpoint
    lost_seconds: float = 0.0  # of earlier starts, behind their last checkpoint
    lost_steps: int = 0  # done there, and done again
    peak_bytes: int = 0  # most memory that the process ever had in use on one device; 0: not told


class Meter:
    """Measures one training on ``mesh``.

    Args:
      mesh: the devices.
      flops: model FLOPs of one step on all of them.
      clock: seconds.
    """

    def __init__(
        self,
        mesh: jax.sharding.Mesh,
        flops: float,
        clock: Callable[[], float] = time.perf_counter,
    ):
        devices = list(mesh.devices.flat)
        chip = chip_of(devices[0].device_kind)
        self.tally = Tally()
        self._clock, self._began, self._started = clock, clock(), clock()
        self._devices, self._flops = devices, flops
        self._peak = None if chip is None else chip.flops * len(devices)
        self._finished = -float("inf")

    def resume(self, counted: Mapping[str, Any], lost_steps: int, lost_seconds: float) -> None:
        """Goes on from what a checkpoint counted; steps behind it were done and are lost."""
        self.tally = Tally(**counted)
        self.tally.lost_steps += lost_steps
        self.tally.lost_seconds += lost_seconds
        self._began -= self.tally.seconds + lost_seconds

    def start(self) -> None:
        """The first batch is about to be asked for."""
        self.tally.start_seconds += self._clock() - self._started

    def step(
        self, stamps: Stamps, positions: int, tokens: int, supervised: int
    ) -> dict[str, float]:
        """Counts a step, in the order of steps; returns its speed for the log."""
        tally, before = self.tally, self._finished
        seconds = max(stamps.finished - max(stamps.sent, before), 1e-9)
        tally.step_seconds += seconds
        tally.data_seconds += max(0.0, stamps.got - max(stamps.asked, before))
        tally.positions += positions
        tally.tokens += tokens
        tally.supervised_tokens += supervised
        self._finished = stamps.finished
        speed = self._speed(seconds, 1, positions, tokens, supervised)
        return {"seconds": seconds, "elapsed": self.elapsed(), **speed}

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Counts the time of the block as ``part``, "compile" or "checkpoint"."""
        begun, name = self._clock(), f"{part}_seconds"
        yield
        setattr(self.tally, name, getattr(self.tally, name) + self._clock() - begun)

    def elapsed(self) -> float:
        """Wall time of all starts."""
        return self._clock() - self._began

    def counted(self) -> dict[str, Any]:
        """The tally up to now."""
        self.tally.seconds = self.elapsed()
        self.tally.peak_bytes = max(self.tally.peak_bytes, _peak_bytes(self._devices))
        return dataclasses.asdict(self.tally)

    def summary(self, steps: int) -> dict[str, Any]:
        """Speed of ``steps`` steps: what ``speed.json`` holds. Everything in it is measured."""
        self.counted()
        tally = self.tally
        parts = {
            name: getattr(tally, f"{name}_seconds")
            for name in ("step", "start", "compile", "data", "checkpoint", "lost")
        }
        parts["rest"] = tally.seconds - sum(parts.values())
        speed = self._speed(
            tally.step_seconds, steps, tally.positions, tally.tokens, tally.supervised_tokens
        )
        return {
            "device": self._devices[0].device_kind,
            "devices": len(self._devices),
            "step_seconds": tally.step_seconds / steps,
            **speed,
            "flops_per_step": self._flops,
            "peak_flops": self._peak,
            "peak_bytes": tally.peak_bytes or None,
            "goodput": tally.step_seconds / tally.seconds,
            "seconds": {"all": tally.seconds, **parts},
            "lost_steps": tally.lost_steps,
        }

    def _speed(
        self, seconds: float, steps: int, positions: int, tokens: int, supervised: int
    ) -> dict[str, float]:
        """Per second of the devices' work; no MFU where the peak is unknown."""
        if not seconds:
            return {}
        speed = {
            "positions_per_second": positions / seconds,
            "tokens_per_second": tokens / seconds,
            "supervised_tokens_per_second": supervised / seconds,
        }
        if self._peak is not None:
            speed["mfu"] = self._flops * steps / (seconds * self._peak)
        return speed


def _peak_bytes(devices: list[jax.Device]) -> int:
    """The most that this process has had in use on one device; 0 if the backend does not tell."""
    here = [device for device in devices if device.process_index == jax.process_index()]
    return max((device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in here)
