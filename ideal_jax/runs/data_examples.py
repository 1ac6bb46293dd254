"""Examples as the loss sees them."""

import numpy as np
from rich.console import Console
from rich.text import Text

from ideal_jax.data import Dataset, example_batches

_STYLE = "bold green underline"


def print_examples(console: Console, data: Dataset, row_length: int, count: int) -> None:
    """Prints the first ``count`` train examples of every domain, special tokens included.

    What the loss counts is green and underlined, or in ⟦ ⟧ where there is no colour.
    """
    for name in data.names if count else ():
        store = data.train[name]
        for item in range(min(count, len(store))):
            batch = example_batches(
                store, [item], 0, batch_size=1, lengths=[row_length], reduction="token"
            )[0]
            inside = batch["segments"][0] > 0
            tokens = np.concatenate([batch["tokens"][0, :1], batch["targets"][0, inside]])
            counts = np.concatenate([[False], batch["weights"][0, inside] > 0])
            console.rule(f"{name} {item}: {len(tokens)} tokens, {counts.sum()} of them supervised")
            console.print(_marked(console, data, tokens, counts), soft_wrap=True)


def _marked(console: Console, data: Dataset, tokens: np.ndarray, counts: np.ndarray) -> Text:
    coloured = console.is_terminal and not console.no_color
    text, done = Text(), ""
    edges = [*np.flatnonzero(np.diff(counts)) + 1, len(tokens)]
    for start, stop in zip([0, *edges[:-1]], edges, strict=True):
        # What a token adds may depend on those before it (spaces at the start of a text).
        so_far = str(data.tokenizer.decode(tokens[:stop], clean_up_tokenization_spaces=False))
        piece, done = so_far[len(done) :], so_far
        if not counts[start]:
            text.append(piece)
        elif coloured:
            text.append(piece, _STYLE)
        else:
            text.append(f"⟦{piece}⟧")
    return text
