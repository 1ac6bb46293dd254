"""Programs of a run, compiled for devices that are not there, and counted."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ideal_jax import config as config_lib
from ideal_jax import sharding
from ideal_jax.errors import UserError
from ideal_jax.models import Decoder, DecoderConfig
from ideal_jax.models.loss import blocked_nll
from ideal_jax.runs import cost
from ideal_jax.runs.planning import aot, programs
from ideal_jax.runs.planning.counted import matrix_flops
from ideal_jax.runs.planning.gpus import target_config
from ideal_jax.runs.planning.hlo import collective_bytes
from ideal_jax.runs.planning.layers import factored
from ideal_jax.runs.planning.topology import parse_topology

ROOT = pathlib.Path(__file__).parents[2]
PHASES = ["train", "generate", "gradient", "curvature", "eigen", "refit", "solve", "score"]
SMALL = DecoderConfig(
    vocab_size=64, d_model=256, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=64, d_ff=768
)


@pytest.fixture(scope="module")
def config():
    c = config_lib.load(ROOT / "configs" / "base.py")
    c.data.row_length = 128
    c.training.batch_size = 16
    c.influence.layers = "mlp"
    c.influence.batch_size = 4
    c.eval.batch_size = 4
    return c


def by_name(config, cfg, mesh, tangents=2):
    return {p.name: p for p in programs.programs(config, Decoder(cfg), mesh, tangents)}


@pytest.fixture(scope="module")
def on_tpu(config):
    """Every program for four TPU chips: splash attention, rematerialised, bfloat16."""
    pytest.importorskip("libtpu")
    cfg = dataclasses.replace(
        SMALL, n_layers=2, attention="splash", remat="full", dtype="bfloat16", head_dim=128
    )
    mesh = sharding.make_mesh(fsdp=2, tensor=2, devices=aot.tpu_devices("v5e:2x2"))
    return by_name(config, cfg, mesh)


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_compiles_for_a_tpu(on_tpu, phase, tmp_path):
    program = on_tpu[phase]
    compiled = aot.compile_program(program, tmp_path)
    assert compiled.fits
    held = sum(v for k, v in compiled.by_class.items() if k != "activations")
    arguments = aot.bytes_on_device(program.arguments)
    scalars = 16  # the number of the step, the key of sampled labels
    assert arguments <= held + scalars <= compiled.peak_bytes
    # The compiler pads what is no multiple of its tiles, and drops what is not used.
    assert 0.6 * arguments <= compiled.argument_bytes <= 1.3 * arguments + 2**16
    again = aot.compile_program(program, tmp_path)
    assert again == compiled._replace(seconds=0.0)


def test_all_phases_are_there(on_tpu):
    assert list(on_tpu) == PHASES


def test_a_program_too_large_for_the_device_is_a_result(tmp_path):
    pytest.importorskip("libtpu")
    mesh = sharding.make_mesh(fsdp=4, devices=aot.tpu_devices("v5e:2x2"))
    x = jax.ShapeDtypeStruct((2**16, 2**17), jnp.float32, sharding=sharding.replicated(mesh))
    program = programs.Program("train", jax.jit(lambda x: x + 1), (x,), {"params": x}, mesh)
    compiled = aot.compile_program(program, tmp_path)
    assert not compiled.fits
    assert compiled.by_class == {"params": 2**35}
    assert compiled.peak_bytes >= 2**36
    assert "15.75G" in compiled.refusal


def test_collectives_count_as_often_as_their_loop_runs():
    pytest.importorskip("libtpu")
    mesh = sharding.make_mesh(fsdp=4, devices=aot.tpu_devices("v5e:2x2"))
    rows, split = NamedSharding(mesh, PartitionSpec("fsdp")), PartitionSpec(None, "fsdp")

    def body(x, w):
        return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), rows), None

    x = jax.ShapeDtypeStruct((1024, 512), jnp.bfloat16, sharding=rows)
    w = jax.ShapeDtypeStruct((7, 512, 512), jnp.bfloat16, sharding=NamedSharding(mesh, split))
    lowered = jax.jit(lambda x, w: jax.lax.scan(body, x, w)[0]).lower(x, w)
    assert collective_bytes(lowered.compile().as_text()) == {"all-gather": 7 * 512 * 512 * 2}


STEPS = """
HloModule steps

%piece (a: bf16[64]) -> bf16[64] {
  %a = bf16[64]{0} parameter(0)
  ROOT %gathered = bf16[256]{0} all-gather(%a), channel_id=7, dimensions={0}
}

%condition (state: (bf16[64], u32[])) -> pred[] {
  %limit = u32[]{:T(128)} constant(15)
  %state = (bf16[64]{0}, u32[]{:T(128)}) parameter(0)
  %at = u32[]{:T(128)} get-tuple-element(%state), index=1
  ROOT %less = pred[] compare(%at, %limit), direction=LT
}

%body (state: (bf16[64], u32[])) -> (bf16[64], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %state = (bf16[64]{0}, u32[]{:T(128)}) parameter(0)
  %x = bf16[64]{0} get-tuple-element(%state), index=0
  %sent = bf16[64]{0} collective-permute(%x), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %beside = bf16[256]{0} fusion(%sent), kind=kOutput, calls=%piece
  %at = u32[]{:T(128)} get-tuple-element(%state), index=1
  %copied = u32[]{:T(128)S(6)} copy(%at)
  %next = u32[]{:T(128)} add(%copied, %two)
  ROOT %out = (bf16[64]{0}, u32[]{:T(128)}) tuple(%sent, %next)
}

ENTRY %main (x: bf16[64]) -> bf16[64] {
  %x = bf16[64]{0} parameter(0)
  %zero = u32[]{:T(128)} constant(0)
  %started = bf16[256]{0} fusion(%x), kind=kOutput, calls=%piece
  %state = (bf16[64]{0}, u32[]{:T(128)}) tuple(%x, %zero)
  %loop = (bf16[64]{0}, u32[]{:T(128)}) while(%state), condition=%condition, body=%body
  ROOT %y = bf16[64]{0} get-tuple-element(%loop), index=0
}
"""


def test_a_ring_counts_by_its_step_and_a_collective_in_pieces_once():
    """Eight turns of 0, 2, … 14; the gather goes on beside the loop, on the channel it began on."""
    assert collective_bytes(STEPS) == {"collective-permute": 8 * 128, "all-gather": 512}


def test_the_loss_gathers_hidden_states_and_never_the_output_matrix():
    pytest.importorskip("libtpu")
    mesh = sharding.make_mesh(fsdp=4, devices=aot.tpu_devices("v5e:2x2"))
    D, V = 512, 8192

    def array(shape, dtype, *names):
        placed = NamedSharding(mesh, sharding.spec(*names))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

    h = array((4, 128, D), jnp.bfloat16, "batch")
    head = array((D, V), jnp.float32, "embed", "vocab")
    targets = array((4, 128), jnp.int32, "batch")

    def loss(h, head, targets):
        return jnp.sum(blocked_nll(h, head, targets, V, block=16))

    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(loss, (0, 1))).lower(h, head, targets)
    sent = collective_bytes(lowered.compile().as_text())
    assert 0 < sum(sent.values()) < D * V * 2 / 2


def test_a_program_that_cannot_be_read_is_measured_all_the_same(monkeypatch, tmp_path):
    x = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding.replicated(sharding.make_mesh()))
    program = programs.Program(
        "train", jax.jit(lambda x: x + 1), (x,), {"params": x}, sharding.make_mesh()
    )

    def unreadable(executable):
        raise jax.errors.JaxRuntimeError("async-update instruction should have 1 operands")

    monkeypatch.setattr(jax.stages.Compiled, "as_text", unreadable)
    compiled = aot.compile_program(program, tmp_path)
    assert compiled.argument_bytes == 32
    assert compiled.collective_bytes is None
    assert aot.compile_program(program, tmp_path) == compiled._replace(seconds=0.0)


def test_a_slice_that_does_not_exist_is_refused():
    pytest.importorskip("libtpu")
    with pytest.raises(UserError, match="v5e:3x5"):
        aot.tpu_devices("v5e:3x5")


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UserError, match=r'pip install "ideal-jax\[tpu\]"'):
        aot.tpu_devices("v5e:2x4")


@pytest.mark.parametrize("layers", [1, 3])
def test_flops_by_formula_are_those_of_the_program(config, layers):
    cfg = dataclasses.replace(SMALL, n_layers=layers)
    traced = by_name(config, cfg, sharding.make_mesh())["train"].trace()
    formula = cost.train_flops(cfg, 16 * 128, 128)
    assert matrix_flops(traced) == pytest.approx(formula, rel=0.03)
    if layers == 1:  # XLA's own count takes the body of a loop once
        counted = traced.lower().compile().cost_analysis()["flops"]
        assert counted == pytest.approx(formula, rel=0.03)


@pytest.mark.parametrize("uncovered", ["diagonal", "drop"])
@pytest.mark.parametrize("segments", [1, 8])
@pytest.mark.parametrize("asked", [1, 2])
def test_gradients_and_scores_cost_their_formula(config, segments, uncovered, asked):
    """A backward pass, and a product of each matrix for a gradient, or for every tangent."""
    config.data.max_segments = segments
    config.influence.layers, config.influence.uncovered = "mlp", uncovered
    found = by_name(config, SMALL, sharding.make_mesh(), asked)
    rows, length = found["score"].classes["batch"]["tokens"].shape
    tangents = len(jax.tree.leaves(found["score"].classes["vectors"])[0])
    assert tangents == asked + (uncovered == "diagonal")
    read = factored(SMALL, "mlp", 8192) if uncovered == "drop" else None
    packed, amount = segments > 1, (SMALL, length, rows * length)
    scores = cost.score_flops(*amount, tangents, packed=packed, matrices=read)
    assert matrix_flops(found["score"].trace()) == pytest.approx(scores, rel=0.03)
    gradient = cost.gradient_flops(*amount, read)
    assert matrix_flops(found["gradient"].trace()) == pytest.approx(gradient, rel=0.03)


def test_a_training_step_needs_the_memory_that_was_planned():
    """Here, on the CPU: a process of its own, whose memory nobody else has grown."""
    script = pathlib.Path(__file__).parent / "planned_run.py"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, str(script), "train"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["planned_arguments"] == pytest.approx(told["arguments"], rel=1e-3)
    assert told["by_class"] == pytest.approx(told["arguments"], rel=1e-3)
    assert told["work"] == pytest.approx(told["planned_work"], rel=0.15)


def test_gpus_are_described_to_the_compiler():
    """The CUDA plugin itself is too large to be part of the tests' environment."""
    if not aot._cuda_plugin():
        with pytest.raises(UserError, match=r"needs JAX's plugin: pip install .ideal-jax\[cuda\]"):
            aot.described_devices(parse_topology("h100:16"))
        return
    devices = aot.described_devices(parse_topology("h100:16"))
    assert [d.process_index for d in devices] == [0] * 8 + [1] * 8
    mesh = sharding.make_mesh(fsdp=16, devices=devices)
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=split)
    found = jax.jit(lambda x: x.T @ x).lower(x).compile()
    assert sum(collective_bytes(found.as_text()).values()) >= 2 * 4096**2


@pytest.mark.parametrize("name", ["a100-40:1", "a100:8", "h100:8", "h200:1"])
def test_every_gpu_has_a_description(name):
    chip = parse_topology(name).chip
    told = target_config(chip)
    assert f"device_memory_size: {chip.hbm_bytes}\n" in told
    assert told.count("{") == told.count("}")
