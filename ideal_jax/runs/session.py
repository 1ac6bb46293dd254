"""What every phase of a run shares: config, devices, data, model."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ideal_jax import config as config_lib
from ideal_jax import sharding
from ideal_jax.data import Dataset, prepare
from ideal_jax.errors import UserError
from ideal_jax.models import Decoder, DecoderConfig
from ideal_jax.runs import processes
from ideal_jax.runs.progress import Reporter
from ideal_jax.runs.workdir import WorkDir


class Session(NamedTuple):
    """The fixed surroundings of a run."""

    config: Any
    workdir: WorkDir
    mesh: jax.sharding.Mesh
    data: Dataset
    model: Decoder
    reporter: Reporter
    capability_weights: tuple[float, ...]  # v, sums to 1

    @property
    def names(self) -> tuple[str, ...]:
        """The domains."""
        return self.data.names

    @property
    def widths(self) -> tuple[int, ...]:
        """Row widths for one example a row: powers of two up to the row length."""
        longest = self.config.data.row_length
        powers = [2**k for k in range(5, longest.bit_length()) if 2**k < longest]
        return (*powers, longest)

    def rows(self, wanted: int) -> int:
        """A batch of at least ``wanted`` rows that the mesh can split evenly."""
        ways = sharding.batch_ways(self.mesh)
        return -(-wanted // ways) * ways


def open_session(config: Any, workdir: str | pathlib.Path, command: str) -> Session:
    """Checks the config, claims the work directory, prepares the data, builds the model.

    Raises:
      UserError: whatever the user can mend, before any long work starts.
    """
    processes.initialise()
    mesh = sharding.make_mesh(
        replica=config.mesh.replica, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor
    )
    _check(config, mesh)
    folder = WorkDir(workdir, config)
    reporter = Reporter(config.logging.progress)
    data = _prepare(config, folder, reporter)
    n = len(data.names)
    weights = config_lib.numbers("influence.weights", config.influence.weights, float, n)
    weights = weights or (1.0,) * n
    if min(weights) < 0 or sum(weights) <= 0:
        raise UserError(f"influence.weights={config.influence.weights}: needs a positive sum, no negatives")
    folder.describe(config, command, mesh)
    model = Decoder(decoder_config(config.model, len(data.tokenizer)))
    share = tuple(w / sum(weights) for w in weights)
    return Session(config, folder, mesh, data, model, reporter, share)


def decoder_config(model: Any, vocab_size: int) -> DecoderConfig:
    """The decoder of the ``model`` section."""
    if model.n_heads % model.n_kv_heads:
        raise UserError(
            f"model.n_heads={model.n_heads} is no multiple of model.n_kv_heads={model.n_kv_heads}"
        )
    for key in ("dtype", "param_dtype"):
        config_lib.choice(f"model.{key}", model[key], ("float32", "bfloat16", "float64"))
    shape = {key: value for key, value in model.items() if key != "init"}
    return DecoderConfig(vocab_size=vocab_size, **shape)


def abstract_params(model: Decoder, mesh: jax.sharding.Mesh) -> Any:
    """``jax.ShapeDtypeStruct``s of the parameters with their shardings."""
    boxed = jax.eval_shape(lambda: _init(model, 0))
    shardings = sharding.parameter_shardings(mesh, boxed)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), shardings
    )


def random_params(model: Decoder, mesh: jax.sharding.Mesh, seed: int) -> Any:
    """A random initialisation, born sharded."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_params(model, mesh))
    return sharding.born(mesh, lambda: nn.unbox(_init(model, seed)), shardings)


def _init(model: Decoder, seed: int) -> Any:
    return model.init(jax.random.key(seed), jnp.zeros((1, 8), jnp.int32))["params"]


def _check(config: Any, mesh: jax.sharding.Mesh) -> None:
    ways = sharding.batch_ways(mesh)
    for section in ("base", "training"):
        size = config[section].batch_size
        slices = ways * (config.training.micro_batches if section == "training" else 1)
        if size <= 0 or size % slices:
            raise UserError(
                f"{section}.batch_size={size} is no multiple of {slices} (mesh.replica × "
                "mesh.fsdp × training.micro_batches)"
            )
    if config.training.steps <= 0 and config.training.epochs <= 0:
        raise UserError("training.steps and training.epochs are both 0: nothing to train")
    config_lib.choice("loss.reduction", config.loss.reduction, ("token", "example"))
    config_lib.choice(
        "influence.damping_mode", config.influence.damping_mode, ("relative", "absolute")
    )
    for task in config_lib.names(config.eval.tasks):
        config_lib.choice("eval.tasks", task, ("exact_match",))
    if not 0 < config.influence.fraction <= 1:
        raise UserError(f"influence.fraction={config.influence.fraction} is not in (0, 1]")
    if not 0 < config.mixture.step < 1:
        raise UserError(f"mixture.step={config.mixture.step} is not between 0 and 1")


def _prepare(config: Any, folder: WorkDir, reporter: Reporter) -> Dataset:
    target = folder.path / "data"
    with reporter.phase("data") as advance:

        def progress(name: str, done: int, total: int | None) -> None:
            advance(done, total, name)

        if processes.is_writer():
            data = prepare(config.data, target, config.seed, progress=progress)
        processes.barrier("data")
        return data if processes.is_writer() else prepare(config.data, target, config.seed)
