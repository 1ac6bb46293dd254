"""What is installed without the checkout: every module, every shipped config, and the page."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
# Every shipped config, a copy of forkme.py elsewhere, and a verb, from a folder of one's own.
USE = """
import pathlib, sys
import ideal_jax
from ideal_jax import cli, config, keys
assert pathlib.Path(ideal_jax.__file__).is_relative_to(sys.argv[1]), ideal_jax.__file__
for path in keys.CONFIGS.glob("*.py"):
    config.check(config.load(path.stem))
    print(path.stem)
sys.exit(cli.main(["plan", "--config=mine.py", "--topology=cpu:1", "--config.plan.compile=False",
                   "--config.data.row_length=64", "--config.training.batch_size=4",
                   "--config.model.d_model=64"]))
"""


def files(folder, *patterns):
    """Paths below a folder of a checkout."""
    found = [path for pattern in patterns for path in folder.rglob(pattern)]
    return {path.relative_to(folder).as_posix() for path in found if path.is_file()}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that the wheel is unpacked in, built from what the container is built from."""
    place = tmp_path_factory.mktemp("wheel")
    source, target = place / "source", place / "site"
    for name in ("ideal_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-c", BUILD, str(place)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    [wheel] = place.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(target)
    return target


def test_everything_is_in_it(installed):
    package = files(ROOT / "ideal_jax", "*.py", "*.html", "*.css", "py.typed")
    configs = {f"configs/{path}" for path in files(ROOT / "configs", "*.py", "config.json")}
    assert files(installed / "ideal_jax", "*.*") == package | configs
    assert len(configs) > 18
    assert [
        path.name for path in installed.iterdir() if not path.name.startswith("ideal_jax")
    ] == []


def test_it_works_from_another_folder(installed, tmp_path):
    shutil.copy(ROOT / "configs" / "forkme.py", tmp_path / "mine.py")
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", USE, str(installed)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    # Nobody trains a Qwen3 4B on a CPU; but its shape was found.
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert "config.json" not in done.stderr
    names = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert set(done.stdout.splitlines()) >= names
    assert "GiB" in done.stdout
