"""Plans by formula: against the compiler, against published speeds, and what is refused."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from ideal_jax import cli, config, sharding, training
from ideal_jax.errors import UserError
from ideal_jax.models import Decoder, DecoderConfig, LoRA, abstract_params, decoder_loss
from ideal_jax.runs.planning import layers, memory, published, search
from ideal_jax.runs.planning.counted import matrix_flops
from ideal_jax.runs.planning.forecast import forecast
from ideal_jax.runs.planning.setting import Setting, read_amounts, read_setting
from ideal_jax.runs.planning.topology import parse_topology
from ideal_jax.runs.planning.work import train_work

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
MACHINES = {
    "llama3_2_1b": ("h100:1", "h200:1", "v5e:2x4", "v6e:2x4", "v5p:2x2x1"),
    "llama3_8b": ("v5e:4x8", "v6e:4x4", "v5p:2x2x4", "h100:1", "h200:1", "h100:8", "h200:8"),
    "llama3_70b": ("v5p:4x4x8", "v5e:16x16", "v6e:16x16", "h100:64", "h200:32"),
    "qwen3_4b": ("v5e:4x4", "v6e:2x4", "v5p:2x2x2", "h100:8", "h200:8"),
    "gemma2_9b": ("v5p:2x2x4", "v5e:4x8", "v6e:4x4", "h100:8", "h200:8"),
    "paper_llama31_8b": ("v5e:4x8", "h200:8"),
}


def plain(batch: int = 4, length: int = 256, micro_batches: int = 1, **fields) -> Setting:
    """A small decoder on one CPU."""
    shape = {
        "vocab_size": 2048,
        "d_model": 256,
        "n_layers": 4,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 64,
        "d_ff": 704,
        "tie_embeddings": False,
    }
    cfg = DecoderConfig(**{**shape, **fields})
    topology, options = parse_topology("cpu:1"), ConfigDict()
    return Setting(
        cfg, topology, 1, 1, 1, batch, micro_batches, length, 128, 4, options, eval_batch=1
    )


def train_program(s: Setting) -> jax.stages.Traced:
    """The real training step of a setting."""
    mesh = sharding.make_mesh(fsdp=1, devices=jax.devices()[:1])
    options = FrozenConfigDict(config.load(CONFIGS / "base.py").training)
    optimizer = training.adamw(options, 100)
    state = jax.eval_shape(
        lambda p: training.init_state(p, optimizer), abstract_params(Decoder(s.cfg), mesh)
    )
    names = ("tokens", "targets", "positions", "segments")
    shape = (s.batch, s.length)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in names}
    batch["weights"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    loss = decoder_loss(Decoder(s.cfg), s.block)
    step = training.make_train_step(loss, optimizer, s.micro_batches)
    with jax.set_mesh(mesh):
        return jax.jit(step, donate_argnums=0).trace(state, batch)


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_flops_are_the_compilers(remat):
    """XLA counts the body of a loop once: one layer, and one block of logits, need no loop."""
    s = plain(batch=2, n_layers=1, d_model=512, head_dim=128, d_ff=1408, vocab_size=4096)
    s = s._replace(cfg=dataclasses.replace(s.cfg, remat=remat), block=s.length)
    counted = train_program(s).lower().compile().cost_analysis()["flops"]
    # Without a loop some releases of XLA see that the logits of the backward pass are those of the
    # forward pass.
    kept = tuple(part for part in layers.REPEATED[remat] if part != "logits")
    expected = [train_work(s, parts).flops for parts in (layers.REPEATED[remat], kept)]
    assert counted in [pytest.approx(flops, rel=0.03) for flops in expected]


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_flops_of_loops(remat, micro_batches):
    s = plain(micro_batches=micro_batches, remat=remat)
    assert train_work(s).flops == pytest.approx(matrix_flops(train_program(s)), rel=0.03)


@pytest.mark.parametrize(
    "s",
    [
        plain(remat="none"),
        plain(remat="full"),
        plain(remat="dots"),
        plain(remat="full", n_layers=8),
        plain(remat="full", micro_batches=2),
        plain(remat="full", batch=8, dtype="bfloat16"),
    ],
    ids=["none", "full", "dots", "deep", "micro-batches", "bfloat16"],
)
def test_memory_is_the_compilers(s):
    found = train_program(s).lower().compile().memory_analysis()
    used = found.argument_size_in_bytes + found.temp_size_in_bytes
    used += found.output_size_in_bytes - found.alias_size_in_bytes
    assert sum(memory.train_memory(s).values()) == pytest.approx(used, rel=0.15)


@pytest.mark.parametrize("chip", published.POINTS)
def test_half_of_the_published_speeds_predicts_the_other(chip):
    points = published.POINTS[chip]
    for fit, rest in ((points[::2], points[1::2]), (points[1::2], points[::2])):
        e = published.fitted(fit)
        assert 0.3 < e < 0.95
        for point in rest:
            measured = published.published_seconds(point)
            assert published.predicted_seconds(point, e) == pytest.approx(measured, rel=0.15), point


def test_published_models_have_their_size():
    sizes = {name: layers.whole_scalars(cfg) for name, cfg in published.MODELS.items()}
    for name, size in sizes.items():
        assert size == pytest.approx(float(name.split()[-1][:-1]) * 1e9, rel=0.06)


@pytest.mark.parametrize(
    ("name", "machine"), [(name, machine) for name, all_ in MACHINES.items() for machine in all_]
)
def test_configs_fit_the_machines_they_are_for(name, machine):
    c = config.load(f"{CONFIGS / name}.py:{machine}")
    config.check(c)
    s, amounts = read_setting(c, parse_topology(machine)), read_amounts(c)
    plan = forecast(s, amounts, 1.0)
    assert plan["fits"], plan["fullest"]
    assert plan["largest_batch"] >= s.batch
    assert plan["hours"] > 0
    assert plan["money"] == pytest.approx(plan["chip_hours"])
    assert figures(plan) in (CONFIGS / f"{name}.py").read_text()


def figures(plan: dict) -> str:
    """A machine's line in the docstring of a config."""
    step, gib = plan["step"], 2**30
    return (
        f"{plan['topology']:<9} {plan['needed_bytes'] / gib:5.1f} of"
        f" {plan['usable_bytes'] / gib:5.1f} GiB, {step['seconds']:5.2f} s/step,"
        f" {step['tokens_per_second']:7,.0f} tokens/s, MFU {step['mfu']:.0%},"
        f" run {plan['hours']:4.1f} h"
    )


def test_every_config_is_planned():
    others = {"base", "quickstart", "tiny", "real_small", "real_truth", "large", "forkme"}
    assert {path.stem for path in CONFIGS.glob("*.py")} == set(MACHINES) | others
    forked = config.load(CONFIGS / "forkme.py")
    plan = forecast(read_setting(forked, parse_topology("h100:8")), read_amounts(forked), 0.0)
    assert plan["fits"]


def test_targets_of_the_large_runs():
    for name, machine, least in (("llama3_8b", "v6e:4x4", 0.45), ("llama3_70b", "v5p:4x4x8", 0.5)):
        c = config.load(f"{CONFIGS / name}.py:{machine}")
        plan = forecast(read_setting(c, parse_topology(machine)), read_amounts(c), 0.0)
        assert plan["step"]["mfu"] >= least


def test_more_chips_at_constant_tokens_a_chip_are_hardly_slower():
    c = config.load(f"{CONFIGS / 'llama3_8b'}.py:v5e:4x8")
    before = None
    for shape in ("4x4", "4x8", "8x8", "8x16", "16x16"):
        topology = parse_topology(f"v5e:{shape}")
        c.training.batch_size = 4 * topology.devices
        step = search.judged(read_setting(c, topology), read_amounts(c)).seconds
        assert before is None or step < 1.05 * before
        before = step


def test_search_finds_what_is_fastest_of_what_fits():
    c = config.load(f"{CONFIGS / 'llama3_8b'}.py:v6e:4x4")
    s, amounts = read_setting(c, parse_topology("v6e:4x4")), read_amounts(c)
    found = search.candidates(s, amounts)
    assert all(candidate.room.fits for candidate in found)
    assert [c.seconds for c in found] == sorted(c.seconds for c in found)
    assert found[0].seconds <= search.judged(s, amounts).seconds


@pytest.mark.parametrize(
    ("name", "chip", "devices", "near"),
    [
        ("v5e:4x8", "v5e", 32, 32),
        ("2*v5e:16x16", "v5e", 512, 256),
        ("v5p:4x4x8", "v5p", 128, 128),
        ("h100:16", "H100", 16, 8),
        ("a100:8", "A100-80", 8, 8),
        ("cpu:1", "CPU", 1, 1),
    ],
)
def test_topologies(name, chip, devices, near):
    topology = parse_topology(name)
    assert (topology.chip.name, topology.devices, topology.near) == (chip, devices, near)


@pytest.mark.parametrize("name", ["", "v5e", "v5e:4", "v5p:4x4", "h100:2x4", "b200:8", "v5e:0x4"])
def test_no_topology(name):
    with pytest.raises(UserError, match=r"plan\.topology"):
        parse_topology(name)


def test_adapters_need_little():
    whole = plain(param_dtype="bfloat16", dtype="bfloat16")
    some = plain(
        param_dtype="bfloat16", dtype="bfloat16", lora=LoRA(4, 4.0, 0.0, "attention/[qv]$")
    )
    adapters = 4 * (2 * 256 + 256 + 128) * 4  # A and B of q (256×256) and v (256×128), 4 layers
    assert layers.trained_scalars(some.cfg) == adapters
    assert memory.train_memory(some)["optimizer"] < memory.train_memory(whole)["optimizer"] / 50


def test_verb_writes_a_plan(tmp_path, capsys):
    arguments = ["plan", f"--config={CONFIGS / 'llama3_8b.py'}", "--topology=v5e:4x8", "--search"]
    arguments += ["--config.plan.compile=False", "--config.plan.price=1.2"]
    assert cli.main([*arguments, f"--workdir={tmp_path}"]) == 0
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert plan["devices"] == 32
    assert plan["money"] == pytest.approx(1.2 * plan["chip_hours"])
    assert set(plan["phases"]) >= {"train", "curvature", "eigen", "solve", "score", "generate"}
    assert "MFU" in capsys.readouterr().out


def test_verb_compiles_where_it_can(tmp_path):
    arguments = ["plan", f"--config={CONFIGS / 'tiny.py'}", "--topology=cpu:1"]
    arguments += [f"--config.data.cache={tmp_path / 'cache'}", f"--workdir={tmp_path}"]
    assert cli.main(arguments) == 0
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert {row["name"] for row in plan["compiled"]} >= {"train", "curvature", "solve", "score"}
    assert all(row["fits"] for row in plan["compiled"])


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--topology=b200:8"], "unknown chip"),
        (["--topology=v5e:3x3"], "is no multiple of"),
        (["--topology=v5e:3x3", "--config.training.batch_size=18"], "does not divide"),
        ([], "--topology is missing"),
        (["--topology=v5e:2x2"], "it does with --config."),
        (["--topology=h100:1", "--config.lora.rank=0", "--config.model.param_dtype=float32"],
         "--config.lora.rank=16"),
    ],
)  # fmt: skip
def test_verb_refuses(extra, told, capsys):
    arguments = ["plan", f"--config={CONFIGS / 'llama3_8b.py'}", "--config.plan.compile=False"]
    assert cli.main([*arguments, *extra]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) == 1


def test_a_config_without_machines_takes_no_argument():
    with pytest.raises(UserError, match="takes no argument"):
        config.load(f"{CONFIGS / 'tiny.py'}:v5e:4x8")
