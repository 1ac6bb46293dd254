"""Which examples a mixture holds: index arithmetic on (sizes, counts, seed), nothing else."""

import dataclasses
import hashlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class MixturePlan:
    """A multiset of examples, ``counts[j]`` of the ``sizes[j]`` examples of domain j.

    The examples of a domain are a prefix of one endless sequence: a permutation of all of them,
    then another, and so on. So the plans of one seed are nested: a smaller volume is a prefix of a
    larger one, and a volume beyond the domain's size repeats examples as evenly as possible.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    seed: int

    def items(self, domain: int) -> np.ndarray:
        """int64[counts[domain]]: the item numbers of one domain, in order."""
        size, count = self.sizes[domain], self.counts[domain]
        passes = range(-(-count // size))
        order = [permutation(size, self.seed, domain, k) for k in passes]
        return np.concatenate(order)[:count] if order else np.zeros(0, np.int64)

    def digest(self) -> str:
        """SHA-256 of every item of every domain: equal digests hold equal multisets in order."""
        sha = hashlib.sha256()
        for domain in range(len(self.sizes)):
            sha.update(self.items(domain).astype("<i8").tobytes() + b";")
        return sha.hexdigest()


def permutation(size: int, *key: int) -> np.ndarray:
    """int64[size]: the permutation of ``range(size)`` that belongs to ``key``."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).permutation(size)
