"""Checkpoints and parameters are read as they were written, or not at all."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damaging import BYTES, flip, halve

from ideal_jax import sealed, trees
from ideal_jax.training.checkpoints import Checkpoints, load_params, write_params


def state(step):
    rng = np.random.default_rng(step)
    return {
        "matrix": jnp.asarray(rng.normal(size=(40, 30)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=50), jnp.bfloat16),
        "step": jnp.asarray(step, jnp.int32),
    }


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder)
    for step in (2, 4, 6):
        checkpoints.save(step, state(step), {"tokens": 10 * step})
    checkpoints.close()
    return folder


def restored(folder):
    checkpoints = Checkpoints(folder)
    found = checkpoints.restore(shapes(state(0)))
    checkpoints.close()
    return found


def files(folder):
    """All that decide what is read."""
    return [*sorted(folder.rglob("d/*")), folder / "progress" / "metadata"]


def test_the_newest_is_read(saved, capsys):
    found, progress = restored(saved)
    assert progress == {"tokens": 60, "step": 6}
    jax.tree.map(np.testing.assert_array_equal, found, state(6))
    assert sorted(path.name for path in saved.iterdir()) == ["4", "6"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", BYTES)
def test_a_damaged_one_is_told_and_the_one_before_it_is_read(saved, tmp_path, capsys, damage):
    for number, file in enumerate(files(saved / "6")):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        damage(folder / file.relative_to(saved))
        found, progress = restored(folder)
        out = capsys.readouterr().out
        if progress["step"] == 6:  # of the index, not all of which is read
            jax.tree.map(np.testing.assert_array_equal, found, state(6))
            continue
        assert progress == {"tokens": 40, "step": 4}
        jax.tree.map(np.testing.assert_array_equal, found, state(4))
        assert out == f"{folder}/6 is damaged: that of step 4 is used\n"
        assert not (folder / "6").exists()


def test_when_none_is_whole(saved, tmp_path, capsys):
    folder = tmp_path / "c"
    shutil.copytree(saved, folder)
    flip(max(files(folder / "6")[:-1], key=lambda path: path.stat().st_size))
    halve(folder / "4" / "progress" / "metadata")
    assert restored(folder) is None
    assert capsys.readouterr().out == (
        f"{folder}/6 is damaged: that of step 4 is used\n"
        f"{folder}/4 is damaged: training starts again\n"
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.bool_])
def test_a_fingerprint_sees_every_bit(dtype):
    rng = np.random.default_rng(0)
    values = np.asarray(rng.normal(size=(7, 5)) * 9)
    values = values > 0 if dtype == jnp.bool_ else values.astype(np.dtype(dtype))
    seen = {trees.fingerprint({"x": values}).tobytes()}
    raw = values.tobytes()
    for at in range(0, len(raw), 3):
        changed = bytearray(raw)
        changed[at] ^= 1
        array = np.frombuffer(bytes(changed), values.dtype).reshape(values.shape)
        seen.add(trees.fingerprint({"x": array}).tobytes())
    seen.add(trees.fingerprint({"x": values[::-1]}).tobytes())
    assert len(seen) == 2 + len(range(0, len(raw), 3))


@pytest.mark.parametrize("damage", BYTES)
def test_damaged_parameters_are_refused(tmp_path, damage):
    params = {name: x for name, x in state(1).items() if name != "step"}
    write_params(tmp_path, params)
    digest = trees.digest(params)
    read = load_params(tmp_path, shapes(params), digest)
    jax.tree.map(np.testing.assert_array_equal, read, params)
    wide = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), params
    )
    assert load_params(tmp_path, wide, digest)["half"].dtype == jnp.float32
    with pytest.raises(sealed.DamagedError, match="is not what train"):
        load_params(tmp_path, shapes(params), "0" * 64)
    found = sorted((tmp_path / "params").rglob("*/d/*"), key=lambda path: path.stat().st_size)
    damage(found[-1])
    with pytest.raises(sealed.DamagedError, match=f"{tmp_path}/params is damaged") as error:
        load_params(tmp_path, shapes(params), digest)
    assert "\n" not in str(error.value)
