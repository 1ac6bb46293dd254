"""The influence of every domain on every capability at one round's model."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ideal_jax import sharding
from ideal_jax.data import example_batches
from ideal_jax.influence import Sample, estimate, metagradient
from ideal_jax.influence.decoder import decoder_problem
from ideal_jax.influence.estimators import METAGRADIENT
from ideal_jax.influence.problem import Progress
from ideal_jax.mixture import (
    InfluenceMatrix,
    MixturePlan,
    MixtureState,
    permutation,
    update,
)
from ideal_jax.runs import cost
from ideal_jax.runs.evaluate_run import reference_halves
from ideal_jax.runs.influence_record import decision, influence_json
from ideal_jax.runs.session import Session, influence_options
from ideal_jax.runs.train_run import Recipe, Trained, base_params, round_recipe, weighted
from ideal_jax.training import make_train_step, second_moment, start_state

# Salts of the permutations that draw the scored and the curvature examples.
_SCORE_SALT, _CURVATURE_SALT = 102, 103


class Placed(Sequence[Any]):
    """Batches of single examples, put on the mesh when they are asked for."""

    def __init__(self, session: Session, split: str, domain: int, items: np.ndarray):
        store = getattr(session.data, split)[session.names[domain]]
        self._mesh = session.mesh
        self._batches = example_batches(
            store,
            items,
            domain,
            batch_size=session.rows(session.config.influence.batch_size),
            lengths=session.widths,
            reduction=session.config.loss.reduction,
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: Any) -> Any:
        return sharding.place(self._mesh, self._batches[number])


def influence_round(
    session: Session, state: MixtureState, plan: MixturePlan, trained: Trained, order: int = 0
) -> dict[str, Any]:
    """``influence.json`` of one trained model, with the β it proposes.

    Args:
      session, state, plan: of the round.
      trained: the end of its training.
      order: the row order it was trained in; only a replay needs to know.
    """
    config, options = session.config, session.config.influence
    references = reference_samples(session)
    domains = _domain_samples(session, state, plan)
    clock = _PhaseClock()
    with (
        session.reporter.phase(f"round {state.round}: influence") as advance,
        jax.set_mesh(session.mesh),
    ):

        def progress(phase: str, done: int, total: int) -> None:
            clock.tick(phase)
            advance(done, total, phase)

        if options.estimator == METAGRADIENT:
            measured = _replayed(session, plan, trained, references, domains, order, progress)
        else:
            measured = _estimated(session, state, plan, trained, references, domains, progress)
    matrix, record = measured
    following = update(
        state,
        matrix,
        step=config.mixture.step,
        keep_total=config.mixture.keep_total,
        min_share=config.mixture.min_share,
        max_repetition=config.mixture.max_repetition,
    )
    return {
        **influence_json(matrix),
        **record,
        "beta": following.beta.tolist(),
        "counts": following.counts.tolist(),
        "decision": decision(matrix),
        "reduction": config.loss.reduction,
        "reference_shares": list(session.capability_weights),
        "seconds": clock.seconds(),
    }


def reference_samples(session: Session) -> dict[str, Sample]:
    """The half of every reference set that ∇Q is taken over."""
    samples = {}
    for j, domain in enumerate(session.names):
        items = reference_halves(session, j)[0][: session.config.influence.reference_examples]
        samples[domain] = Sample(Placed(session, "reference", j, items), len(items))
    return samples


def _estimated(
    session: Session,
    state: MixtureState,
    plan: MixturePlan,
    trained: Trained,
    references: dict[str, Sample],
    domains: dict[str, Sample],
    progress: Progress,
) -> tuple[InfluenceMatrix, dict[str, Any]]:
    """By a curvature at the trained parameters."""
    config, options = session.config, session.config.influence
    problem = decoder_problem(session.model, options.layers, options.max_factor)
    curvature = list(_curvature(session, state, plan))
    matrix, diagnostics = estimate(
        problem,
        trained.params,
        domains=domains,
        references=references,
        curvature=curvature,
        estimator=options.estimator,
        options=influence_options(config),
        centred=options.centred,
        weights=dict(zip(session.names, session.capability_weights, strict=True)),
        key=jax.random.key(config.seed),
        tangents=options.tangents or None,
        second_moment=_second_moment(session, trained) if options.estimator == "adam" else None,
        progress=progress,
    )
    uncovered = diagnostics.alpha_uncovered
    return matrix, {
        "iterations": diagnostics.iterations.tolist(),
        "alpha_uncovered": None if uncovered is None else uncovered.tolist(),
        "smallest_eigenvalue": diagnostics.smallest_eigenvalue,
        "layers": [layer.name for layer in problem.taps.layers] if problem.taps else [],
        "flops": cost.influence_flops(
            session.model.cfg,
            config.data.row_length,
            matrix,
            scored=sum(_positions(sample.batches) for sample in domains.values()),
            held=sum(_positions(sample.batches) for sample in references.values()),
            curved=_positions(curvature),
            products=int(diagnostics.iterations.max()),
            probes=options.iterations,
        ),
    }


def _second_moment(session: Session, trained: Trained) -> Any:
    return second_moment(trained.state.opt_state, session.config.training.beta2)


def _replayed(
    session: Session,
    plan: MixturePlan,
    trained: Trained,
    references: dict[str, Sample],
    domains: dict[str, Sample],
    order: int,
    progress: Progress,
) -> tuple[InfluenceMatrix, dict[str, Any]]:
    """By the derivative of the training that ended in ``trained``."""
    recipe, mesh = round_recipe(session, plan, order=order), session.mesh
    problem = decoder_problem(session.model)
    trajectory = metagradient.Trajectory(
        start=start_state(mesh, base_params(session), recipe.optimizer),
        step=make_train_step(recipe.loss_fn, recipe.optimizer, recipe.micro_batches),
        weigh=weighted,
        batches=_Steps(session, recipe),
        params=lambda state: state.params,
        final=trained.params,
        domains=session.names,
    )
    replay = {"forward": metagradient.forward, "reverse": metagradient.reverse}
    mode = session.config.influence.replay
    found = replay[mode](trajectory, problem.example_loss, references, progress=progress)
    weight = np.array([sample.weight for sample in domains.values()], np.float64)
    matrix = metagradient.metagradient_matrix(
        found,
        references=tuple(references),
        domains=session.names,
        shares=weight / weight.sum(),
        weights=session.capability_weights,
    )
    passes = {"forward": 2 + 2 * len(domains), "reverse": 4 + 4 * len(references)}[mode]
    flops = trained.record["flops"] * passes
    return matrix, {"iterations": [0] * len(references), "layers": [], "flops": flops}


class _Steps(Sequence[Any]):
    """The batches of a training, put on the mesh when they are asked for."""

    def __init__(self, session: Session, recipe: Recipe):
        self._mesh, self._recipe = session.mesh, recipe

    def __len__(self) -> int:
        return self._recipe.steps

    def __getitem__(self, step: Any) -> Any:
        recipe = self._recipe
        if not 0 <= step < recipe.steps:
            raise IndexError(step)
        return sharding.place(self._mesh, recipe.batches[step], recipe.batch_size)


def _domain_samples(session: Session, state: MixtureState, plan: MixturePlan) -> dict[str, Sample]:
    """σ of every domain's current multiset, with the exact total weight of the whole."""
    config, samples = session.config, {}
    for j, domain in enumerate(session.names):
        items, supervised = plan.items(j), session.data.train[domain].supervised
        count = len(items)
        drawn = min(count, max(2, round(config.influence.fraction * count)))
        order = permutation(count, config.seed, j, state.round, _SCORE_SALT)
        by_token = config.loss.reduction == "token"
        weight = float(supervised[items].sum()) if by_token else float(count)
        batches = Placed(session, "train", j, items[np.sort(order[:drawn])])
        samples[domain] = Sample(batches, count, drawn, weight)
    return samples


def _curvature(session: Session, state: MixtureState, plan: MixturePlan) -> Iterator[Any]:
    """Placed batches of examples drawn evenly from the whole multiset."""
    config = session.config
    owners = np.repeat(np.arange(len(session.names)), state.counts)
    items = np.concatenate([plan.items(j) for j in range(len(session.names))])
    order = permutation(len(items), config.seed, state.round, _CURVATURE_SALT)
    chosen = np.sort(order[: config.influence.curvature_examples])
    for j in range(len(session.names)):
        mine = chosen[owners[chosen] == j]
        if len(mine):
            yield from Placed(session, "train", j, items[mine])


def _positions(batches: Sequence[Any]) -> int:
    """Tokens that are computed, padding included."""
    return sum(batch["tokens"].size for batch in batches)


class _PhaseClock:
    """Wall seconds by phase name."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._phase, self._since = "", time.perf_counter()

    def tick(self, phase: str) -> None:
        now = time.perf_counter()
        if self._phase:
            self._spent[self._phase] = self._spent.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def seconds(self) -> dict[str, float]:
        self.tick("")
        return self._spent
