"""What the base model M_0 is pre-trained on, when it is not given."""

import shutil

from ideal_jax.data import synthetic
from ideal_jax.data.prepare import Dataset
from ideal_jax.data.sources import read_domain
from ideal_jax.data.store import TokenStore
from ideal_jax.data.tokenizing import tokenized
from ideal_jax.landing import landing
from ideal_jax.processes import is_writer


def generic_store(dataset: Dataset, examples: int, seed: int, row_length: int) -> TokenStore:
    """The built-in generic primitives as a token store, made under the dataset's folder.

    By process 0, unless they are there and whole.

    They teach the format and the alphabet of the built-in capabilities, and none of them.
    """
    folder = dataset.folder / "base"
    if is_writer() and not TokenStore.is_whole(folder / "tokens"):
        shutil.rmtree(folder, ignore_errors=True)
        with landing(folder) as partial:
            partial.mkdir()
            synthetic.write_base(partial / "base.jsonl", seed=seed, count=examples)
            stream = tokenized(read_domain(partial / "base.jsonl"), dataset.tokenizer)
            TokenStore.write(partial / "tokens", stream, row_length + 1)
    return TokenStore.open(folder / "tokens")
