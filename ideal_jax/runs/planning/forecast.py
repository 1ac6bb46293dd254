"""A plan as JSON has it: memory, speed, hours and money of a whole run, by formula."""

from typing import Any

from ideal_jax.runs import cost
from ideal_jax.runs.planning import layers, memory, search
from ideal_jax.runs.planning.published import efficiency
from ideal_jax.runs.planning.setting import Amounts, Setting
from ideal_jax.runs.planning.speed import mfu, seconds
from ideal_jax.runs.planning.work import phases, train_work

MFU = (
    "3 · (2 · matrices + 2 · L·N·H · (T + 1)) FLOPs a token (adapters: 2 ·)"
    " / (seconds · devices · peak)"
)


def forecast(s: Setting, amounts: Amounts, price: float) -> dict[str, Any]:
    """The content of ``plan.json``, without what only a compiler knows.

    Args:
      price: money for one device and hour.
    """
    e, devices = efficiency(s.topology.chip.name), s.topology.devices
    by_phase = memory.memory(s, amounts)
    room = memory.room(s, by_phase)
    work = train_work(s)
    step = seconds(s, work, e)
    tokens = s.batch * s.length
    found = phases(s, amounts)
    hours = {
        name: {
            "executions": w.executions,
            "seconds_each": seconds(s, w, e),
            "hours": w.executions * seconds(s, w, e) / 3600,
        }
        for name, w in found.items()
    }
    flops = {name: w.executions * (w.flops + w.exact_flops) * devices for name, w in found.items()}
    total = sum(phase["hours"] for phase in hours.values())
    return {
        "topology": s.topology.name,
        "chip": s.topology.chip.name,
        "devices": devices,
        "setting": {**s.changes(), "training.batch_size": s.batch, "data.row_length": s.length},
        "parameters": layers.whole_scalars(s.cfg),
        "trained_parameters": layers.trained_scalars(s.cfg),
        "memory": by_phase,
        "fits": room.fits,
        "needed_bytes": room.needed,
        "usable_bytes": room.usable,
        "fullest": room.phase,
        "largest_batch": search.largest_batch(s),
        "efficiency": e,
        "step": {
            "seconds": step,
            "mfu": mfu(s, step),
            "tokens_per_second": tokens / step,
            "model_flops": cost.model_flops(s.cfg, tokens, s.length),
            "flops_per_device": work.flops,
            "hbm_bytes_per_device": work.hbm_bytes,
            "collective_bytes_per_device": {
                "replica": work.replica_bytes,
                "fsdp": work.fsdp_bytes,
                "tensor": work.tensor_bytes,
            },
        },
        "phases": hours,
        "cost": {
            "train_flops": flops["train"],
            "influence_flops": sum(x for k, x in flops.items() if k not in ("train", "generate")),
        },
        "hours": total,
        "chip_hours": total * devices,
        "money": total * devices * price,
        "amounts": amounts._asdict(),
    }
