"""The training examples that help and hurt every capability most, with their text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ideal_jax.influence import Diagnostics, Sample
from ideal_jax.mixture import InfluenceMatrix
from ideal_jax.runs.session import Session

_SHOWN = 3  # examples on either end of every list
_LONGEST = 600  # characters of one text
OVERALL = "overall"


def extreme_examples(
    session: Session,
    matrix: InfluenceMatrix,
    diagnostics: Diagnostics,
    scored: Sequence[Mapping[str, Sample]],
) -> list[dict[str, Any]]:
    """For every reference, and overall, the examples with the lowest and the highest effect.

    The effect of an example is its term of A: what counting it once more would do to Q_i, in nats
    per unit of weight. Negative ones help.

    Args:
      session, matrix, diagnostics: of the estimate.
      scored: its training samples, stage by stage.
    """
    v = np.asarray(session.capability_weights)
    effects, items, owners = [], [], []
    ratios = {d: x.scores.sum(1) / x.weights.sum() for d, x in diagnostics.scores.items()}
    shared = sum(p * ratios[d] for p, d in zip(matrix.shares, matrix.domains, strict=True))
    for j, domain in enumerate(matrix.domains):
        x = diagnostics.scores[domain]
        total = _domain_weight(scored, domain) / matrix.shares[j]
        effect = -(x.scores - matrix.centred * np.outer(shared, x.weights)) / total
        places = [part[domain].batches.items for part in scored]  # type: ignore[attr-defined]
        held = np.concatenate(places)
        effects.append(np.vstack([effect, v @ effect])[:, held >= 0])
        items.append(held[held >= 0])
        owners.append(np.full(len(items[-1]), j))
    effect_RxM, item_M, owner_M = np.hstack(effects), np.hstack(items), np.hstack(owners)
    found = []
    for name, row in zip((*matrix.references, OVERALL), effect_RxM, strict=True):
        order = np.argsort(row, kind="stable")
        ends = order if len(order) <= 2 * _SHOWN else [*order[:_SHOWN], *order[-_SHOWN:]]
        for k in ends:
            domain, item = matrix.domains[owner_M[k]], int(item_M[k])
            prompt, response = _texts(session, domain, item)
            found.append(
                {
                    "reference": name,
                    "domain": domain,
                    "id": session.data.train[domain].id(item),
                    "effect": float(row[k]),
                    "prompt": prompt,
                    "response": response,
                }
            )
    return found


def _domain_weight(scored: Sequence[Mapping[str, Sample]], domain: str) -> float:
    weight = scored[0][domain].weight
    assert weight is not None
    return weight


def _texts(session: Session, domain: str, item: int) -> tuple[str, str]:
    """What the model reads and what it is to answer, without special tokens."""
    tokens, mask = session.data.train[domain][item]
    return _text(session, tokens[~mask]), _text(session, tokens[mask])


def _text(session: Session, tokens: np.ndarray) -> str:
    text = str(session.data.tokenizer.decode(tokens.tolist(), skip_special_tokens=True))
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
