"""Speeds that others published, and the efficiency of each chip that they give.

All but H200's of MaxText: bf16 activations, float32 parameters and Adam (70B on v6e:4x8: all
bf16), flash attention. v5e and v5p: ``MaxText/configs/v5e/README.md`` and ``v5p/README.md`` with
the scripts beside them; Llama 2 70B on v5p: ``docs/reference/models/tiering.md`` and
``v5p/llama2_70b.sh``; v6e: the logs in ``training/trillium`` of AI-Hypercomputer/tpu-recipes; H100:
``MaxText/configs/a3/llama_2_7b``. Where only FLOP/s are given they are turned into tokens/s by the
count they were made with: attention not halved. H200: this project's own (docs/benchmarks.md), all
bf16 but the second moment; rows of four examples count as four rows, which is what attention
computes.
"""

import functools
import math
from typing import NamedTuple

from ml_collections import ConfigDict

from ideal_jax.models import DecoderConfig
from ideal_jax.runs import cost
from ideal_jax.runs.planning.setting import Setting
from ideal_jax.runs.planning.speed import exposed, products, seconds
from ideal_jax.runs.planning.topology import parse_topology
from ideal_jax.runs.planning.work import train_work

_FULL = ("q", "k", "v", "o", "gate", "up", "scores")


class Point(NamedTuple):
    """One published speed.

    Attributes:
      model: its name here.
      topology, tensor, replica: the machine; fsdp is the rest.
      length, rows: T, and rows a chip and step.
      repeated: what the backward pass computed again.
      tokens: per second and chip, as published; 0: by ``tera``.
      tera: 10¹² FLOP/s and chip, as published.
    """

    model: str
    topology: str
    length: int
    rows: int
    repeated: tuple[str, ...]
    tokens: float = 0.0
    tera: float = 0.0
    tensor: int = 1
    replica: int = 1


def _shape(D: int, N: int, K: int, F: int, L: int, V: int, H: int = 128) -> DecoderConfig:
    return DecoderConfig(V, D, L, N, K, H, F, tie_embeddings=H == 64, dtype="bfloat16")


MODELS = {
    "default 16B": _shape(4096, 64, 64, 28672, 32, 32000),
    "default 32B": _shape(8192, 64, 64, 28672, 32, 32000),
    "default 64B": _shape(8192, 64, 64, 28672, 64, 32000),
    "default 128B": _shape(8192, 128, 128, 57344, 64, 32000),
    "default 256B": _shape(16384, 128, 128, 57344, 64, 32000),
    "Llama 2 7B": _shape(4096, 32, 32, 11008, 32, 32000),
    "Llama 2 70B": _shape(8192, 64, 8, 28672, 80, 32000),
    "Llama 3.2 1.24B": _shape(2048, 32, 8, 8192, 16, 128256, H=64),
    "Llama 3.1 8B": _shape(4096, 32, 8, 14336, 32, 128256),
    "Llama 3.1 70B": _shape(8192, 64, 8, 28672, 80, 128256),
    "Llama 3.1 405B": _shape(16384, 128, 8, 53248, 126, 128256),
}
_DOTS, _KEPT = ("scores",), ("gate", "up", "scores")
POINTS = {
    "v5e": (
        Point("default 16B", "v5e:16x16", 2048, 6, _FULL, tera=120),
        Point("default 32B", "v5e:16x16", 2048, 4, _FULL, tera=132),
        Point("default 64B", "v5e:16x16", 2048, 2, _FULL, tera=118),
        Point("default 128B", "v5e:16x16", 2048, 1, _DOTS, tera=110, tensor=16),
    ),
    "v5p": (
        Point("default 32B", "v5p:4x4x4", 2048, 7, _DOTS, tera=328, tensor=4),
        Point("default 64B", "v5p:4x4x4", 2048, 3, _DOTS, tera=323, tensor=4),
        Point("Llama 2 70B", "v5p:4x8x8", 4096, 4, _KEPT, tokens=692),
        Point("default 128B", "v5p:4x4x8", 2048, 1, _DOTS, tera=315, tensor=8),
        Point("default 256B", "v5p:8x8x8", 2048, 1, _DOTS, tera=308, tensor=8),
    ),
    "v6e": (
        Point("Llama 3.1 8B", "v6e:2x4", 8192, 3, _KEPT, tokens=7138.9),
        Point("Llama 3.1 8B", "v6e:4x4", 8192, 3, _KEPT, tokens=7243.4),
        Point("Llama 3.1 8B", "v6e:8x8", 8192, 5, _KEPT, tokens=7247.1),
        Point("Llama 3.1 8B", "v6e:16x16", 8192, 4, _KEPT, tokens=7207.3),
        Point("Llama 2 70B", "v6e:16x16", 4096, 4, _FULL, tokens=943.1),
        Point("Llama 3.1 70B", "v6e:4x8", 8192, 2, ("o", *_KEPT), tokens=921.0),
        Point("Llama 3.1 70B", "v6e:16x16", 8192, 5, ("o", *_KEPT), tokens=960.2),
        Point("Llama 3.1 405B", "2*v6e:16x16", 8192, 1, _FULL, tokens=149.5),
    ),
    "H100": (
        Point("Llama 2 7B", "h100:8", 4096, 4, (), tera=492),
        Point("Llama 2 7B", "h100:16", 4096, 4, (), tera=422, replica=2),
        Point("Llama 2 7B", "h100:32", 4096, 4, (), tera=407, replica=4),
        Point("Llama 2 7B", "h100:64", 4096, 4, (), tera=409, replica=8),
        Point("Llama 2 7B", "h100:128", 4096, 4, (), tera=375, replica=16),
    ),
    "H200": (
        Point("Llama 3.2 1.24B", "h200:1", 1024, 16, (), tokens=66440),
        Point("Llama 3.1 8B", "h200:1", 1024, 12, ("logits",), tokens=11638),
    ),
}
# Chips without a published speed: the one that is most like them. A CPU's peak is a guess anyway.
_LIKE = {"v4": "v5p", "A100-40": "H100", "A100-80": "H100"}


def efficiency(chip: str) -> float:
    """e of a chip, from every second point, the smallest model first."""
    if chip == "CPU":
        return 1.0
    return fitted(POINTS[_LIKE.get(chip, chip)][::2])


@functools.cache
def fitted(points: tuple[Point, ...]) -> float:
    """The e for which the model's seconds are those published: the geometric mean of all points."""

    def one(point: Point) -> float:
        setting, work = point_setting(point), train_work(point_setting(point), point.repeated)
        return products(setting, work) / (published_seconds(point) - exposed(setting, work))

    return math.exp(sum(math.log(one(point)) for point in points) / len(points))


def predicted_seconds(point: Point, e: float) -> float:
    """A step's seconds by the model."""
    setting = point_setting(point)
    return seconds(setting, train_work(setting, point.repeated), e)


def published_seconds(point: Point) -> float:
    """A step's seconds as published."""
    cfg, tokens = MODELS[point.model], point.rows * point.length
    if point.tokens:
        return tokens / point.tokens
    return cost.train_flops(cfg, tokens, point.length) / (point.tera * 1e12)


def point_setting(point: Point) -> Setting:
    """What was run."""
    topology = parse_topology(point.topology)
    return Setting(
        cfg=MODELS[point.model],
        topology=topology,
        replica=point.replica,
        fsdp=topology.devices // point.tensor // point.replica,
        tensor=point.tensor,
        batch=point.rows * topology.devices,
        micro_batches=1,
        length=point.length,
        block=point.length,
        moment_bytes=4,
        influence=ConfigDict(),
        eval_batch=1,
    )
