"""The training loop: reads top to bottom, continues where it was killed."""

import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
import optax

from ideal_jax import processes, sharding
from ideal_jax.errors import Terminated, UserError
from ideal_jax.models.lora import with_frozen
from ideal_jax.training.checkpoints import Checkpoints, abstract_like
from ideal_jax.training.log import MetricsLog
from ideal_jax.training.meter import Meter, Stamps
from ideal_jax.training.step import StepMetrics, TrainState, init_state, make_train_step
from ideal_jax.training.trace import Trace

Progress = Callable[[int, Mapping[str, float]], None]


class TrainResult(NamedTuple):
    """The end of a run."""

    state: TrainState
    tokens: int  # non-padding tokens seen
    supervised_tokens: int
    seconds: float  # of all starts
    speed: dict[str, Any]  # see ``Meter.summary``


class _Sent(NamedTuple):
    """A step that the devices work on."""

    step: int
    metrics: StepMetrics
    positions: int  # tokens and padding
    stamps: tuple[float, float, float]  # asked, got, sent
    finished: Future[float]


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
    flops: float = 0.0,
    trace: range = range(0),
    tensorboard: bool = False,
    progress: Progress = lambda step, metrics: None,
    name: str = "training",
    section: str = "training",
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
      folder: keeps ``checkpoints/``, ``metrics.jsonl`` and ``trace/``; a run found there is
        continued.
      flops: model FLOPs of one step, for MFU.
      trace: steps to write a profiler trace of.
      tensorboard: the log also goes to ``tensorboard/`` as event files.
      progress: called with the steps done and the newest metrics.
      name, section: what errors call this training, and its section of the config.

    Raises:
      UserError: the loss or the gradient of a step is not finite; nothing later is saved.
      Terminated: some process was told to end; a checkpoint of all steps done is saved.
    """
    meter = Meter(mesh, flops)
    jitted, abstract = step_program(mesh, params, loss_fn, optimizer, micro_batches)
    checkpoints = Checkpoints(folder / "checkpoints")
    log = MetricsLog(folder / "metrics.jsonl", folder / "tensorboard" if tensorboard else None)

    restored = checkpoints.restore(abstract)

    def report(sent: _Sent) -> None:
        """Counts one step when it is finished, logs and shows it."""
        try:
            values = _values(sent, name, section)
        except UserError:
            checkpoints.close()  # every process is here, and what is being saved is good
            raise
        values |= _report(sent, values, meter, learning_rate)
        if sent.step % log_every == 0:
            log.write({"step": sent.step, **values})
        progress(sent.step, values)

    with (
        jax.set_mesh(mesh),
        processes.termination(mesh) as termination,
        ThreadPoolExecutor(1) as watcher,
        Trace(trace, folder / "trace") as tracing,
    ):
        if restored is None:
            state, start = start_state(mesh, params, optimizer), 0
            counted: dict[str, Any] = {}
        else:
            for leaf in jax.tree.leaves(params):
                leaf.delete()
            state, counted = restored
            start = counted.pop("step")
        meter.resume(counted, *log.keep_until(start, counted.get("seconds", 0.0)))
        step_fn: Any = None
        before: _Sent | None = None
        told: Any = False
        stream = _stream(batches, start, steps, prefetch)
        meter.start()
        for step in range(start + 1, steps + 1):
            asked = time.perf_counter()
            rows = {**sharding.place(mesh, next(stream), batch_size), **termination.flags()}
            batch = with_frozen(rows, frozen)
            got = time.perf_counter()
            if step_fn is None:
                with meter.timed("compile"):
                    step_fn = jitted.lower(state, batch).compile()
            tracing.before(step)
            sent = time.perf_counter()
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = step_fn(state, batch)
            finished = watcher.submit(_finished, metrics)
            # One step behind: the host reads step k−1 while the devices work on step k.
            ends, told = bool(told), metrics.told
            if before is not None:
                report(before)
            before = _Sent(step, metrics, batch["tokens"].size, (asked, got, sent), finished)
            tracing.after(step, metrics)
            if step % checkpoint_every == 0 or step == steps or ends:
                report(before)
                before = None
                with meter.timed("checkpoint"):
                    checkpoints.save(step, state, meter.counted())
            if ends:
                break
        with meter.timed("checkpoint"):
            checkpoints.close()
        log.close()
        if told:
            raise Terminated
    speed = meter.summary(steps)
    tally = meter.tally
    return TrainResult(state, tally.tokens, tally.supervised_tokens, tally.seconds, speed)


def step_program(
    mesh: jax.sharding.Mesh, params: Any, loss_fn: Any, optimizer: Any, micro_batches: int
) -> tuple[Any, TrainState]:
    """The compiled form of ``make_train_step``, and shapes and shardings of the state it donates.

    Args:
      params: arrays on the mesh, or their shapes and shardings.
    """
    abstract, shardings = _layout(mesh, params, optimizer)
    step = make_train_step(loss_fn, optimizer, micro_batches)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    return jitted, abstract_like(abstract, shardings)


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


def _finished(metrics: StepMetrics) -> float:
    """When the result of a step was there."""
    metrics.loss.block_until_ready()  # one result is there when all are
    return time.perf_counter()


def _values(sent: _Sent, name: str, section: str) -> dict[str, float]:
    """What a step reports, once it is finished.

    Raises:
      UserError: it has ended in parameters that are not finite. A step's loss is that before its
        update: what the last one does to the parameters is seen in its gradient.
    """
    sent.finished.result()
    values = {key: float(x) for key, x in sent.metrics._asdict().items() if key != "told"}
    for key, what in (("loss", "loss"), ("grad_norm", "gradient")):
        if not np.isfinite(values[key]):
            raise UserError(
                f"{name}: the {what} is not finite ({values[key]}) at step {sent.step}: the"
                f" training diverged; lower {section}.learning_rate or training.clip_norm"
            )
    return values


def _report(
    sent: _Sent,
    values: Mapping[str, float],
    meter: Meter,
    learning_rate: Callable[[int], Any],
) -> dict[str, float]:
    """The learning rate of a finished step and how fast it was."""
    counts = (sent.positions, int(values["tokens"]), int(values["supervised_tokens"]))
    stamps = Stamps(*sent.stamps, sent.finished.result())
    return {"learning_rate": float(learning_rate(sent.step - 1)), **meter.step(stamps, *counts)}
