"""What every phase of a run shares: config, devices, data, model."""

import math
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from ideal_jax import config as config_lib
from ideal_jax import processes, sharding, training
from ideal_jax.data import Dataset, ending, prepare, synthetic
from ideal_jax.data.sources import find_sources, is_built_in
from ideal_jax.errors import UserError
from ideal_jax.influence.decoder import decoder_problem
from ideal_jax.mixture import MixtureState, check_bounds, check_floor, natural_counts
from ideal_jax.models import Decoder, abstract_params, forward_mode
from ideal_jax.runs import cluster
from ideal_jax.runs.base_model import (
    check_model,
    open_model,
    remarks,
    with_attention,
    without_adapters,
)
from ideal_jax.runs.influence_options import check_influence
from ideal_jax.runs.model_tokenizer import Choice, check_vocabulary, choose_tokenizer
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
    given: MixtureState  # the mixture of round 0

    @property
    def names(self) -> tuple[str, ...]:
        """The domains."""
        return self.data.names

    @property
    def whole_model(self) -> Decoder:
        """The decoder with any adapters merged into its matrices."""
        return without_adapters(self.model)

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
    cluster.initialise()
    config_lib.check(config)
    mesh = sharding.make_mesh(**config.mesh.to_dict())
    check(config, mesh)
    tokenizer = choose_tokenizer(config)
    folder = WorkDir(workdir, config)
    reporter = Reporter(config.logging.progress)
    data = _prepare(config, tokenizer, folder, reporter)
    check_vocabulary(config, data.tokenizer)
    _check_sizes(data)
    weights = capability_weights(config, len(data.names))
    given = _given_mixture(config, data)
    model = with_attention(config, open_model(config, len(data.tokenizer)), mesh)
    for line in remarks(config, model):
        reporter.say(line)
    reporter.say(
        f"attention: {model.cfg.attention} ({model.cfg.remat} rematerialised), and"
        f" {forward_mode(model.cfg).attention} where influence needs a forward mode"
    )
    abstract_params(model, mesh)  # every dimension is divisible by its mesh axis
    decoder_problem(model, config.influence.layers, config.influence.max_factor)
    folder.describe(config, command, mesh, data.digest)
    return Session(config, folder, mesh, data, model, reporter, weights, given)


def capability_weights(config: Any, n: int) -> tuple[float, ...]:
    """v of ``n`` capabilities; sums to 1."""
    text = config.influence.weights
    weights = config_lib.numbers("influence.weights", text, float, n) or (1.0,) * n
    total = sum(weights)
    if min(weights) < 0 or not 0 < total < math.inf:
        raise UserError(f"influence.weights={text}: needs a positive sum, no negatives")
    return tuple(w / total for w in weights)


def given_counts(config: Any, n: int) -> tuple[int, ...] | None:
    """``mixture.counts`` of ``n`` domains; None: as many as ``mixture.examples`` allows."""
    rule = config.mixture
    counts = config_lib.numbers("mixture.counts", rule.counts, int, n)
    if counts is not None and min(counts) < 1:
        raise UserError(f"mixture.counts={rule.counts}: every domain needs at least one example")
    if counts is None and 0 < rule.examples < n:
        raise UserError(f"mixture.examples={rule.examples}: {n} domains need at least one each")
    check_floor(n, rule.min_share)
    return counts


def _given_mixture(config: Any, data: Dataset) -> MixtureState:
    n, rule = len(data.names), config.mixture
    available = np.asarray([len(data.train[name]) for name in data.names], np.int64)
    given = given_counts(config, n)
    counts = natural_counts(available, rule.examples) if given is None else np.asarray(given)
    state = MixtureState(data.names, available, counts, np.zeros(n), 0)
    check_bounds(state, min_share=rule.min_share, max_repetition=rule.max_repetition)
    return state


def check(config: Any, mesh: jax.sharding.Mesh) -> None:
    """Which values of several keys do not go together; ``config.check`` has looked at each.

    Raises:
      UserError: names the keys.
    """
    ways = sharding.batch_ways(mesh)
    for section in ("base", "training"):
        size = config[section].batch_size
        slices = ways * (config.training.micro_batches if section == "training" else 1)
        if size % slices:
            raise UserError(
                f"{section}.batch_size={size} is no multiple of {slices} (mesh.replica × "
                "mesh.fsdp × training.micro_batches)"
            )
    if not config.training.steps and not config.training.epochs:
        raise UserError("training.steps and training.epochs are both 0: nothing to train")
    check_model(config)
    training.schedule(config.training, 1)
    training.traced_steps(config.logging.trace)
    if config.logging.tensorboard:
        training.check_tensorboard()
    check_influence(config)


def _check_sizes(data: Dataset) -> None:
    """Every mean that a round reports needs two examples to have an error bar."""
    for name in data.names:
        for split, least in (("reference", 4), ("test", 2)):  # the reference set is halved
            found = len(getattr(data, split)[name])
            if found < least:
                raise UserError(
                    f"domain {name} has {found} {split} examples; at least {least} are needed"
                )


def _prepare(config: Any, tokenizer: Choice, folder: WorkDir, reporter: Reporter) -> Dataset:
    target, section = folder.path / "data", data_section(config, tokenizer)
    tell_tokenizer(tokenizer, reporter)

    def check() -> None:
        # What depends on the number of domains is told before their texts are read.
        if (target / "dataset.json").exists():
            return
        if is_built_in(config.data):
            n = len(config_lib.names(config.data.domains) or synthetic.DOMAINS)
        else:
            n = len(find_sources(config.data))
        capability_weights(config, n)
        given_counts(config, n)

    processes.writer_first(check)
    with reporter.phase("data", {"tokenize": 1.0}) as advance:

        def progress(name: str, done: int, total: int | None) -> None:
            advance(done, total, name)

        data = processes.writer_first(
            lambda: prepare(section, target, config.seed, progress, tokenizer.own)
        ) or prepare(section, target, config.seed)
    tell_left_out(data, reporter)
    return data


def data_section(config: Any, tokenizer: Choice | None = None) -> Any:
    """The ``data`` section, with the name or folder of the tokenizer that is meant."""
    section = config.data.copy_and_resolve_references()
    with section.unlocked():
        section.tokenizer = (tokenizer or choose_tokenizer(config)).spec
    return section


def tell_tokenizer(tokenizer: Choice, reporter: Reporter) -> None:
    """Prints what is to be known of the tokenizer, if anything is."""
    if tokenizer.told:
        reporter.say(tokenizer.told)


def tell_left_out(data: Dataset, reporter: Reporter) -> None:
    """Prints how many examples of each domain were held out, left out or cut, and why; and what
    ends an answer, where the chat template does not close it in the usual way."""
    if told := ending(data.tokenizer).told:
        reporter.say(f"data: {told}")
    for name, sets in data.cut.items():
        for part, counts in sets.items():
            if not counts["wanted"]:
                continue
            few = counts["held_out"] < counts["wanted"]
            asked = f"the {counts['wanted']} of data.{part}_examples"
            told = f", not {asked}: too large a part of them" if few else ""
            reporter.say(
                f"data: {name}: no {part} set is given: {counts['held_out']} of "
                f"{counts['eligible']} train examples are held out as one{told}",
            )
    for name, counts in data.left_out.items():
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        if told:
            line = f"data: {name}: examples left out or cut: {told}"
            reporter.say(line)
