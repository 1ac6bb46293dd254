"""Compiles the planned program of one phase for this machine, runs it, and prints what it took.

python planned_run.py PHASE  ->  JSON: bytes as planned and as measured
"""

import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp

from ideal_jax import config as config_lib
from ideal_jax import sharding
from ideal_jax.models import Decoder, DecoderConfig
from ideal_jax.runs.planning import aot, programs

CFG = DecoderConfig(
    vocab_size=512, d_model=256, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=64, d_ff=768
)


def memory(field):
    """Bytes of this process, as Linux counts them."""
    text = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", text)[1])


def ones(x):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jax.device_put(jnp.ones(x.shape, x.dtype), x.sharding)


def main(phase):
    config = config_lib.load(pathlib.Path(__file__).parents[2] / "configs" / "base.py")
    config.data.row_length = 512
    config.training.batch_size = config.influence.batch_size = 8
    found = programs.programs(config, Decoder(CFG), sharding.make_mesh(), 2)
    program = next(p for p in found if p.name == phase)
    executable = program.trace().lower().compile()
    planned = executable.memory_analysis()
    flat, tree = jax.tree.flatten(
        program.arguments, is_leaf=lambda x: isinstance(x, jax.ShapeDtypeStruct)
    )
    abstract = [isinstance(x, jax.ShapeDtypeStruct) for x in flat]
    real = [ones(x) if a else x for x, a in zip(flat, abstract, strict=True)]
    held = sum(x.nbytes for x, a in zip(real, abstract, strict=True) if a)
    arguments = jax.tree.unflatten(tree, real)
    del real, flat
    # The compiled form takes no static arguments.
    arguments = [
        x for x in arguments if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(x))
    ]
    jax.block_until_ready(arguments)
    before = memory("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    jax.block_until_ready(executable(*arguments))
    used = memory("VmHWM") - before
    kept = planned.output_size_in_bytes - planned.alias_size_in_bytes
    print(
        json.dumps(
            {
                "by_class": sum(aot.bytes_on_device(t) for t in program.classes.values()),
                "planned_arguments": planned.argument_size_in_bytes,
                "arguments": held,
                "planned_work": planned.temp_size_in_bytes + kept,
                "work": used,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
