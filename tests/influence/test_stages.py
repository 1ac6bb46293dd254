"""Training examples are scored part after part, until the data has said enough."""

import numpy as np
import pytest

from ideal_jax.influence import Options, Sample, estimate

SIZE = 24
CUTS = (0, 6, 12, SIZE)


@pytest.fixture
def setting(tiny):
    """Three domains in three parts each, the same domains whole, and the curvature's batches."""
    parts, whole = [{}, {}, {}], {}
    for number, name in enumerate(("math", "code", "safety")):
        examples = tiny.examples(SIZE, seed=number, tilt=2 * number)
        cuts = CUTS if number else (0, 6, 6, SIZE)  # nothing new of the first in the second part
        for part, start, stop in zip(parts, cuts[:-1], cuts[1:], strict=True):
            rows = {key: x[start:stop] for key, x in examples.items()}
            part[name] = Sample(tiny.batches(rows, 6), SIZE, stop - start)
        whole[name] = Sample(tiny.batches(examples, 6), SIZE)
    return parts, whole, [batch for sample in whole.values() for batch in sample.batches]


def references(tiny, *, alike):
    """Two sets of 20 examples; all the same, and so without an error, where ``alike``."""
    found = {}
    for tilt in (0, 3):
        examples = tiny.examples(20, seed=9 + tilt, tilt=tilt)
        if alike:
            examples = {key: np.repeat(x[:1], 20, axis=0) for key, x in examples.items()}
        found[f"tilt {tilt}"] = Sample(tiny.batches(examples, 5), 20)
    return found


def measure(tiny, setting, held, *, staged, **options):
    parts, whole, curvature = setting
    domains, more = (parts[0], parts[1:]) if staged else (whole, ())
    return estimate(
        tiny.problem,
        tiny.params,
        domains=domains,
        more=more,
        references=held,
        curvature=curvature,
        options=Options(),
        **options,
    )


@pytest.mark.parametrize("estimator", ["identity", "kfac"])
@pytest.mark.parametrize("tangents", [None, 1])
def test_all_parts_together_are_the_whole(tiny, setting, estimator, tangents):
    options = {"estimator": estimator, "tangents": tangents, "confidence": 1 - 1e-12}
    held = references(tiny, alike=True)
    expected, _ = measure(tiny, setting, held, staged=False, **options)
    found, notes = measure(tiny, setting, held, staged=True, **options)
    # Nothing is left in doubt once everything has been seen.
    assert (notes.stages, notes.ended, found.examples_used) == (3, "signs", 3 * SIZE)
    for name in ("matrix", "stderr", "alpha", "alpha_stderr", "shares"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9
        )
    np.testing.assert_allclose(notes.adjoint, found.matrix, atol=1e-12)


def test_it_ends_when_every_sign_is_known(tiny, setting):
    held = references(tiny, alike=True)
    found, notes = measure(tiny, setting, held, staged=True, estimator="identity", confidence=0.01)
    assert (notes.stages, notes.ended, found.examples_used) == (1, "signs", 3 * CUTS[1])


def test_it_ends_when_only_more_references_could_tell(tiny, setting):
    held = references(tiny, alike=False)
    found, notes = measure(
        tiny, setting, held, staged=True, estimator="identity", confidence=1 - 1e-12
    )
    assert (notes.stages, notes.ended) == (1, "references")
    assert np.all(found.stderr_reference > 0)


def test_a_part_of_the_references_tells_their_error(tiny, setting):
    held = references(tiny, alike=False)
    some = {
        name: sample._replace(batches=sample.batches[:2], sampled=10)
        for name, sample in held.items()
    }
    every, _ = measure(tiny, setting, held, staged=False, estimator="identity")
    found, _ = measure(tiny, setting, held, staged=False, estimator="identity", spread=some)
    np.testing.assert_array_equal(found.matrix, every.matrix)
    ratio = found.stderr_reference / every.stderr_reference
    assert np.all((ratio > 0.3) & (ratio < 3))
    assert np.any(ratio != 1)
