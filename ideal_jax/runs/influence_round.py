"""The influence of every domain on every capability at one round's model."""

from collections.abc import Sequence
from typing import Any

import jax

from ideal_jax import sharding
from ideal_jax.influence import ENDINGS, Diagnostics, Sample, estimate, metagradient, needs_of
from ideal_jax.influence.checks import remedy
from ideal_jax.influence.decoder import decoder_problem
from ideal_jax.mixture import InfluenceMatrix, MixturePlan, MixtureState, update
from ideal_jax.models import Decoder, forward_mode
from ideal_jax.models.lora import with_frozen
from ideal_jax.runs.influence_cost import Price, round_flops
from ideal_jax.runs.influence_examples import extreme_examples
from ideal_jax.runs.influence_options import influence_options
from ideal_jax.runs.influence_progress import InfluenceProgress
from ideal_jax.runs.influence_record import decision, influence_json
from ideal_jax.runs.influence_samples import (
    curvature_batches,
    domain_weights,
    reference_samples,
    training_stages,
)
from ideal_jax.runs.session import Session
from ideal_jax.runs.train_run import (
    Recipe,
    Trained,
    round_recipe,
    start,
    trained_shapes,
    weighted,
)
from ideal_jax.training import make_train_step, second_moment, start_state


def influence_round(
    session: Session,
    state: MixtureState,
    plan: MixturePlan,
    trained: Trained,
    order: int = 0,
    title: str = "influence",
) -> dict[str, Any]:
    """``influence.json`` of one trained model, with the β it proposes.

    Args:
      session, state, plan: of the round.
      trained: the end of its training.
      order: the row order it was trained in; only a replay needs to know.
      title: what the terminal calls it.
    """
    config, options = session.config, session.config.influence
    told = InfluenceProgress(session.reporter, title)
    with told as progress, jax.set_mesh(session.mesh):
        references = reference_samples(session, trained.frozen, options.reference_examples)
        if needs_of(options.estimator).run:
            measured = _replayed(session, state, plan, trained, references, order, progress)
        else:
            measured = _estimated(session, state, plan, trained, references, progress)
    matrix, record = measured
    share = record["flops"] / round_flops(session, plan)
    line = f"{title} cost {share:.1%} of the FLOPs of a round's training"
    if "ended" in record:
        line += f"; {matrix.examples_used} examples scored: {record['ended']}"
    session.reporter.say(line)
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
        "flops_share": share,
        "reduction": config.loss.reduction,
        "reference_shares": list(session.capability_weights),
        "seconds": told.seconds(),
    }


def _estimated(
    session: Session,
    state: MixtureState,
    plan: MixturePlan,
    trained: Trained,
    references: dict[str, Sample],
    progress: InfluenceProgress,
) -> tuple[InfluenceMatrix, dict[str, Any]]:
    """By a curvature at the trained parameters."""
    config, options = session.config, session.config.influence
    needs = needs_of(options.estimator)
    problem = decoder_problem(session.model, options.layers, options.max_factor)
    curvature = list(curvature_batches(session, trained.frozen, state, plan))
    spread = reference_samples(session, trained.frozen, options.spread_examples)
    price = Price(session, problem, references, spread, curvature)
    allowed = options.budget * round_flops(session, plan)
    tokens = price.affordable(allowed)
    stages = training_stages(session, trained.frozen, state, plan, tokens)
    # Few examples leave more padding than was allowed for.
    while len(stages.parts) > 1 and allowed < price.paid(
        stages.parts, stages.parts, options.iterations
    ):
        tokens *= 0.95
        stages = training_stages(session, trained.frozen, state, plan, tokens)
    progress.expect(
        price.work(stages.parts, stages.parts, options.iterations), price.steps(stages.parts)
    )
    matrix, diagnostics = estimate(
        problem,
        trained.params,
        domains=stages.parts[0],
        more=stages.parts[1:],
        references=references,
        spread=spread,
        curvature=[batch for part in curvature for batch in part],
        estimator=options.estimator,
        options=influence_options(config),
        centred=options.centred,
        confidence=options.confidence,
        weights=dict(zip(session.names, session.capability_weights, strict=True)),
        key=jax.random.key(config.seed),
        tangents=options.tangents or None,
        second_moment=_second_moment(session, trained) if needs.second_moment else None,
        progress=progress,
    )
    scored = stages.parts[: diagnostics.stages]
    ended = ENDINGS[diagnostics.ended]
    if diagnostics.ended == "given" and stages.limited:
        ended = f"influence.budget={options.budget:g} of a training round is spent"
    return matrix, {
        "iterations": diagnostics.iterations.tolist(),
        "domain_residual": diagnostics.domain_residual.tolist(),
        "remedy": remedy(needs, influence_options(config)),
        "interval": {
            "level": options.confidence,
            **{key: value.tolist() for key, value in diagnostics.intervals._asdict().items()},
        },
        **{f"alpha_{part}": alpha.tolist() for part, alpha in diagnostics.alpha_parts.items()},
        "important_share": important_share(matrix, diagnostics),
        "smallest_eigenvalue": diagnostics.smallest_eigenvalue,
        "layers": [layer.name for layer in problem.taps.layers] if problem.taps else [],
        "examples": extreme_examples(session, matrix, diagnostics, scored),
        "ended": ended,
        "flops": price.paid(scored, stages.parts, int(diagnostics.iterations.max())),
    }


def _second_moment(session: Session, trained: Trained) -> Any:
    return second_moment(trained.state.opt_state, session.config.training.beta2)


def important_share(matrix: InfluenceMatrix, diagnostics: Diagnostics) -> float | None:
    """How much of the α of all layers the important ones keep: its projection on that α."""
    if "unimportant" not in diagnostics.alpha_parts:
        return None
    every = matrix.alpha + diagnostics.alpha_parts["unimportant"]
    return float(matrix.alpha @ every / (every @ every))


def _replayed(
    session: Session,
    state: MixtureState,
    plan: MixturePlan,
    trained: Trained,
    references: dict[str, Sample],
    order: int,
    progress: InfluenceProgress,
) -> tuple[InfluenceMatrix, dict[str, Any]]:
    """By the derivative of the training that ended in ``trained``."""
    # The replay is differentiated as the training itself never is: forwards.
    model = Decoder(forward_mode(session.model.cfg), session.model.origin)
    session = session._replace(model=model)
    recipe, mesh = round_recipe(session, plan, order=order), session.mesh
    problem = decoder_problem(session.model)
    trajectory = metagradient.Trajectory(
        start=start_state(mesh, start(session).params, recipe.optimizer),
        step=make_train_step(recipe.loss_fn, recipe.optimizer, recipe.micro_batches),
        weigh=weighted,
        batches=_Steps(session, recipe, trained.frozen),
        params=lambda state: state.params,
        final=trained.params,
        domains=session.names,
    )
    _announce_replay(session, plan, len(references))
    progress.expect({"replay": 1.0}, {})
    replay = {"forward": metagradient.forward, "reverse": metagradient.reverse}
    mode = session.config.influence.replay
    found = replay[mode](trajectory, problem.example_loss, references, progress=progress)
    weight = domain_weights(session, plan)
    matrix = metagradient.metagradient_matrix(
        found,
        references=tuple(references),
        domains=session.names,
        shares=weight / weight.sum(),
        weights=session.capability_weights,
    )
    flops = round_flops(session, plan) * metagradient.runs(mode, len(weight), len(references))
    return matrix, {"iterations": [0] * len(references), "layers": [], "flops": flops}


def _announce_replay(session: Session, plan: MixturePlan, references: int) -> None:
    """Says what the metagradient will cost before it starts."""
    mode, n = session.config.influence.replay, len(session.names)
    recipe = round_recipe(session, plan)
    state = 3 * sum(  # parameters and Adam's two moments
        x.size * x.dtype.itemsize for x in jax.tree.leaves(trained_shapes(session))
    )
    runs = metagradient.runs(mode, n, references)
    states = metagradient.states(mode, recipe.steps, n, references)
    session.reporter.say(
        f"metagradient, {mode}: as much work as {runs:.0f} trainings"
        f" ({runs * round_flops(session, plan):.2g} FLOPs), and {states:.0f} training states in"
        f" memory ({states * state / 2**20:,.0f} MiB over all devices)"
    )


class _Steps(Sequence[Any]):
    """The batches of a training, put on the mesh when they are asked for."""

    def __init__(self, session: Session, recipe: Recipe, frozen: Any):
        self._mesh, self._recipe, self._frozen = session.mesh, recipe, frozen

    def __len__(self) -> int:
        return self._recipe.steps

    def __getitem__(self, step: Any) -> Any:
        recipe = self._recipe
        if not 0 <= step < recipe.steps:
            raise IndexError(step)
        batch = sharding.place(self._mesh, recipe.batches[step], recipe.batch_size)
        return with_frozen(batch, self._frozen)
