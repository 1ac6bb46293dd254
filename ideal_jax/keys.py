"""The keys of a config: what each means, when it may change, and what it may be.

A key is said in two places, one line each. ``configs/base.py`` has its default, its mark
([result] or [runtime]) and its meaning, for people to read and to be read here. ``LIMITS`` has what
its values may be, for ``config.check``, for ``ideal-jax help`` and for the test that tries values
beyond them. A true-or-false key needs no limit.
"""

import functools
import math
import pathlib
import re
from typing import Any, NamedTuple, Protocol

from ideal_jax.errors import UserError

_HERE = pathlib.Path(__file__).parent
# The shipped configs: inside an installed package, beside it in a checkout.
CONFIGS = next((f for f in (_HERE / "configs", _HERE.parent / "configs") if f.is_dir()), _HERE)

_LONG = 4096  # bytes of a path that Linux takes; 255 of a part of it


class Limit(Protocol):
    """What a value may be; ``str`` of it is told by ``ideal-jax help``."""

    def check(self, key: str, value: Any) -> None:
        """Raises a ``UserError`` that names the key, its value and what it must be."""


class Number(NamedTuple):
    """A number between two ends.

    Attributes:
      low, high: the ends.
      ends: "[" or "(", then "]" or ")": whether the ends themselves are allowed.
      kind: int or float; a float key takes whole numbers too.
      why: said behind the rule that is broken at the low end.
    """

    low: float
    high: float
    ends: str = "[]"
    kind: type = float
    why: str = ""

    def __str__(self) -> str:
        low, high = (f"{end:.16g}" for end in (self.low, self.high))
        if self.kind is int:
            return f"{low}..{high}"
        return f"{self.ends[0]}{low}, {high}{self.ends[1]}"

    def check(self, key: str, value: Any) -> None:
        """See ``Limit``."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole and (self.kind is int or not isinstance(value, float)):
            named = "a whole number" if self.kind is int else "a number"
            raise UserError(f"{key}={shown(value)}: expected {named}")
        if fault := self.fault(value):
            raise UserError(f"{key}={shown(value)}: {fault}")

    def fault(self, value: float) -> str:
        """What a number must be and is not; "" if it is."""
        if isinstance(value, float) and not math.isfinite(value):
            return "must be a finite number"
        low, high = f"{self.low:.16g}", f"{self.high:.16g}"
        if value < self.low or (value == self.low and self.ends[0] == "("):
            rule = f"must be {'above' if self.ends[0] == '(' else 'at least'} {low}"
        elif value > self.high or (value == self.high and self.ends[1] == ")"):
            rule = f"must be {'below' if self.ends[1] == ')' else 'at most'} {high}"
        else:
            return ""
        if (self.low, self.high) == (0, 1):
            return f"must be in {self}"
        return rule + (self.why if value <= self.low else "")


class Numbers(NamedTuple):
    """Comma-separated numbers, or nothing."""

    each: Number

    def __str__(self) -> str:
        return f"comma-separated, each {self.each}"

    def check(self, key: str, value: Any) -> None:
        """See ``Limit``."""
        _check_text(key, value)
        if not value.strip():
            return
        kind = self.each.kind
        try:
            numbers = [kind(part) for part in value.split(",")]
        except ValueError:
            raise UserError(
                f"{key}={shown(value)}: expected comma-separated {kind.__name__}s"
            ) from None
        for number in numbers:
            if fault := self.each.fault(number):
                raise UserError(f"{key}={shown(value)}: every one {fault}")


class Choice(NamedTuple):
    """One of a few names, or with ``several`` any of them, comma-separated."""

    names: tuple[str, ...]
    several: bool = False

    def __str__(self) -> str:
        names = " | ".join(name or '""' for name in self.names)
        return f"comma-separated of {names}" if self.several else names

    def check(self, key: str, value: Any) -> None:
        """See ``Limit``."""
        _check_text(key, value)
        parts = [part.strip() for part in value.split(",") if part.strip()]
        for name in parts if self.several else [value]:
            if name not in self.names:
                allowed = ", ".join(name or '""' for name in self.names)
                raise UserError(f"{key}={shown(name, quoted=True)} is not one of {allowed}")


class Text(NamedTuple):
    """A text of one line.

    Attributes:
      pattern: that the whole text matches.
      told: what it is, in words.
      longest: in bytes.
    """

    told: str = "text"
    pattern: str = ".*"
    longest: int = _LONG

    def __str__(self) -> str:
        return self.told

    def check(self, key: str, value: Any) -> None:
        """See ``Limit``."""
        _check_text(key, value)
        if len(value.encode()) >= self.longest or not re.fullmatch(self.pattern, value):
            raise UserError(f"{key}={shown(value, quoted=True)}: expected {self.told}")


class PathText(NamedTuple):
    """A path, several comma-separated ones, or a name that is looked up elsewhere."""

    told: str = "a path"

    def __str__(self) -> str:
        return self.told

    def check(self, key: str, value: Any) -> None:
        """See ``Limit``."""
        _check_text(key, value)
        for path in map(str.strip, value.split(",")):
            longest = max(len(part.encode()) for part in path.split("/"))
            if len(path.encode()) >= _LONG or longest > 255:
                raise UserError(f"{key}={shown(value, quoted=True)}: too long for {self.told}")
            try:
                pathlib.Path(path).expanduser()
            except RuntimeError:
                raise UserError(f"{key}={shown(value)}: no home folder of that name") from None


class Regex(NamedTuple):
    """A regular expression."""

    def __str__(self) -> str:
        return "a regular expression"

    def check(self, key: str, value: Any) -> None:
        """See ``Limit``."""
        _check_text(key, value)
        try:
            if len(value) > 1000:
                raise re.error("longer than 1000 characters")
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(
                f"{key}={shown(value, quoted=True)} is no regular expression: {error}"
            ) from None


class _Flag(NamedTuple):
    """True or false."""

    def __str__(self) -> str:
        return "True | False"

    def check(self, key: str, value: Any) -> None:
        """See ``Limit``."""
        if not isinstance(value, bool):
            raise UserError(f"{key}={shown(value)}: expected true or false")


def _whole(low: int, high: int = 2**31 - 1, why: str = "") -> Number:
    return Number(low, high, kind=int, why=why)


def _real(ends: str, low: float, high: float) -> Number:
    return Number(low, high, ends)


def _choice(names: str) -> Choice:
    return Choice(tuple(names.split()))


_ESTIMATORS = "identity adam fisher_diag kfac ekfac ggn_cg hessian_cg official metagradient"
_DTYPES = "float32 bfloat16 float64"
_NO_ERROR_BAR = ", or there is no error bar"
# Beyond these no array has ever been, and products of them still are 64-bit numbers.
_WIDTH, _LENGTH, _BATCH, _EXAMPLES = 2**20, 2**24, 2**24, 10**12
_LARGE = 1e30  # in float32, with room for its square root and some products
_SMALL = 1e-30
_TOKENIZER = r"(?!bpe:).*|bpe:[1-9]\d{2,6}"
_COUNTS = Numbers(_whole(1, _EXAMPLES))

LIMITS: dict[str, Limit] = {
    "seed": _whole(0, 2**32 - 1),
    "data.root": PathText(),
    "data.domains": PathText("comma-separated names of folders"),
    "data.tokenizer": Text("auto, byte, bpe:<size> or a folder", _TOKENIZER),
    "data.supervise": _choice("all last"),
    "data.row_length": _whole(1, _LENGTH),
    "data.overlong": _choice("truncate drop"),
    "data.benchmarks": PathText("comma-separated paths"),
    "data.max_segments": _whole(1, 2**16),
    "data.window": _whole(1, 2**24),
    "data.reference_examples": _whole(4),
    "data.test_examples": _whole(0),
    "data.prefetch": _whole(1, 4096),
    "data.workers": _whole(-1, 4096),
    "data.cache": PathText(),
    "data.synthetic.counts": Numbers(_whole(1, 10**9)),
    "data.synthetic.noise": _real("[]", 0, 1),
    "data.synthetic.reference": _whole(1, 10**9),
    "data.synthetic.test": _whole(1, 10**9),
    "model.init": PathText("random, a path or a name of the Hugging Face Hub"),
    "model.d_model": _whole(1, _WIDTH),
    "model.n_layers": _whole(1, 2**13),
    "model.n_heads": _whole(1, 2**14),
    "model.n_kv_heads": _whole(1, 2**14),
    "model.head_dim": _whole(2, 2**14),
    "model.d_ff": _whole(1, 2**22),
    "model.rope_theta": _real("[]", 1, 1e15),
    "model.norm_eps": _real("[]", _SMALL, 1),
    "model.dtype": _choice(_DTYPES),
    "model.param_dtype": _choice(_DTYPES),
    "model.attention": _choice("auto xla blocked splash cudnn"),
    "model.remat": _choice("none full dots offload"),
    "model.unroll": _whole(1, 2**13),
    "lora.rank": _whole(0, _WIDTH),
    "lora.alpha": _real("(]", 0, 1e6),
    "lora.dropout": _real("[)", 0, 1),
    "lora.target": Regex(),
    "base.examples": _whole(1, 10**9),
    "base.tokenizer": Text("byte, bpe:<size> or a folder", _TOKENIZER),
    "base.steps": _whole(0),
    "base.batch_size": _whole(1, _BATCH),
    "base.learning_rate": _real("(]", 0, 100),
    "training.steps": _whole(0),
    "training.epochs": _real("[]", 0, 1e6),
    "training.batch_size": _whole(1, _BATCH),
    "training.micro_batches": _whole(1, _BATCH),
    "training.learning_rate": _real("(]", 0, 100),
    "training.warmup": _real("[]", 0, 1),
    "training.schedule": _choice("cosine linear constant"),
    "training.final_learning_rate": _real("[]", 0, 1),
    "training.weight_decay": _real("[]", 0, 1e3),
    "training.beta1": _real("[)", 0, 1),
    "training.beta2": _real("[)", 0, 1),
    "training.epsilon": _real("[]", _SMALL, 1),
    "training.moment_dtype": Choice(("", "float32", "bfloat16")),
    "training.clip_norm": _real("[]", _SMALL, _LARGE),
    "training.checkpoint_every": _whole(1),
    "training.log_every": _whole(1),
    "loss.reduction": _choice("token example"),
    "loss.block": _whole(1, _LENGTH),
    "mixture.counts": _COUNTS,
    "mixture.examples": _whole(0, _EXAMPLES),
    "mixture.rounds": _whole(0, 10**4),
    "mixture.step": _real("()", 0, 1),
    "mixture.min_share": _real("[]", 0, 1),
    "mixture.max_repetition": _real("[]", 1, 1e6),
    "influence.estimator": _choice(_ESTIMATORS),
    "influence.damping": _real("[]", 0, _LARGE),
    "influence.damping_mode": _choice("relative absolute"),
    "influence.fraction": _real("[]", 0, 1),
    "influence.budget": _real("[]", 0, 1e6),
    "influence.confidence": _real("()", 0, 1),
    "influence.reference_examples": _whole(2, 10**9, _NO_ERROR_BAR),
    "influence.spread_examples": _whole(2, 10**9, _NO_ERROR_BAR),
    "influence.curvature_examples": _whole(1, 10**9),
    "influence.iterations": _whole(1, 10**6),
    "influence.tolerance": _real("[)", 0, 1),
    "influence.fisher": _choice("sampled empirical"),
    "influence.layers": Regex(),
    "influence.uncovered": _choice("diagonal drop"),
    "influence.inversion": _choice("damped pseudoinverse tikhonov"),
    "influence.important": _real("(]", 0, 1),
    "influence.max_factor": _whole(1, 2**22),
    "influence.layer_groups": _whole(1, 2**13),
    "influence.tangents": _whole(0, 10**6),
    "influence.weights": Numbers(_real("[]", 0, 1e12)),
    "influence.replay": _choice("forward reverse"),
    "influence.batch_size": _whole(1, _BATCH),
    "influence.round": _whole(-1, 10**4),
    "eval.tasks": Choice(("exact_match",), several=True),
    "eval.examples": _whole(2, 10**9, _NO_ERROR_BAR),
    "eval.max_new_tokens": _whole(1, 2**20),
    "eval.batch_size": _whole(1, _BATCH),
    "verify.round": _whole(0, 10**4),
    "verify.method": _choice("weights resample metagradient"),
    "verify.changes": Numbers(_real("()", 0, 1)),
    "verify.estimators": Choice(tuple(_ESTIMATORS.split()), several=True),
    "verify.domains": Text("comma-separated names of domains"),
    "verify.orders": _whole(1, 10**4),
    "plan.topology": Text("a machine such as v5e:4x8, h100:8 or cpu:1", r"(?!.*\d{7}).*", 64),
    "plan.price": _real("[]", 0, 1e9),
    "plan.model": PathText("a folder, or the name of a shipped one"),
    "plan.examples": _whole(1, _EXAMPLES),
    "plan.example_tokens": _whole(1, _LENGTH),
    "mesh.replica": _whole(-1, 2**20),
    "mesh.fsdp": _whole(-1, 2**20),
    "mesh.tensor": _whole(-1, 2**20),
    "mesh.slices": _whole(1, 2**20),
    "logging.trace": Text("two steps such as 10:12", r"(\d{1,10}:\d{1,10})?"),
}


class Key(NamedTuple):
    """A key of ``configs/base.py``.

    Attributes:
      name: "section.key".
      runtime: it may differ between the start and the continuation of a run. All others decide the
        result.
      meaning: in a line.
      limit: what it may be; None: a section that other files fill.
    """

    name: str
    runtime: bool
    meaning: str
    limit: Limit | None


@functools.cache
def keys() -> dict[str, Key]:
    """Every key by name, in the order of ``configs/base.py``."""
    sections, found = {"c": ""}, {}
    for line in (CONFIGS / "base.py").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"    (\w+)\.(\w+) = (\w+) = ConfigDict\(\)(  # .*)?", line):
            sections[match[3]] = f"{sections[match[1]]}{match[2]}."
        elif match := re.fullmatch(r"    (\w+)\.(\w+) = (.*?)  # \[(\w+)\] (.+)", line):
            name, limit = sections[match[1]] + match[2], None
            if match[3] != "ConfigDict()":
                limit = LIMITS.get(name, _Flag())
            found[name] = Key(name, match[4] == "runtime", match[5], limit)
    return found


def shown(value: Any, quoted: bool = False) -> str:
    """A value in an error message: of one line, and not long."""
    if isinstance(value, int) and abs(value) >= 10**60:
        return "a number beyond 10^60"
    plain = isinstance(value, str) and value.isprintable() and not quoted
    text = value if plain else repr(value)
    return text if len(text) <= 100 else f"{text[:60]}… ({len(text)} characters)"


def _check_text(key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise UserError(f"{key}={shown(value)}: expected text")
    if re.search("[\\x00-\\x1f\\x7f\\ud800-\\udfff]", value):
        raise UserError(f"{key}={shown(value, quoted=True)}: has a character that no name has")
