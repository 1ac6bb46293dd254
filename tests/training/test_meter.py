"""Speed: arithmetic by hand on a made-up chip and clock, and what a real training notes of it."""

import gzip
import json
import os
import pathlib
import subprocess
import sys
import time

import compiled
import grain
import jax
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from ideal_jax import sharding, training
from ideal_jax.chips import Chip
from ideal_jax.data.pipeline import packed_rows, training_batches
from ideal_jax.data.store import Example, TokenStore
from ideal_jax.errors import UserError
from ideal_jax.mixture import MixturePlan
from ideal_jax.models import Decoder, DecoderConfig, decoder_loss
from ideal_jax.runs import cost
from ideal_jax.training import meter as meter_lib
from ideal_jax.training.meter import Meter, Stamps

T, ROWS, STEPS = 16, 4, 6
SHAPE = {"d_model": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 4, "d_ff": 8}
MODEL = Decoder(DecoderConfig(vocab_size=32, **SHAPE))
OPTIONS = FrozenConfigDict(
    {"learning_rate": 0.01, "warmup": 0.0, "schedule": "constant", "final_learning_rate": 0.0}
    | {"weight_decay": 0.0, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "clip_norm": 1.0}
    | {"moment_dtype": ""}
)
LOSS, OPTIMIZER = decoder_loss(MODEL), training.adamw(OPTIONS, STEPS)


class Clock:
    """Stands still until it is moved."""

    now = 100.0

    def __call__(self):
        return self.now


def one_device():
    return sharding.make_mesh(replica=1, fsdp=1, tensor=1)


@pytest.fixture(scope="module")
def mesh():
    return one_device()


@pytest.fixture
def chip(monkeypatch):
    """The CPU as a chip of 1000 FLOP/s."""
    monkeypatch.setattr(meter_lib, "chip_of", lambda kind: Chip(kind, 1e3, 1, 1.0, 1.0, 0))


def two_steps(meter, clock):
    """Ten seconds: start 1, compile 2, steps of 1 and 3, data 2, checkpoint 0.5, anything 0.5."""
    t = clock.now
    clock.now = t + 1
    meter.start()
    with meter.timed("compile"):
        clock.now = t + 3
    meter.step(Stamps(asked=t + 1, got=t + 1, sent=t + 3, finished=t + 4), 64, 50, 10)
    # The next batch was asked for while the devices worked; they waited for it from 4 to 6.
    second = meter.step(Stamps(asked=t + 3, got=t + 6, sent=t + 6, finished=t + 9), 64, 30, 5)
    clock.now = t + 9
    with meter.timed("checkpoint"):
        clock.now = t + 9.5
    clock.now = t + 10
    return second


def test_goodput_and_its_parts(mesh):
    clock = Clock()
    meter = Meter(mesh, flops=600.0, clock=clock)
    two_steps(meter, clock)
    speed = meter.summary(2)
    assert speed["goodput"] == pytest.approx(0.4)
    parts = {"all": 10, "start": 1, "compile": 2, "step": 4, "data": 2, "checkpoint": 0.5}
    assert speed["seconds"] == pytest.approx(parts | {"lost": 0, "rest": 0.5})
    assert speed["step_seconds"] == pytest.approx(2.0)


def test_rates_count_the_work_of_the_devices(mesh, chip):
    clock = Clock()
    meter = Meter(mesh, flops=600.0, clock=clock)
    second = two_steps(meter, clock)
    rates = ("positions_per_second", "tokens_per_second", "supervised_tokens_per_second")
    assert [second[name] for name in rates] == pytest.approx([64 / 3, 10, 5 / 3])
    assert second["mfu"] == pytest.approx(600 / (3 * 1000))
    assert second["elapsed"] == pytest.approx(3.0)
    speed = meter.summary(2)
    assert [speed[name] for name in rates] == pytest.approx([32, 20, 15 / 4])
    assert speed["mfu"] == pytest.approx(2 * 600 / (4 * 1000))
    assert speed["peak_flops"] == 1000


def test_an_unknown_device_has_no_mfu(mesh):
    clock = Clock()
    meter = Meter(mesh, flops=600.0, clock=clock)
    assert "mfu" not in two_steps(meter, clock)
    speed = meter.summary(2)
    assert "mfu" not in speed
    assert speed["peak_flops"] is None
    assert speed["peak_bytes"] is None  # this backend does not tell


def test_what_a_kill_cost_is_lost_and_not_what_lay_between(mesh):
    clock = Clock()
    first = Meter(mesh, flops=600.0, clock=clock)
    two_steps(first, clock)
    counted = json.loads(json.dumps(first.counted()))
    clock.now = 5000.0
    again = Meter(mesh, flops=600.0, clock=clock)
    again.resume(counted, 3, 7.0)
    two_steps(again, clock)
    speed = again.summary(4)
    assert speed["lost_steps"] == 3
    assert speed["seconds"]["lost"] == pytest.approx(7.0)
    assert speed["seconds"]["all"] == pytest.approx(27.0)
    assert speed["goodput"] == pytest.approx(8 / 27)


def test_model_flops_are_six_per_parameter_and_causal_attention():
    cfg = MODEL.cfg
    attention = 8 * 4 * (2 * 2 + 2 * 1)
    matrices = attention + 3 * 8 * 8 + 8 * cfg.padded_vocab
    scores = 2 * (2 * 4) * sum(range(1, T + 1)) / T  # QKᵀ and PV over what a token sees
    expected = 6 * 100 * (matrices + scores)
    assert cost.model_flops(cfg, 100, T) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "steps"), [("", []), ("10:12", [10, 11, 12]), ("3:3", [3]), ("1:2", [1, 2])]
)
def test_traced_steps(text, steps):
    assert list(training.traced_steps(text)) == steps


@pytest.mark.parametrize("text", ["10", "12:10", "0:3", "a:b", "1:2:3", ":4", "-1:4"])
def test_steps_that_are_none_are_refused(text):
    with pytest.raises(UserError, match=r"logging\.trace=.*10:12"):
        training.traced_steps(text)


def packed_examples(folder):
    """Packed batches, some positions padding."""
    rng = np.random.default_rng(0)

    def examples():
        for i in range(24):
            length = int(rng.integers(3, T + 2))
            yield Example(i, str(i), rng.integers(1, 30, length), np.arange(length) >= 2)

    store = TokenStore.write(folder, examples())
    table = packed_rows(MixturePlan((24,), (24,), 1), [store], T, 4, 16)
    return training_batches(
        table, [store], batch_size=ROWS, row_length=T, max_segments=4, seed=1, reduction="token"
    )


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    return packed_examples(tmp_path_factory.mktemp("store") / "0")


def train(mesh, batches, folder, **changed):
    params = jax.device_put(
        compiled.init(MODEL),
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
    )
    options = {"steps": STEPS, "log_every": 1, "checkpoint_every": 2, "prefetch": 1}
    options |= {"micro_batches": 1, "batch_size": ROWS, "flops": 600.0, **changed}
    return training.train(
        mesh=mesh,
        loss_fn=LOSS,
        optimizer=OPTIMIZER,
        learning_rate=training.schedule(OPTIONS, STEPS),
        params=params,
        batches=batches,
        folder=folder,
        **options,
    )


@pytest.fixture(scope="module")
def trained(mesh, batches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return train(mesh, batches, folder), folder


def late(batch):
    time.sleep(0.05)
    return batch


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_three_kinds_of_tokens_of_packed_batches(batches, trained):
    result, folder = trained
    kinds = {"tokens": 0, "supervised_tokens": 0}
    for step, line in enumerate(lines(folder)):
        batch = batches[step]
        real, supervised = (batch["segments"] > 0).sum(), (batch["weights"] > 0).sum()
        assert 0 < supervised < real < ROWS * T
        assert (line["tokens"], line["supervised_tokens"]) == (real, supervised)
        seconds = line["seconds"]
        assert line["positions_per_second"] * seconds == pytest.approx(ROWS * T)
        assert line["tokens_per_second"] * seconds == pytest.approx(real)
        assert line["supervised_tokens_per_second"] * seconds == pytest.approx(supervised)
        kinds["tokens"] += real
        kinds["supervised_tokens"] += supervised
    assert (result.tokens, result.supervised_tokens) == tuple(kinds.values())
    seconds = result.speed["seconds"]
    assert result.speed["positions_per_second"] * seconds["step"] == pytest.approx(STEPS * ROWS * T)
    assert seconds["step"] == pytest.approx(sum(line["seconds"] for line in lines(folder)))
    parts = {name: value for name, value in seconds.items() if name != "all"}
    assert min(parts.values()) > -1e-6
    assert sum(parts.values()) == pytest.approx(seconds["all"])
    assert parts["compile"] > 0


def trained_with_a_trace(folder):
    train(one_device(), packed_examples(folder / "store"), folder, trace=range(2, 4))


def test_a_trace_of_the_steps_asked_for(tmp_path):
    """In a process of its own: XLA's profiler dies in one that has compiled for absent TPUs."""
    folder, here = tmp_path, pathlib.Path(__file__)
    program = (
        f"import pathlib, test_meter as t; t.trained_with_a_trace(pathlib.Path({str(folder)!r}))"
    )
    path = os.pathsep.join([str(here.parent), *sys.path])
    subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, check=True
    )
    assert [path.name for path in (folder / "trace").iterdir()] == ["2-3"]
    (trace,) = (folder / "trace").rglob("*.xplane.pb")
    assert b"step_num" in trace.read_bytes()
    (readable,) = (folder / "trace").rglob("*.trace.json.gz")
    names = {
        e.get("name") for e in json.loads(gzip.decompress(readable.read_bytes()))["traceEvents"]
    }
    assert "train" in names


def test_a_killed_training_counts_every_step_once_and_tells_what_was_lost(
    mesh, batches, trained, tmp_path
):
    whole, _ = trained

    class KilledError(Exception):
        pass

    def kill(step, metrics):
        if step == 5:
            raise KilledError

    with pytest.raises(KilledError):
        train(mesh, batches, tmp_path, progress=kill)
    elapsed = [line["elapsed"] for line in lines(tmp_path)]
    assert elapsed == sorted(elapsed)
    assert len(elapsed) == 5  # the last checkpoint is that of step 4
    result = train(mesh, batches, tmp_path)
    assert (result.tokens, result.supervised_tokens) == (whole.tokens, whole.supervised_tokens)
    assert result.speed["lost_steps"] == 1
    assert 0 < result.speed["seconds"]["lost"] <= elapsed[4] - elapsed[3]
    assert result.seconds > elapsed[4]
    jax.tree.map(np.testing.assert_array_equal, result.state.params, whole.state.params)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, STEPS + 1))
    assert train(mesh, batches, tmp_path).tokens == whole.tokens


def events(folder):
    """(purged from, {(tag, step): value}) of every event file, the oldest first."""
    from tensorboardX.proto import event_pb2

    found = []
    for file in sorted(folder.iterdir()):
        content, at, purged, values = file.read_bytes(), 0, None, {}
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            at += length + 16
            if event.HasField("session_log"):
                purged = event.step
            for value in event.summary.value:
                values[value.tag, event.step] = value.simple_value
        found.append((purged, values))
    return found


def test_event_files_hold_what_the_log_holds(mesh, batches, tmp_path):
    train(mesh, batches, tmp_path, steps=2, tensorboard=True)
    time.sleep(1)  # the names of the files tell seconds
    train(mesh, batches, tmp_path, tensorboard=True)
    (purged, first), (purged_again, second) = events(tmp_path / "tensorboard")
    assert (purged, purged_again) == (1, 3)
    logged = {
        (f"train/{name}", line["step"]): value
        for line in lines(tmp_path)
        for name, value in line.items()
        if name != "step"
    }
    assert first | second == pytest.approx(logged)


def test_event_files_need_their_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"logging\.tensorboard.*pip install"):
        training.check_tensorboard()


def test_data_that_is_late_is_told_apart_from_the_work(mesh, batches, tmp_path):
    slow = grain.MapDataset.range(STEPS).map(lambda step: late(batches[step]))
    seconds = train(mesh, slow, tmp_path).speed["seconds"]
    assert seconds["data"] > 0.5 * STEPS * 0.05
    assert seconds["step"] < seconds["data"]
