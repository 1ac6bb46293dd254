"""What pyproject.toml cannot say: ``configs/`` is installed as ``ideal_jax/configs/``."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ideal_jax", "ideal_jax.*"]), "ideal_jax.configs"],
    package_dir={"ideal_jax.configs": "configs"},
)
