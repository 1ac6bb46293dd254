"""What may not decide is refused by the name of its set, and healthy cases are not."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ideal_jax.errors import UserError
from ideal_jax.influence import Problem, Sample, TapLayer, Taps, influence_matrix
from ideal_jax.influence.checks import check_covered
from ideal_jax.influence.solve import smallest_ritz_value


@pytest.fixture(autouse=True)
def x64():
    """Not here: failures are of float32."""
    with jax.enable_x64(False):
        yield


def dense(params, taps, batch):
    """Two tanh layers; the first is ``left`` or ``right``, as an example says."""

    def layer(name, x):
        y = x @ params[name]
        return taps[name](x[:, None], y[:, None])[:, 0] if name in taps else y

    side = batch["right"][:, None]
    hidden = jnp.where(side, layer("right", batch["x"] * side), layer("left", batch["x"] * ~side))
    return layer("out", jnp.tanh(hidden))


def loss(out, batch):
    return batch["w"] * jnp.sum((out - batch["y"]) ** 2, axis=1), batch["w"]


def sample_labels(out, batch, key):
    drawn = out + jax.random.normal(key, out.shape) / 2**0.5
    return {**batch, "y": drawn, "w": jnp.sqrt(batch["w"])}


TAPS = Taps(
    dense,
    lambda batch: batch["w"][:, None] > 0,
    tuple(TapLayer(name, (name,)) for name in ("left", "right", "out")),
)
PROBLEM = Problem(lambda p, b: dense(p, {}, b), loss, sample_labels, taps=TAPS)


def examples(count, seed, right=False):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(count, 4)), rng.normal(size=(count, 3))
    floats = {"x": x, "y": y, "w": np.ones(count)}
    whole = {name: jnp.asarray(value, jnp.float32) for name, value in floats.items()}
    return {**whole, "right": jnp.full(count, right)}


def changed(batch, key, value, at=slice(None)):
    return {**batch, key: batch[key].at[at].set(value)}


def setting(right=False, **changes):
    """Two domains of 20 and 12 examples, two references, curvature over the first domain."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        name: jax.random.normal(key, shape) / 2
        for key, (name, shape) in zip(
            keys, {"left": (4, 6), "right": (4, 6), "out": (6, 3)}.items(), strict=True
        )
    }
    first, second = examples(20, 1), examples(12, 2)
    held, other = examples(8, 3), examples(8, 4, right=right)
    given = SimpleNamespace(params=params, first=[first], second=[second], held=[held])
    given.other, given.curvature = [other], [first]
    for name, value in changes.items():
        setattr(given, name, value(getattr(given, name)))
    return given


def measure(given, estimator, problem=PROBLEM, **options):
    def sample(batches):
        return Sample(batches, sum(len(b["w"]) for b in batches))

    return influence_matrix(
        problem,
        given.params,
        domains={"maths": sample(given.first), "code": sample(given.second)},
        references={"gsm": sample(given.held), "mbpp": sample(given.other)},
        curvature=given.curvature,
        estimator=estimator,
        **options,
    )


def one_example(batches):
    return [jax.tree.map(lambda x: x[:1], batches[0])]


def mute(batches):
    return [{**batch, "w": 0 * batch["w"]} for batch in batches]


def bad(value, key="x", row=2):
    """The last of the batches has a number that is not finite."""
    return lambda batches: [*batches, changed(batches[-1], key, value, row)]


@pytest.mark.parametrize(
    ("estimator", "options", "fix"),
    [
        ("ekfac", {"damping": 0.0}, "raise influence.damping=0"),
        ("ekfac", {"damping": 1e-12}, "raise influence.damping=1e-12"),
        ("kfac", {"damping": 0.0}, "raise influence.damping=0"),
        ("kfac", {"damping": 1e9, "damping_mode": "absolute", "inversion": "pseudoinverse"},
         "lower influence.damping=1e.09"),
        ("ggn_cg", {"damping": 1e-7, "iterations": 2, "tolerance": 0.0},
         "raise influence.iterations=2 or influence.damping=1e-07"),
    ],
)  # fmt: skip
def test_a_failed_solve_is_refused_by_name_with_its_fix(estimator, options, fix):
    with pytest.raises(UserError, match=fix) as refused:
        measure(setting(curvature=one_example), estimator, **options)
    message = str(refused.value)
    assert f"influence estimator '{estimator}': the solve for domain 'maths' failed" in message
    assert "\n" not in message


@pytest.mark.parametrize("estimator", ["ekfac", "ggn_cg"])
def test_a_healthy_solve_of_little_curvature_is_none(estimator):
    matrix = measure(setting(curvature=one_example), estimator, damping=0.1)
    assert np.isfinite(matrix.alpha).all()
    assert matrix.solve_residual.max() < 0.01


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("place", "key", "named"),
    [
        ("first", "x", "domain 'maths'"),
        ("second", "y", "domain 'code'"),
        ("held", "y", "reference 'gsm'"),
        ("other", "w", "reference 'mbpp'"),
    ],
)
def test_the_set_with_a_number_that_is_not_finite_is_named(place, key, named, value):
    given = setting(**{place: bad(value, key)})
    told = f"{named}: the loss is not finite for example 3 of batch 2 of 2"
    with pytest.raises(UserError, match=told):
        measure(given, "identity", PROBLEM.example_loss)


@pytest.mark.parametrize("estimator", ["fisher_diag", "ekfac", "ggn_cg", "hessian_cg", "official"])
def test_curvature_that_is_not_finite_is_named(estimator):
    given = setting(curvature=bad(np.nan))
    told = "the curvature batches: the loss is not finite for example 3 of batch 2 of 2"
    for mode in ("relative",) if estimator != "hessian_cg" else ("relative", "absolute"):
        with pytest.raises(UserError, match=told):
            measure(given, estimator, damping_mode=mode)


@pytest.mark.parametrize("estimator", ["fisher_diag", "kfac", "ggn_cg", "hessian_cg", "official"])
def test_curvature_without_weight_is_named(estimator):
    with pytest.raises(UserError, match="the curvature batches have no supervised weight"):
        measure(setting(curvature=mute), estimator)


def test_parameters_that_are_not_finite_are_the_cause():
    given = setting(params=lambda p: changed(p, "out", np.nan, (0, 0)))
    with pytest.raises(UserError, match=r"parameters are not finite \(the first is 'out'\)"):
        measure(given, "identity", PROBLEM.example_loss)


def test_a_derivative_that_is_not_finite_is_named():
    def rooted(params, batch):  # a root at 0 has a value and no derivative
        l_B, w_B = PROBLEM.example_loss(params, batch)
        return l_B + jnp.sqrt(jnp.sum(0 * params["out"])), w_B

    with pytest.raises(UserError, match="domain 'maths': every loss is finite, but not"):
        measure(setting(), "identity", rooted)


@pytest.mark.parametrize("mode", ["relative", "absolute"])
@pytest.mark.parametrize("estimator", ["fisher_diag", "kfac", "ekfac"])
def test_a_gradient_where_there_is_no_curvature_is_refused(estimator, mode):
    told = "reference 'mbpp' has a gradient in 'right' where the curvature is 0.*curvature_examples"
    with pytest.raises(UserError, match=told):
        measure(setting(right=True), estimator, damping_mode=mode)


@pytest.mark.parametrize("estimator", ["fisher_diag", "kfac", "ekfac", "ggn_cg"])
def test_a_layer_that_nobody_uses_is_no_mistake(estimator):
    matrix = measure(setting(), estimator)
    assert np.isfinite(matrix.alpha).all()
    assert matrix.alpha.any()
    assert matrix.solve_residual.max() < 0.02


def test_adapters_that_are_still_zero_are_no_mistake():
    """With ``up`` = 0 no gradient reaches ``down``, and no curvature."""

    def outputs(params, batch):
        return jnp.tanh(batch["x"] @ params["down"]) @ params["up"]

    problem = Problem(outputs, loss, sample_labels)
    given = setting(params=lambda p: {"down": p["left"], "up": jnp.zeros((6, 3))})
    matrix = measure(given, "fisher_diag", problem)
    assert np.isfinite(matrix.alpha).all()
    given = setting(params=lambda p: {"down": 0 * p["left"], "up": jnp.zeros((6, 3))})
    assert not measure(given, "fisher_diag", problem).alpha.any()


def test_no_curvature_at_all_leaves_no_relative_damping():
    constant = dataclasses.replace(PROBLEM, loss=lambda out, b: (jnp.sum(out, 1), b["w"]))
    with pytest.raises(UserError, match=r"is 0 on average .* influence.damping_mode=absolute"):
        measure(setting(), "ggn_cg", constant)


def test_layers_of_a_scanned_parameter_are_told_apart_and_rounding_is_no_gradient():
    curvature = {"kernel": (0.5, 0.0, 0.5), "bias": (0.0,)}
    kernel = jnp.zeros((2, 3, 4, 4)).at[1, 0].set(1.0)
    stacked = {"kernel": kernel, "bias": jnp.zeros((2, 3))}
    check_covered(curvature, "domain", ["a", "b"], stacked)
    check_covered(
        curvature, "domain", ["a", "b"], {**stacked, "kernel": kernel.at[1, 1].set(1e-30)}
    )
    with pytest.raises(UserError, match="domain 'b' has a gradient in 'kernel', layer 1, where"):
        check_covered(
            curvature, "domain", ["a", "b"], {**stacked, "kernel": kernel.at[1, 1].set(1e-3)}
        )


def test_the_smallest_eigenvalue_of_nothing_finite_is_none():
    start = {"a": jnp.ones(3)}
    assert np.isnan(smallest_ritz_value(lambda t: {"a": t["a"] * np.nan}, start, 3))
