"""What a plan says an estimator costs: what it declares, what a run records, what programs do."""

import dataclasses
import json

import jax
import pytest

from ideal_jax import cli, config, sharding
from ideal_jax.influence import ESTIMATORS, Needs, curvature, kfac, needs_of
from ideal_jax.influence.decoder import decoder_problem
from ideal_jax.influence.estimators import METAGRADIENT
from ideal_jax.influence.passes import Placement
from ideal_jax.influence.problem import leaf_indices
from ideal_jax.models import Decoder, DecoderConfig, LoRA
from ideal_jax.runs import cost
from ideal_jax.runs.influence_cost import Price, round_flops
from ideal_jax.runs.influence_samples import curvature_batches, reference_samples, training_stages
from ideal_jax.runs.planning import programs
from ideal_jax.runs.planning.counted import matrix_flops
from ideal_jax.runs.planning.forecast import forecast
from ideal_jax.runs.planning.layers import factored
from ideal_jax.runs.planning.setting import read_amounts, read_setting
from ideal_jax.runs.planning.topology import parse_topology
from ideal_jax.runs.session import open_session

SMALL = DecoderConfig(
    vocab_size=64, d_model=128, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=64, d_ff=256
)
ALL = (*ESTIMATORS, METAGRADIENT)


def smallest(runs, estimator, **options):
    c = config.load(runs.config)
    c.influence.estimator = estimator
    c.influence.reference_examples = 12
    c.influence.spread_examples = 12
    for name, value in options.items():
        c.influence[name] = value
    return c


def planned(c):
    return forecast(read_setting(c, parse_topology("cpu:1")), read_amounts(c), 0.0)


@pytest.mark.parametrize("name", ALL)
def test_every_estimator_is_planned(runs, name):
    plan = planned(smallest(runs, name))
    assert plan["cost"]["influence_flops"] > 0
    assert set(plan["memory"]) <= set(plan["phases"])


def test_prices_are_in_the_order_of_the_work(runs):
    c = smallest(runs, "identity")
    price = {}
    for name in ALL:
        c.influence.estimator = name
        price[name] = planned(c)["cost"]["influence_flops"]
    order = ["identity", "fisher_diag", "ekfac", "ggn_cg", "hessian_cg"]
    assert sorted(order, key=price.get) == order
    assert price["adam"] == price["identity"]
    assert price["kfac"] < price["ekfac"]
    training = planned(c)["cost"]["train_flops"] / 2  # a round and an update: two trainings
    assert price[METAGRADIENT] == pytest.approx((2 + 2 * 2) * training)
    c = smallest(runs, METAGRADIENT, replay="reverse")
    assert planned(c)["cost"]["influence_flops"] == pytest.approx((4 + 4 * 2) * training)


@pytest.mark.parametrize("name", ["ggn_cg", "hessian_cg"])
def test_products_are_counted(runs, name):
    few, many = (planned(smallest(runs, name, iterations=k)) for k in (3, 9))
    products = [plan["phases"]["product"]["executions"] for plan in (few, many)]
    assert products[1] / products[0] == (9 + 1) / (3 + 1)
    assert ("lanczos" in few["phases"]) == (name == "hessian_cg")
    one = planned(smallest(runs, name, iterations=3, tangents=1))
    assert one["phases"]["product"]["executions"] == 2 * products[0]


@pytest.fixture(scope="module")
def session(runs, tmp_path_factory):
    """The run that ``whole`` is of, opened and not begun."""
    c = smallest(runs, "identity")
    return open_session(c, tmp_path_factory.mktemp("priced") / "w", "")


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_plan_is_within_a_factor_of_what_a_run_records(runs, session, name):
    """Of 1.6: rows are padded to powers of two there, and filled by 95 % here."""
    c = session.config.copy_and_resolve_references()
    c.influence.estimator = name
    here = session._replace(config=c)
    from ideal_jax.runs.ideal_run import plan_of

    state, plan = here.given, plan_of(here, here.given)
    references = reference_samples(here, {}, c.influence.reference_examples)
    batches = list(curvature_batches(here, {}, state, plan))
    problem = decoder_problem(here.model, c.influence.layers, c.influence.max_factor)
    price = Price(here, problem, references, references, batches)
    stages = training_stages(here, {}, state, plan, 0.0).parts
    paid = price.paid(stages, stages, c.influence.iterations)
    lengths = [x for d in here.names for x in here.data.train[d].lengths]
    c.plan.example_tokens = round(sum(lengths) / len(lengths))
    c.mixture.counts = ",".join(map(str, state.counts))
    told = planned(c)["cost"]
    assert told["influence_flops"] == pytest.approx(paid, rel=0.6)
    assert told["influence_flops"] > paid / 1.6
    assert told["train_flops"] == pytest.approx(2 * round_flops(here, plan), rel=0.1)


def test_the_run_records_its_price(runs, whole, session):
    """``influence.json`` of the undisturbed run has what ``Price`` says of it."""
    told = json.loads((whole / "rounds/00/influence.json").read_text())
    results = json.loads((whole / "results.json").read_text())
    assert told["flops"] == results["cost"]["influence_flops"] > 0


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("kind", ["gauss_newton", "hessian"])
@pytest.mark.parametrize("adapters", [False, True])
def test_a_product_costs_its_formula(kind, vectors, adapters):
    lora = LoRA(2, 4.0, 0.0, "attention/|mlp/") if adapters else None
    cfg = dataclasses.replace(SMALL, lora=lora)
    mesh, x = sharding.make_mesh(), cost.Examples(2 * 64, 64, 1)
    params, frozen = programs._trained(Decoder(cfg), mesh)
    problem = decoder_problem(Decoder(cfg))
    batch = programs.lora.with_frozen(programs.abstract_batch(mesh, 2, 64, 1), frozen)
    stacked = programs._stacked(mesh, params, vectors)
    product, of = {
        "gauss_newton": (curvature.product_sum, problem),
        "hessian": (curvature.hessian_sum, problem.example_loss),
    }[kind]
    with jax.set_mesh(mesh):
        counted = matrix_flops(product.trace(of, Placement.of(params), params, stacked, batch))
    # Adapters' own matrices are not counted, here as everywhere.
    allowed = 0.25 if adapters else 0.03
    assert cost.product_flops(cfg, Needs(product=kind), x, vectors) == pytest.approx(
        counted, rel=allowed
    )


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_squares_cost_their_formula(fisher, everything):
    mesh, x = sharding.make_mesh(), cost.Examples(2 * 64, 64, 1)
    params, _ = programs._trained(Decoder(SMALL), mesh)
    problem, batch = decoder_problem(Decoder(SMALL)), programs.abstract_batch(mesh, 2, 64, 1)
    covered = () if everything else kfac.covered_leaves(problem)
    leaves = tuple(i for name, i in leaf_indices(params).items() if name not in covered)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        traced = kfac.diagonal_sums.trace(
            problem, fisher, Placement.of(params), leaves, params, key, batch
        )
    matrices = () if everything else factored(SMALL, "all", 8192)
    formula = cost.square_flops(SMALL, x, matrices, sampled=fisher == "sampled")
    assert formula == pytest.approx(matrix_flops(traced), rel=0.05)


def test_what_cannot_be_compiled_is_said(runs, tmp_path, capsys):
    arguments = ["plan", f"--config={runs.config}", "--topology=cpu:1"]
    arguments += [f"--config.data.cache={tmp_path}", f"--workdir={tmp_path}"]
    arguments += [f"--config.influence.estimator={METAGRADIENT}", "--config.eval.tasks="]
    assert cli.main(arguments) == 0
    assert "by formula only, not compiled: replay" in capsys.readouterr().out
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert [row["name"] for row in plan["compiled"]] == ["train"]


@pytest.mark.parametrize("verb", ["run", "influence", "verify", "data", "plan", "export"])
@pytest.mark.parametrize("key", ["influence.estimator", "verify.estimators"])
def test_an_unknown_name_is_refused_by_every_verb(runs, tmp_path, capsys, verb, key):
    arguments = [verb, f"--config={runs.config}", f"--config.{key}=ekfak"]
    arguments += ["--topology=cpu:1"] if verb == "plan" else [f"--workdir={tmp_path / 'w'}"]
    arguments += [f"--config.model.init={tmp_path}"] if verb == "influence" else []
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert f"{key}='ekfak' is not one of identity, adam" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_needs_are_those_of_the_registry():
    assert needs_of(METAGRADIENT).run
    assert [name for name in ALL if needs_of(name).training] == ["adam", METAGRADIENT]
    assert not needs_of("kfac").squares("drop")
    assert needs_of("ggn_cg").squares("drop")
    assert needs_of("official").covered_only("diagonal")
