"""IDEAL in JAX: decide how much of each domain goes into a supervised fine-tuning mixture.

Dimension alphabet, used in names (``tokens_BxT``), einsum strings and docstrings:

    B batch rows        T tokens        S examples in a packed row     V vocabulary
    D model width       F ffw width     N heads     K key/value heads  H head width
    L layers            n domains       R references                   P parameters
    I, O input and output width of a dense layer
"""

import glob
import importlib.metadata
import importlib.util
import os

__version__ = "0.1.0"

# XLA:CPU's YNN fusions give wrong results for batched float32 products in these releases
# (github.com/jax-ml/jax/issues/39103): the gradients of several right-hand sides at once came out
# 50 to 1000 % off. The flag is read when a backend starts, so it has to be set on import.
_YNN_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
if importlib.metadata.version("jaxlib") in ("0.10.2", "0.11.0"):
    _flags = os.environ.get("XLA_FLAGS", "")
    if _YNN_FLAG not in _flags:
        os.environ["XLA_FLAGS"] = f"{_flags} {_YNN_FLAG}=".strip()

_accelerator = any(glob.glob(f"/dev/{name}") for name in ("accel*", "vfio/*", "nvidia*", "kfd"))

# XLA:CPU asks LLVM for level 3: half as many seconds again to compile as level 1, for steps of
# training 2 % faster (the quick start's; the work is in libraries of matrix products). An
# accelerator's compiler keeps its own level.
_LEVEL_FLAG = "--xla_backend_optimization_level"
if not _accelerator and _LEVEL_FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_LEVEL_FLAG}=1".strip()

# OpenBLAS decomposes matrices for XLA:CPU, and its threads spin beside XLA's own: five to ten times
# the seconds for 1024-wide factors on two cores. Read when NumPy and SciPy load it; a value that is
# already set stays, which a machine of many idle cores may want.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Where libtpu is installed to compile for a TPU that is elsewhere (``plan``), JAX would start it
# here too, and it complains at length.
if importlib.util.find_spec("libtpu") and not _accelerator:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
