"""The training loop: reads top to bottom, continues where it was killed."""

import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
import optax

from ideal_jax import processes, sharding
from ideal_jax.errors import Terminated, UserError
from ideal_jax.models.lora import with_frozen
from ideal_jax.training.checkpoints import Checkpoints, abstract_like
from ideal_jax.training.step import TrainState, init_state, make_train_step

Progress = Callable[[int, Mapping[str, float]], None]


class TrainResult(NamedTuple):
    """The end of a run."""

    state: TrainState
    tokens: int  # non-padding tokens seen
    supervised_tokens: int
    seconds: float  # up to the last checkpoint of earlier starts, and all of this one


def train(
    *,
    mesh: jax.sharding.Mesh,
    loss_fn: Any,
    optimizer: Any,
    learning_rate: Callable[[int], Any],
    params: Any,
    batches: grain.MapDataset,
    batch_size: int,
    steps: int,
    micro_batches: int,
    folder: pathlib.Path,
    log_every: int,
    checkpoint_every: int,
    prefetch: int,
    frozen: Any = None,
    progress: Progress = lambda step, metrics: None,
) -> TrainResult:
    """Trains for ``steps`` steps; batch ``s`` is ``batches[s]`` whatever happened before.

    Args:
      mesh: devices.  loss_fn, optimizer: see ``make_train_step``.
      learning_rate: the schedule, for the log.
      params: initial parameters on the mesh; donated.
      batches: element s is this process's rows of the batch of step s.
      batch_size: rows of the whole batch.
      prefetch: batches read ahead.
      frozen: parameters on the mesh that the loss needs and training leaves as they are.
      folder: keeps ``checkpoints/`` and ``metrics.jsonl``; a run found there is continued.
      progress: called with the steps done and the newest metrics.

    Raises:
      UserError: the loss is not finite.
      Terminated: some process was told to end; a checkpoint of all steps done is saved.
    """
    started = time.perf_counter()
    abstract, shardings = _layout(mesh, params, optimizer)
    checkpoints = Checkpoints(folder / "checkpoints")
    log = _MetricsLog(folder / "metrics.jsonl")
    counts: dict[str, Any] = {"tokens": 0, "supervised_tokens": 0, "seconds": 0.0}
    with jax.set_mesh(mesh), processes.termination() as termination:
        if checkpoints.latest() is None:
            state, start = start_state(mesh, params, optimizer), 0
        else:
            del params
            state, counts = checkpoints.restore(abstract_like(abstract, shardings))
            start = counts.pop("step")
            started -= counts["seconds"]
        log.keep_until(start)
        step_fn = jax.jit(
            make_train_step(loss_fn, optimizer, micro_batches),
            donate_argnums=0,
            out_shardings=(shardings, None),
        )
        clock = time.perf_counter()
        pending: tuple[int, Any] | None = None
        told: Any = False
        for step, rows in enumerate(_stream(batches, start, steps, prefetch), start=start + 1):
            batch = with_frozen(sharding.place(mesh, rows, batch_size), frozen)
            state, metrics = step_fn(state, batch)
            # One step behind: the host reads step k−1 while the devices work on step k.
            ends, told = bool(told), termination.vote()
            if pending is not None:
                clock = _report(pending, counts, log, log_every, clock, learning_rate, progress)
            pending = (step, metrics)
            if step % checkpoint_every == 0 or step == steps or ends:
                clock = _report(pending, counts, log, log_every, clock, learning_rate, progress)
                pending = None
                counts["seconds"] = time.perf_counter() - started
                checkpoints.save(step, state, {"step": step, **counts})
            if ends:
                break
        checkpoints.close()
        log.close()
        if told:
            raise Terminated
    seconds = time.perf_counter() - started
    return TrainResult(state, counts["tokens"], counts["supervised_tokens"], seconds)


def start_state(
    mesh: jax.sharding.Mesh, params: Any, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step, sharded like the parameters, which are donated."""
    _, shardings = _layout(mesh, params, optimizer)
    with jax.set_mesh(mesh):
        make = jax.jit(
            lambda p: init_state(p, optimizer), donate_argnums=0, out_shardings=shardings
        )
        return make(params)


def _layout(mesh: jax.sharding.Mesh, params: Any, optimizer: Any) -> tuple[Any, Any]:
    """Shapes and shardings of the training state."""
    abstract = jax.eval_shape(lambda p: init_state(p, optimizer), params)
    param_shardings = jax.tree.map(lambda x: x.sharding, params)
    return abstract, sharding.like_parameters(mesh, abstract, param_shardings)


def _stream(batches: grain.MapDataset, start: int, stop: int, prefetch: int) -> Iterator[Any]:
    """Batches start … stop−1, read ahead by background threads."""
    if start == stop:
        return iter(())
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
    return iter(batches[start:stop].to_iter_dataset(options))


def _report(
    pending: tuple[int, Any],
    counts: dict[str, Any],
    log: "_MetricsLog",
    log_every: int,
    clock: float,
    learning_rate: Callable[[int], Any],
    progress: Progress,
) -> float:
    """Counts one finished step, logs and shows it; returns the time it was read."""
    step, metrics = pending
    values = {name: float(value) for name, value in metrics._asdict().items()}
    if not np.isfinite(values["loss"]):
        raise UserError(
            f"the loss is {values['loss']} at step {step}; lower the learning rate or clip_norm"
        )
    now = time.perf_counter()
    counts["tokens"] += int(values["tokens"])
    counts["supervised_tokens"] += int(values["supervised_tokens"])
    values["learning_rate"] = float(learning_rate(step - 1))
    values["tokens_per_second"] = values["tokens"] / max(now - clock, 1e-9)
    values["seconds"] = now - clock
    if step % log_every == 0:
        log.write({"step": step, **values})
    progress(step, values)
    return now


class _MetricsLog:
    """``metrics.jsonl``: one line per logged step, written by process 0."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._file: Any = None

    def keep_until(self, step: int) -> None:
        """Drops lines after ``step`` (they will be written again) and opens for appending."""
        if not processes.is_writer():
            return
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(line + "\n" for line in kept))
        partial.replace(self._path)
        self._file = self._path.open("a")

    def write(self, values: dict[str, float]) -> None:
        """Appends one line."""
        if self._file is not None:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return np.inf  # cut off by a kill
