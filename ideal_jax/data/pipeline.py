"""Batches as a pure function of (plan, seed, step): any step, on any number of processes.

A batch is a dict of numpy arrays (B rows, T tokens, S examples in a row):

    tokens     int32[B, T]    input ids
    targets    int32[B, T]    the token after each input
    weights    float32[B, T]  what each target counts in the loss; 0 on prompts and padding
    segments   int32[B, T]    1..S the example in the row, 0 padding
    positions  int32[B, T]    restart at 0 in each example
    domains    int32[B]       domain of the row; a row holds one domain
    examples   int32[B, S]    item number in the domain's store, -1 none

``reduction`` decides the weights of an example x with n_x supervised targets: "token" gives each of
them 1, "example" gives each of them 1/n_x.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import Literal, NamedTuple

import grain
import numpy as np

from ideal_jax.data.packing import pack
from ideal_jax.data.store import TokenStore
from ideal_jax.mixture import MixturePlan

Batch = dict[str, np.ndarray]
Reduction = Literal["token", "example"]

_ROW_ORDER = 0x0EDE  # keeps the keys of row orders apart from those of a plan's item orders


class RowTable(NamedTuple):
    """All R packed rows of a plan, domain by domain.

    domains: int32[R]. items: int64[M]. starts: int64[R + 1]; row r holds the items
    ``items[starts[r]:starts[r + 1]]`` of the store of ``domains[r]``. filled: share of the R·T
    positions that are no padding.
    """

    domains: np.ndarray
    items: np.ndarray
    starts: np.ndarray
    filled: float

    def __len__(self) -> int:
        return len(self.domains)

    def row(self, number: int) -> np.ndarray:
        """int64[<=S]: the items of one row."""
        return self.items[self.starts[number] : self.starts[number + 1]]


def packed_rows(
    plan: MixturePlan,
    stores: Sequence[TokenStore],
    row_length: int,
    max_segments: int,
    window: int,
) -> RowTable:
    """Pack each domain of a plan by itself; ``stores`` are in the order of the plan's domains.

    An example of more than ``row_length`` + 1 tokens is a ValueError.
    """
    if plan.sizes != tuple(len(store) for store in stores):
        raise ValueError(f"the plan is for stores of {plan.sizes} examples")
    domains, items, sizes = [], [], []
    used = 0
    for domain, store in enumerate(stores):
        chosen = plan.items(domain)
        rows = pack(store.lengths[chosen] - 1, row_length, max_segments, window)
        used += int((store.lengths[chosen] - 1).sum())
        domains.append(np.full(len(rows.starts) - 1, domain, np.int32))
        items.append(chosen[rows.order])
        sizes.append(np.diff(rows.starts))
    starts = np.concatenate([[0], *sizes]).cumsum()
    filled = used / max(1, row_length * (len(starts) - 1))
    return RowTable(np.concatenate(domains), np.concatenate(items), starts, filled)


def training_batches(
    table: RowTable,
    stores: Sequence[TokenStore],
    *,
    batch_size: int,
    row_length: int,
    max_segments: int,
    seed: int,
    reduction: Reduction,
    rows: tuple[int, int] | None = None,
) -> grain.MapDataset:
    """An endless dataset whose element [step] is the batch of that step.

    Every epoch takes all rows once, in an order of its own (``row_order``); a batch may straddle
    two epochs. Rows that two mixtures have in common keep their order, so that two trainings differ
    by their mixtures and not by a new shuffle.

    Args:
      rows: (low, high) part of each batch, for one process of several; the parts of all processes,
        joined in order, are the whole batch.
    """
    if not len(table):
        raise ValueError("the plan holds no examples")
    source = _Steps(
        table,
        tuple(np.bincount(table.domains).tolist()),
        tuple(stores),
        np.arange(*(rows or (0, batch_size))),
        batch_size,
        row_length,
        max_segments,
        seed,
        reduction,
    )
    return grain.MapDataset.source(source)


class RowBatches(Sequence[Batch]):
    """Batches of given rows of one store; can be iterated any number of times.

    A batch is as wide as the smallest of ``widths`` that holds its longest row; the last one is
    filled with empty rows: weights and segments 0, examples -1.
    """

    def __init__(
        self,
        store: TokenStore,
        rows: Sequence[np.ndarray],
        domain: int,
        *,
        batch_size: int,
        widths: Sequence[int],
        max_segments: int,
        reduction: Reduction,
    ):
        self._store, self._rows, self._domain = store, rows, domain
        self._sizes = [int((store.lengths[items] - 1).sum()) for items in rows]
        self._widths = np.sort(np.asarray(widths))
        self._batch_size, self._max_segments = batch_size, max_segments
        self._reduction = reduction

    @property
    def positions(self) -> int:
        """Tokens in all batches, padding included."""
        return sum(self._batch_size * self._width(number) for number in range(len(self)))

    @property
    def items(self) -> np.ndarray:
        """int64[batches·B·S]: the item of every example in order, -1 where there is none."""
        table = np.full((len(self) * self._batch_size, self._max_segments), -1, np.int64)
        for row, items in enumerate(self._rows):
            table[row, : len(items)] = items
        return table.reshape(-1)

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __getitem__(self, number: int) -> Batch:  # type: ignore[override]
        width = self._width(number)
        rows = list(self._rows[self._slice(number)])
        rows += [np.zeros(0, np.int64)] * (self._batch_size - len(rows))
        return _assemble(
            [self._store] * self._batch_size,
            rows,
            np.full(self._batch_size, self._domain),
            row_length=width,
            max_segments=self._max_segments,
            reduction=self._reduction,
        )

    def _slice(self, number: int) -> slice:
        start = range(0, len(self._rows), self._batch_size)[number]
        return slice(start, start + self._batch_size)

    def _width(self, number: int) -> int:
        longest = max(self._sizes[self._slice(number)])
        return int(self._widths[np.searchsorted(self._widths, longest)])


def example_batches(
    store: TokenStore,
    items: Sequence[int] | np.ndarray,
    domain: int,
    *,
    batch_size: int,
    lengths: Sequence[int],
    reduction: Reduction,
) -> RowBatches:
    """The given items, one example a row, sorted by length; one shape for each of ``lengths``."""
    chosen = np.asarray(items, np.int64)
    sizes = store.lengths[chosen] - 1
    if sizes.size and sizes.max() > max(lengths):
        raise ValueError(f"an example of {sizes.max() + 1} tokens fits none of {lengths}")
    return RowBatches(
        store,
        list(chosen[np.argsort(sizes, kind="stable")][:, None]),
        domain,
        batch_size=batch_size,
        widths=lengths,
        max_segments=1,
        reduction=reduction,
    )


def packed_batches(
    store: TokenStore,
    items: Sequence[int] | np.ndarray,
    domain: int,
    *,
    batch_size: int,
    row_length: int,
    max_segments: int,
    reduction: Reduction,
) -> RowBatches:
    """The given items packed into rows of one width: little padding, examples out of order."""
    chosen = np.asarray(items, np.int64)
    sizes = store.lengths[chosen] - 1
    order, starts = pack(sizes, row_length, max_segments, window=max(1, len(chosen)))
    return RowBatches(
        store,
        np.split(chosen[order], starts[1:-1]) if len(chosen) else [],
        domain,
        batch_size=batch_size,
        widths=(row_length,),
        max_segments=max_segments,
        reduction=reduction,
    )


@dataclasses.dataclass(frozen=True)
class _Steps:
    """step → batch, as a random-access source."""

    table: RowTable
    sizes: tuple[int, ...]  # rows of each domain
    stores: tuple[TokenStore, ...]
    places: np.ndarray  # which of the batch's rows 0..batch_size-1
    batch_size: int
    row_length: int
    max_segments: int
    seed: int
    reduction: Reduction

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> Batch:
        epochs, places = np.divmod(int(step) * self.batch_size + self.places, len(self.table))
        numbers = [
            row_order(self.sizes, self.seed, int(epoch))[place]
            for epoch, place in zip(epochs, places, strict=True)
        ]
        domains = self.table.domains[numbers]
        return _assemble(
            [self.stores[domain] for domain in domains],
            [self.table.row(number) for number in numbers],
            domains,
            row_length=self.row_length,
            max_segments=self.max_segments,
            reduction=self.reduction,
        )


@functools.lru_cache(maxsize=4)
def row_order(sizes: tuple[int, ...], seed: int, epoch: int) -> np.ndarray:
    """int64[Σ sizes]: the order of an epoch's rows, by their numbers in a ``RowTable``.

    Every row draws a key from (seed, epoch, domain, its number in the domain), and the smallest
    comes first. So how many rows a domain has moves no row past another, of whatever domain.
    """
    keys = [
        np.random.Philox(np.random.SeedSequence((seed, epoch, domain, _ROW_ORDER))).random_raw(size)
        for domain, size in enumerate(sizes)
    ]
    return np.argsort(np.concatenate(keys), kind="stable")


def _assemble(
    stores: Sequence[TokenStore],
    rows: Sequence[np.ndarray],
    domains: np.ndarray,
    *,
    row_length: int,
    max_segments: int,
    reduction: Reduction,
) -> Batch:
    """The batch whose row b holds the items ``rows[b]`` of ``stores[b]``, in order."""
    shape = len(rows), row_length
    tokens_BxT = np.zeros(shape, np.int32)
    targets_BxT = np.zeros(shape, np.int32)
    weights_BxT = np.zeros(shape, np.float32)
    segments_BxT = np.zeros(shape, np.int32)
    positions_BxT = np.zeros(shape, np.int32)
    examples_BxS = np.full((len(rows), max_segments), -1, np.int32)
    for b, (store, items) in enumerate(zip(stores, rows, strict=True)):
        start = 0
        for s, item in enumerate(items):
            tokens, mask = store[item]
            here = slice(start, start + len(tokens) - 1)
            tokens_BxT[b, here] = tokens[:-1]
            targets_BxT[b, here] = tokens[1:]
            weights_BxT[b, here] = mask[1:] / (
                store.supervised[item] if reduction == "example" else 1
            )
            segments_BxT[b, here] = s + 1
            positions_BxT[b, here] = np.arange(len(tokens) - 1)
            examples_BxS[b, s] = item
            start = here.stop
    return {
        "tokens": tokens_BxT,
        "targets": targets_BxT,
        "weights": weights_BxT,
        "segments": segments_BxT,
        "positions": positions_BxT,
        "domains": np.asarray(domains, np.int32),
        "examples": examples_BxS,
    }
