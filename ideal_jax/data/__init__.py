"""Data: raw text → conversations → token stores → packed rows → batches."""

from ideal_jax.data.base import generic_store as generic_store
from ideal_jax.data.chat import end_of_turn as end_of_turn
from ideal_jax.data.chat import ending as ending
from ideal_jax.data.chat import render as render
from ideal_jax.data.chat import render_all as render_all
from ideal_jax.data.chat import render_prompt as render_prompt
from ideal_jax.data.pipeline import Batch as Batch
from ideal_jax.data.pipeline import RowBatches as RowBatches
from ideal_jax.data.pipeline import RowTable as RowTable
from ideal_jax.data.pipeline import example_batches as example_batches
from ideal_jax.data.pipeline import packed_batches as packed_batches
from ideal_jax.data.pipeline import packed_rows as packed_rows
from ideal_jax.data.pipeline import training_batches as training_batches
from ideal_jax.data.prepare import Dataset as Dataset
from ideal_jax.data.prepare import prepare as prepare
from ideal_jax.data.records import Record as Record
from ideal_jax.data.store import TokenStore as TokenStore
