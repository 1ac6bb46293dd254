"""``ideal-jax plan``: will it fit, how fast will it be, what will it cost?"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from ideal_jax import config as config_lib
from ideal_jax import sharding
from ideal_jax.data.cache import cache_folder
from ideal_jax.errors import UserError
from ideal_jax.models import Decoder
from ideal_jax.runs.base_model import with_attention
from ideal_jax.runs.planning import search
from ideal_jax.runs.planning.aot import compile_program, described_devices
from ideal_jax.runs.planning.forecast import forecast
from ideal_jax.runs.planning.memory import USABLE, room
from ideal_jax.runs.planning.programs import programs
from ideal_jax.runs.planning.setting import Amounts, Setting, read_amounts, read_setting
from ideal_jax.runs.planning.tables import print_candidates, print_compiled, print_plan
from ideal_jax.runs.planning.topology import parse_topology
from ideal_jax.runs.progress import Reporter
from ideal_jax.runs.workdir import write_json

_COMPILED = 4  # candidates of a search that are compiled, at most


def plan_run(config: Any, workdir: str | pathlib.Path | None) -> dict[str, Any]:
    """Plans a run on the machine ``plan.topology``; needs neither data nor weights nor the machine.

    Everything is predicted by formula; where this machine can compile for the other (TPUs, with
    libtpu), the compiler's word on memory replaces the formula's. Writes ``plan/plan.json``.

    Returns:
      The content of ``plan.json``.

    Raises:
      UserError: it does not fit (names what would), or the config is not valid.
    """
    config_lib.check(config)
    options, reporter = config.plan, Reporter(config.logging.progress)
    if not options.topology:
        raise UserError("--topology is missing: a machine such as v5p:4x4x8, h100:8 or cpu:1")
    topology = parse_topology(options.topology)
    setting, amounts = read_setting(config, topology), read_amounts(config)
    found = search.candidates(setting, amounts) if options.search else []
    if options.search:
        print_candidates(reporter.console, found)
    best, compiled = _compiled(config, setting, amounts, found, reporter)
    plan = forecast(best, amounts, options.price)
    plan["compiled"] = compiled
    if compiled:
        # The compiler's word; of phases that were not compiled, the formula's.
        names = [row["name"] for row in compiled]
        rest = {name: x for name, x in plan["memory"].items() if name not in names}
        plan["fits"] = all(row["fits"] for row in compiled)
        if rest:
            plan["fits"] = plan["fits"] and room(best, rest).fits
            told = f"by formula only, not compiled: {', '.join(rest)}"
            reporter.say(told)
    print_plan(reporter.console, plan, options.price)
    if compiled:
        print_compiled(reporter.console, compiled)
    if workdir is not None:
        file = pathlib.Path(workdir) / "plan" / "plan.json"
        write_json(file, plan)
        reporter.say(f"plan: {file}")
    if not plan["fits"]:
        raise UserError(_does_not_fit(plan, best, amounts))
    if options.search and best != setting:
        told = _flags(best.changes(), setting.changes())
        reporter.say(f"recommended: {told}")
    return plan


def _compiled(
    config: Any,
    setting: Setting,
    amounts: Amounts,
    found: list[search.Candidate],
    reporter: Reporter,
) -> tuple[Setting, list[dict[str, Any]]]:
    """The setting to recommend, and its programs as compiled; none where that cannot be."""
    choices = [c.setting for c in found[:_COMPILED]] or [setting]
    rows: list[dict[str, Any]] = []
    why = _cannot_compile(setting) if config.plan.compile else "plan.compile=False"
    if why:
        reporter.say(f"by formula only: {why}")
        return choices[0], rows
    for choice in choices:
        rows = []
        for row in _compile_all(config, choice, amounts, reporter):
            rows.append(row)
            if not row["fits"] and choice is not choices[-1]:
                break
        else:
            return choice, rows
    return choices[-1], rows


def _cannot_compile(s: Setting) -> str:
    """Why not; "" if it can."""
    if s.topology.platform == "cpu":
        enough = s.topology.devices <= jax.device_count()
        return "" if enough else f"this machine cannot compile for {s.topology.name}"
    try:
        described_devices(s.topology)
    except UserError as error:
        return str(error)
    return ""


def _compile_all(
    config: Any, s: Setting, amounts: Amounts, reporter: Reporter
) -> Iterator[dict[str, Any]]:
    topology = s.topology
    if topology.platform == "cpu":
        devices = list(jax.devices())[: topology.devices]
    else:
        devices = list(described_devices(topology))
    mesh = sharding.make_mesh(
        replica=s.replica,
        fsdp=s.fsdp,
        tensor=s.tensor,
        slices=topology.slices,
        devices=devices,
    )
    chosen = config.copy_and_resolve_references()
    with chosen.unlocked():
        chosen.training.micro_batches = s.micro_batches
        chosen.influence = s.influence
    model = with_attention(chosen, Decoder(s.cfg), mesh)
    # Tracing cuDNN's attention by segment asks what GPU is here; a mask takes the same memory.
    model = Decoder(dataclasses.replace(model.cfg, max_segments=0))
    cache = cache_folder(config.data.cache) / "compiled"
    does = {"generates": bool(amounts.prompts), "influences": bool(amounts.updates)}
    for program in programs(chosen, model, mesh, amounts.tangents, **does):
        with reporter.phase(f"compile {program.name}"):
            compiled = compile_program(program, cache)
        if topology.platform != "tpu":  # whose compiler refuses what does not fit
            usable = USABLE * topology.chip.hbm_bytes
            compiled = compiled._replace(fits=compiled.peak_bytes <= usable)
        yield compiled._asdict()


def _does_not_fit(plan: dict[str, Any], s: Setting, amounts: Amounts) -> str:
    name, phase = s.topology.name, plan["fullest"]
    text = (
        f"{phase} does not fit {name}: {plan['needed_bytes'] / 2**30:.1f} GiB a device of "
        f"{plan['usable_bytes'] / 2**30:.1f}"
    )
    refused = [row["name"] for row in plan["compiled"] if not row["fits"]]
    if refused:
        text = f"the compiler finds no room on {name} for {', '.join(refused)}"
    near = search.nearest(s, amounts)
    if near is None:
        return f"{text}; nothing near it does"
    changes, found = near
    if not changes:
        return f"{text}, though by formula it takes {found.room.needed / 2**30:.1f} GiB a device"
    return f"{text}; it does with {_flags(changes, {})} ({found.room.needed / 2**30:.1f} GiB)"


def _flags(changes: dict[str, Any], known: dict[str, Any]) -> str:
    told = {key: value for key, value in changes.items() if known.get(key) != value}
    return " ".join(f"--config.{key}={value}" for key, value in told.items())
