"""Programs compiled once are found again by later tests, worker processes and runs.

Data is prepared in a cache of the tests' own, as that of the user is none of their business.
"""

import os
import pathlib
import tempfile

import pytest

_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Compiling is most of the suite's time, and LLVM's optimisation is half of that: what is computed
# is the same, operation by operation. The quick start, which CI runs too, is compiled in full.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# No test asks a hub; those that name a missing model get their answer at once.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _own_cache():
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="module", autouse=True)
def _few_programs():
    """Every program of XLA:CPU maps pieces of memory, of which Linux gives a process 65 530."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 25_000:
        import jax  # reads the environment above

        jax.clear_caches()
