"""The influence of every domain on every capability at one round's model."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ideal_jax import sharding
from ideal_jax.data import example_batches
from ideal_jax.influence import Diagnostics, Sample, estimate
from ideal_jax.influence.decoder import decoder_problem
from ideal_jax.mixture import (
    InfluenceMatrix,
    MixturePlan,
    MixtureState,
    is_settled,
    permutation,
    update,
)
from ideal_jax.mixture.update import Z95
from ideal_jax.runs import cost
from ideal_jax.runs.evaluate_run import reference_halves
from ideal_jax.runs.session import Session, influence_options

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
    session: Session, state: MixtureState, plan: MixturePlan, params: Any
) -> dict[str, Any]:
    """``influence.json`` of one trained model, with the β it proposes."""
    config, options = session.config, session.config.influence
    name = f"round {state.round}: influence"
    problem = decoder_problem(session.model, options.layers, options.max_factor)
    domains = _domain_samples(session, state, plan)
    references = {}
    for j, domain in enumerate(session.names):
        items = reference_halves(session, j)[0][: options.reference_examples]
        references[domain] = Sample(Placed(session, "reference", j, items), len(items))
    curvature = list(_curvature(session, state, plan))
    clock = _PhaseClock()
    with session.reporter.phase(name) as advance, jax.set_mesh(session.mesh):

        def progress(phase: str, done: int, total: int) -> None:
            clock.tick(phase)
            advance(done, total, phase)

        matrix, diagnostics = estimate(
            problem,
            params,
            domains=domains,
            references=references,
            curvature=curvature,
            estimator=options.estimator,
            options=influence_options(config),
            centred=options.centred,
            weights=dict(zip(session.names, session.capability_weights, strict=True)),
            key=jax.random.key(config.seed),
            tangents=options.tangents or None,
            progress=progress,
        )
    flops = _flops(session, domains, references, curvature, matrix, diagnostics)
    record = influence_json(matrix, diagnostics)
    following = update(
        state,
        matrix,
        step=config.mixture.step,
        keep_total=config.mixture.keep_total,
        min_share=config.mixture.min_share,
        max_repetition=config.mixture.max_repetition,
    )
    return {
        **record,
        "beta": following.beta.tolist(),
        "counts": following.counts.tolist(),
        "decision": _decision(matrix),
        "layers": [layer.name for layer in problem.taps.layers] if problem.taps else [],
        "reduction": config.loss.reduction,
        "reference_shares": list(session.capability_weights),
        "flops": flops,
        "seconds": clock.seconds(),
    }


def influence_json(matrix: InfluenceMatrix, diagnostics: Diagnostics) -> dict[str, Any]:
    """The numbers of an influence matrix as JSON."""
    return {
        "estimator": matrix.estimator,
        "references": list(matrix.references),
        "domains": list(matrix.domains),
        "matrix": matrix.matrix.tolist(),
        "stderr": matrix.stderr.tolist(),
        "stderr_train": matrix.stderr_train.tolist(),
        "stderr_reference": matrix.stderr_reference.tolist(),
        "alpha": matrix.alpha.tolist(),
        "alpha_stderr": matrix.alpha_stderr.tolist(),
        "examples_used": matrix.examples_used,
        "shares": matrix.shares.tolist(),
        "centred": matrix.centred,
        "common_mode": matrix.common_mode,
        "solve_residual": matrix.solve_residual.tolist(),
        "damping": {
            "mode": matrix.damping_mode,
            "value": matrix.damping_value,
            "absolute": matrix.damping,
        },
        "iterations": diagnostics.iterations.tolist(),
        "alpha_uncovered": (
            None if diagnostics.alpha_uncovered is None else diagnostics.alpha_uncovered.tolist()
        ),
    }


def influence_of_json(record: dict[str, Any]) -> InfluenceMatrix:
    """The inverse of ``influence_json``."""
    arrays = ("matrix", "stderr", "alpha", "alpha_stderr", "stderr_train", "stderr_reference")
    return InfluenceMatrix(
        references=tuple(record["references"]),
        domains=tuple(record["domains"]),
        **{name: np.asarray(record[name]) for name in arrays},
        common_mode=record["common_mode"],
        shares=np.asarray(record["shares"]),
        examples_used=record["examples_used"],
        estimator=record["estimator"],
        damping=record["damping"]["absolute"],
        damping_mode=record["damping"]["mode"],
        damping_value=record["damping"]["value"],
        solve_residual=np.asarray(record["solve_residual"]),
        centred=record["centred"],
    )


def _decision(matrix: InfluenceMatrix) -> dict[str, Any]:
    stopped = is_settled(matrix)
    known = [
        name
        for name, a, e in zip(matrix.domains, matrix.alpha, matrix.alpha_stderr, strict=True)
        if abs(a) > Z95 * e
    ]
    reason = (
        "No domain's α exceeds its 95 % error: nothing is known to be worth changing."
        if stopped
        else f"α exceeds its 95 % error for {', '.join(known)}."
    )
    return {"stopped": stopped, "reason": reason}


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


def _flops(
    session: Session,
    domains: dict[str, Sample],
    references: dict[str, Sample],
    curvature: Sequence[Any],
    matrix: InfluenceMatrix,
    diagnostics: Diagnostics,
) -> float:
    """Matrix products of all passes, in units of a forward pass (design: a jvp tangent costs 2)."""
    cfg, length = session.model.cfg, session.config.data.row_length
    scored = sum(_positions(sample.batches) for sample in domains.values())
    held = sum(_positions(sample.batches) for sample in references.values())
    curved = _positions(curvature)
    R, n = len(references), len(domains)
    forwards = 1.0 * scored * (3 + 1 + 2 * R) + held * (3 + 1 + 2 * n)
    if matrix.estimator != "identity":
        forwards += curved * (3 * (2 if matrix.estimator == "kfac" else 3))
    if matrix.estimator == "ggn_cg":
        products = float(diagnostics.iterations.max() + 1) * (R + n)
        forwards += curved * products * 4
    return cost.forward_flops(cfg, forwards, length)


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
