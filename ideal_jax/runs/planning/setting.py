"""What is planned: a decoder, a mesh, a batch, and the run around them."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from ideal_jax import config as config_lib
from ideal_jax.data.tokenizers import load_tokenizer
from ideal_jax.errors import UserError
from ideal_jax.keys import CONFIGS
from ideal_jax.models import DecoderConfig, LoRA, hf_model
from ideal_jax.runs.influence_options import check_influence
from ideal_jax.runs.model_tokenizer import choose_tokenizer
from ideal_jax.runs.planning.topology import Topology
from ideal_jax.training.checkpoints import saved_model

PACKED = 0.95  # share of a row's positions that are no padding, packed best-fit
WIDE_BYTES = 4  # of a float32


class Setting(NamedTuple):
    """One way to train a decoder on a machine.

    Attributes:
      cfg: the decoder.
      topology: the machine.
      replica, fsdp, tensor: the mesh.
      batch: rows of a training step over all devices.
      micro_batches: slices of a batch.
      length: T, tokens in a row.
      block: positions whose logits exist at one time.
      moment_bytes: of a scalar of Adam's first moment.
      influence: the config's section.
      eval_batch: examples generated at one time.
    """

    cfg: DecoderConfig
    topology: Topology
    replica: int
    fsdp: int
    tensor: int
    batch: int
    micro_batches: int
    length: int
    block: int
    moment_bytes: int
    influence: Any
    eval_batch: int

    @property
    def ways(self) -> int:
        """How many ways the rows are split."""
        return self.replica * self.fsdp

    @property
    def rows(self) -> float:
        """Rows of a micro-batch on one device's share of the mesh."""
        return self.batch / self.ways / self.micro_batches

    @property
    def influence_rows(self) -> int:
        """Rows of an influence batch on one device's share of the mesh."""
        return math.ceil(self.influence.batch_size / self.ways)

    @property
    def param_bytes(self) -> int:
        """Of a scalar parameter."""
        return jnp.dtype(self.cfg.param_dtype).itemsize

    @property
    def activation_bytes(self) -> int:
        """Of a scalar activation."""
        return jnp.dtype(self.cfg.dtype).itemsize

    @property
    def fused(self) -> bool:
        """Whether training's attention is a kernel that skips what causality hides."""
        capped = self.cfg.attention_softcap and self.topology.platform == "gpu"
        return self.topology.platform in ("tpu", "gpu") and not capped

    def changes(self) -> dict[str, Any]:
        """The config keys that say the same."""
        return {
            "mesh.replica": self.replica,
            "mesh.fsdp": self.fsdp,
            "mesh.tensor": self.tensor,
            "model.remat": self.cfg.remat,
            "training.micro_batches": self.micro_batches,
        }


class Amounts(NamedTuple):
    """How much of everything a whole run does.

    Attributes:
      trainings, updates: rounds of training and of influence.
      steps: of one training.
      domains: n, also the number of reference sets.
      scored, references, spread, curvature: tokens per influence estimate; ``spread`` are the
        references that are scored.
      tangents: right-hand sides at one time.
      packed: several scored examples share a row.
      generated, prompts: examples and tokens of each of one evaluation.
    """

    trainings: int
    updates: int
    steps: int
    domains: int
    scored: float
    references: float
    spread: float
    curvature: float
    tangents: int
    packed: bool
    prompts: int
    prompt_tokens: int
    new_tokens: int


def read_setting(config: Any, topology: Topology) -> Setting:
    """The setting that a config describes.

    Raises:
      UserError: an estimator or option of influence that does not exist, a mesh that does not
        cover the machine, or a batch that it does not divide.
    """
    check_influence(config)
    replica, fsdp, tensor = _mesh(config.mesh, topology.devices)
    slices = replica * fsdp * config.training.micro_batches
    if config.training.batch_size % slices:
        raise UserError(
            f"training.batch_size={config.training.batch_size} is no multiple of {slices} "
            "(mesh.replica × mesh.fsdp × training.micro_batches)"
        )
    cfg = planned_decoder(config)
    check_divides(cfg, fsdp, tensor)
    moment = config.training.moment_dtype or cfg.param_dtype
    return Setting(
        cfg=cfg,
        topology=topology,
        replica=replica,
        fsdp=fsdp,
        tensor=tensor,
        batch=config.training.batch_size,
        micro_batches=config.training.micro_batches,
        length=config.data.row_length,
        block=config.loss.block,
        moment_bytes=jnp.dtype(moment).itemsize,
        influence=config.influence,
        eval_batch=config.eval.batch_size,
    )


def read_amounts(config: Any) -> Amounts:
    """How much a config's run does, by the ``mixture`` section and what ``plan`` says there is."""
    counts = config_lib.names(config.mixture.counts)
    domains = len(counts) or len(config_lib.names(config.data.domains)) or 5
    there_are = config.plan.examples
    examples = sum(map(int, counts)) or min(config.mixture.examples or there_are, there_are)
    mean, options = config.plan.example_tokens, config.influence
    rows = examples * mean / (PACKED * config.data.row_length)
    steps = config.training.steps or math.ceil(
        config.training.epochs * rows / config.training.batch_size
    )
    prompt = min(mean, config.data.row_length)
    return Amounts(
        trainings=config.mixture.rounds + 1,
        updates=config.mixture.rounds + config.influence.final,
        steps=steps,
        domains=domains,
        scored=(options.fraction or 0.5) * examples * mean / PACKED,
        references=domains * min(options.reference_examples, examples) * mean / PACKED,
        spread=domains * min(options.spread_examples, examples) * mean / PACKED,
        curvature=options.curvature_examples * mean,
        tangents=min(options.tangents or domains, domains),
        packed=config.data.max_segments > 1,
        prompts=domains * config.eval.examples if config.eval.tasks else 0,
        prompt_tokens=prompt,
        new_tokens=config.eval.max_new_tokens,
    )


def planned_decoder(config: Any) -> DecoderConfig:
    """The decoder, from config.json or the ``model`` section: no weights are looked for.

    Raises:
      UserError: ``model.init`` is not a folder and ``plan.model`` is not set; or
        ``data.tokenizer`` is another one than that of the model there.
    """
    options = config.model
    if config.data.tokenizer != "auto" and Path(options.init).expanduser().is_dir():
        choose_tokenizer(config)
    how = {key: options[key] for key in ("dtype", "param_dtype", "remat", "unroll")}
    folder = config.plan.model or options.init
    models = CONFIGS / "models"
    if config.plan.model and (models / folder / "config.json").is_file():
        folder = str(models / folder)  # a shipped one, by its name
    if folder == "random":
        skipped = ("init", "attention")
        shape = {key: value for key, value in options.items() if key not in skipped}
        cfg = DecoderConfig(vocab_size=_vocabulary(choose_tokenizer(config).spec), **shape)
    elif (Path(folder).expanduser() / "config.json").is_file():
        cfg = hf_model(Path(folder).expanduser(), options.dtype).cfg
    elif (Path(folder).expanduser() / "model.json").is_file():
        cfg = saved_model(Path(folder).expanduser())[0].cfg
    else:
        raise UserError(
            f"model.init={options.init} is no folder here; set plan.model to a folder that has its "
            f"config.json, or to one of {', '.join(sorted(f.name for f in models.iterdir()))}"
        )
    wanted = config.lora
    adapters = LoRA(wanted.rank, wanted.alpha, wanted.dropout, wanted.target)
    lora = adapters if wanted.rank else cfg.lora
    return dataclasses.replace(cfg, **how, lora=lora)


def check_divides(cfg: DecoderConfig, fsdp: int, tensor: int) -> None:
    """Whether the mesh divides what is split over it.

    Raises:
      UserError: names the axis and the dimension.
    """
    split = {
        "d_model": (cfg.d_model, "fsdp", fsdp),
        "n_heads": (cfg.n_heads, "tensor", tensor),
        "n_kv_heads": (cfg.n_kv_heads, "tensor", tensor),
        "d_ff": (cfg.d_ff, "tensor", tensor),
    }
    for name, (size, axis, ways) in split.items():
        if size % ways:
            raise UserError(f"mesh.{axis}={ways} does not divide model.{name}={size}")


def _mesh(mesh: Any, count: int) -> tuple[int, int, int]:
    sizes = [mesh.replica, mesh.fsdp, mesh.tensor]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if min(sizes) < 1 or math.prod(sizes) != count:
        asked = f"mesh.replica={mesh.replica} × fsdp={mesh.fsdp} × tensor={mesh.tensor}"
        raise UserError(f"{asked} does not cover the {count} devices; -1 takes what is left")
    return sizes[0], sizes[1], sizes[2]


def _vocabulary(tokenizer: str) -> int:
    if Path(tokenizer).is_dir():
        return len(load_tokenizer(tokenizer))
    trained = re.fullmatch(r"bpe:(\d+)", tokenizer)
    return int(trained[1]) if trained else 320
