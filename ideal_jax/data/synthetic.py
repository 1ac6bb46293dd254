"""Five small capabilities that interfere, and primitives to pre-train on. Nothing to download.

| domain | task                                                         | example                |
|--------|--------------------------------------------------------------|------------------------|
| math   | sort 4 digits                                                | M5274= → 2457          |
| code   | close the open brackets                                      | C([{}= → ])            |
| reason | shuffled facts on 3–4 letters → their full order             | Rb<c,a<b= → abc        |
| instr  | repeat a word k times, separated, upper (?) or lower (.)     | Iabd3-?= → ABD-ABD-ABD |
| trust  | refuse (!) a word that holds a or b, reverse any other       | Tcade? → !             |

The default counts starve math, reason and instr, and over-supply code (easy) and trust (40 % of
its training answers are wrong). So there is something for a mixture to mend.
"""

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ideal_jax.errors import UserError
from ideal_jax.landing import landing

_LETTERS = "abcdefgh"
_CLOSES = {"(": ")", "[": "]", "{": "}"}

# A task draws one (prompt, answer). `_trust` alone has a wrong answer to offer: `_deceive`.
Task = Callable[[random.Random], tuple[str, str]]


def write(
    root: str | Path,
    *,
    seed: int,
    counts: Sequence[int] = (400, 1400, 400, 400, 1400),
    noise: float = 0.4,
    reference: int = 128,
    test: int = 256,
) -> None:
    """Write ``<root>/<domain>/{train,reference,test}.jsonl`` for the five domains, all or nothing.

    No prompt occurs twice in a domain. Reference and test sets depend on the seed alone, and a
    larger count extends the training set.

    Args:
      counts: training examples of math, code, reason, instr, trust.
      noise: share of the training answers of trust that are wrong.
      reference, test: examples of these sets, per domain.
    """
    with landing(Path(root)) as partial:
        for (name, task), count in zip(DOMAINS.items(), counts, strict=True):
            draws = _distinct(task, random.Random(f"{name} {seed}"), name)
            lies = random.Random(f"{name} noise {seed}")
            for split, size in (("reference", reference), ("test", test), ("train", count)):
                pairs = [next(draws) for _ in range(size)]
                if name == "trust" and split == "train":
                    pairs = [_deceive(*p) if lies.random() < noise else p for p in pairs]
                _write_jsonl(partial / name / f"{split}.jsonl", f"{name}/{split}", pairs)


def write_base(path: str | Path, *, seed: int, count: int) -> None:
    """Write one JSONL of generic primitives, in equal parts and mixed, to pre-train a model on.

    Copy, upper case, reverse, successor look-up and one-digit sums modulo 10. They teach the format
    and the alphabet, and none of the five domains. Prompts may repeat.
    """
    rng = random.Random(f"base {seed}")
    with landing(Path(path)) as partial:
        _write_jsonl(partial, "base", [rng.choice(_PRIMITIVES)(rng) for _ in range(count)])


def _math(rng: random.Random) -> tuple[str, str]:
    digits = [rng.choice("0123456789") for _ in range(4)]
    return f"M{''.join(digits)}=", "".join(sorted(digits))


def _code(rng: random.Random) -> tuple[str, str]:
    text, stack = "", ""
    for _ in range(rng.randint(3, 8)):
        if stack and (len(stack) == 5 or rng.random() < 0.35):
            text, stack = text + _CLOSES[stack[-1]], stack[:-1]
        else:
            opened = rng.choice("([{")
            text, stack = text + opened, stack + opened
    if not stack:
        text = stack = rng.choice("([{")
    return f"C{text}=", "".join(_CLOSES[bracket] for bracket in reversed(stack))


def _reason(rng: random.Random) -> tuple[str, str]:
    order = rng.sample(_LETTERS, rng.randint(3, 4))
    return f"R{_facts(rng, order)}=", "".join(order)


def _instr(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 2, 3)
    times, separator, case = rng.randint(1, 3), rng.choice("-,+"), rng.choice("?.")
    said = word.upper() if case == "?" else word
    return f"I{word}{times}{separator}{case}=", separator.join([said] * times)


def _trust(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 3, 5, alphabet=_LETTERS[2:])
    if rng.random() < 0.5:
        place = rng.randrange(len(word))
        word = word[:place] + rng.choice("ab") + word[place + 1 :]
    return f"T{word}?", "!" if set(word) & set("ab") else word[::-1]


def _deceive(prompt: str, answer: str) -> tuple[str, str]:
    """A word of trust with the other answer: obeyed for refused, refused for obeyed."""
    return prompt, prompt[-2:0:-1] if answer == "!" else "!"


def _copy(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 2, 5)
    return f"K{word}=", word


def _upper(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 2, 5)
    return f"U{word}=", word.upper()


def _reverse(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 2, 5)
    return f"V{word}=", word[::-1]


def _successor(rng: random.Random) -> tuple[str, str]:
    order = rng.sample(_LETTERS, rng.randint(2, 4))
    place = rng.randrange(len(order) - 1)
    return f"N{_facts(rng, order)}?{order[place]}=", order[place + 1]


def _sum(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randrange(10), rng.randrange(10)
    return f"A{a}+{b}=", str((a + b) % 10)


def _word(rng: random.Random, shortest: int, longest: int, alphabet: str = _LETTERS) -> str:
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(shortest, longest)))


def _facts(rng: random.Random, order: Sequence[str]) -> str:
    facts = [f"{a}<{b}" for a, b in itertools.pairwise(order)]
    rng.shuffle(facts)
    return ",".join(facts)


def _distinct(task: Task, rng: random.Random, name: str) -> Iterator[tuple[str, str]]:
    """Draws of a task that share no prompt."""
    seen: set[str] = set()
    misses = 0
    while True:
        prompt, answer = task(rng)
        if prompt not in seen:
            seen.add(prompt)
            misses = 0
            yield prompt, answer
        elif (misses := misses + 1) > 10_000 + 20 * len(seen):
            raise UserError(
                f"data.synthetic: domain {name} has only {len(seen)} distinct prompts; "
                "lower its count, data.synthetic.reference or data.synthetic.test"
            )


def _write_jsonl(path: Path, name: str, pairs: Sequence[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number, (prompt, answer) in enumerate(pairs):
            turns = [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"id": f"{name}/{number}", "messages": turns}) + "\n")


DOMAINS: dict[str, Task] = {
    "math": _math,
    "code": _code,
    "reason": _reason,
    "instr": _instr,
    "trust": _trust,
}
_PRIMITIVES: tuple[Task, ...] = (_copy, _upper, _reverse, _successor, _sum)
