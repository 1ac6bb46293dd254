"""Programs compiled once are found again by later tests, worker processes and runs."""

import os
import pathlib

_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# No test asks a hub; those that name a missing model get their answer at once.
os.environ["HF_HUB_OFFLINE"] = "1"
