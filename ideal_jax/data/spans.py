"""What the assistant says in a conversation that a chat template has written.

A span is a range of characters. The template's ``{% generation %}`` blocks are the spans, if it has
any. Or else a turn is what it adds to the text that asks for it, which takes two renderings of
everything before. Where a template was seen to frame all turns of such conversations alike, marks
around their content find them in one rendering.
"""

import functools
import re
from typing import Literal, NamedTuple

from ideal_jax.data.templates import Talk, Template, TokenizerError, any_of
from ideal_jax.errors import UserError

Span = tuple[int, int]
_Roles = tuple[str, ...]
_NOTHING = re.compile(r"\s*\Z")
_ALIKE = 3  # exchanges: more of them are framed as these are


class Stop(NamedTuple):
    """What ends an answer.

    Attributes:
      text: of the token; "" if nothing does.
      how: the template closes answers with it, inside of what the assistant says or just outside;
        or it is what begins the next turn; or the tokenizer's end of text.
    """

    text: str
    how: Literal["inside", "outside", "next turn", "end of text"]


class _Frame(NamedTuple):
    """What a template writes around the content of a turn; the first part is not learned."""

    request: str
    lead: str
    tail: str


class Turns:
    """The assistant's turns in what one template writes."""

    def __init__(self, template: Template):
        self.template = template
        self._frames: dict[_Roles, _Frame | None] = {}

    def text_and_spans(self, talk: Talk) -> tuple[str, list[Span]]:
        """The conversation as text, and what is learned of it, each turn with its end.

        The text is the template's; where that closes no answer, the last one is closed here.
        """
        text, found = self._found(talk)
        spans = []
        for start, end in found:
            said = text[start:end].rstrip()
            if said and not said.endswith(self._ends):
                if behind := re.compile(rf"\s*({any_of(self._ends).pattern})").match(text, end):
                    end = behind.end()
                elif self.stop.text and _NOTHING.match(text, end):
                    text += self.stop.text
                    end = len(text)
            spans.append((start, end))
        return text, spans

    def prompt(self, talk: Talk) -> str:
        """The conversation as text, with the request for an answer that answers begin behind.

        Some templates request with an opening (``<think>``) that answers in training do not have.
        """
        return self.template.text(talk, prompt=True).removesuffix(self._opening)

    @functools.cached_property
    def stop(self) -> Stop:
        """What ends an answer."""
        closing = any_of(self.template.closing)
        inside = re.compile(rf"(?:{closing.pattern})\Z")
        behind = re.compile(rf"\s*({closing.pattern})")
        for roles in (["user", "assistant"], ["system", "user", "assistant"]):
            for how in ("outside", "next turn"):
                then = ["user"] if how == "next turn" else []
                said = [{"role": role, "content": role[0]} for role in roles + then]
                try:
                    talk = self.template.talk(said, learned=[len(roles) - 1])
                    text, spans = self._found(talk)
                except TokenizerError:
                    raise
                except UserError:
                    continue
                start, end = spans[-1] if spans else (0, 0)
                if found := inside.search(text[start:end].rstrip()):
                    return Stop(found.group(), "inside")
                if found := behind.match(text, end) if end else None:
                    return Stop(found[1], how)
        return Stop(self.template.eos, "end of text")

    @functools.cached_property
    def _ends(self) -> tuple[str, ...]:
        """The tokens that may end a turn; of tools, some models have one of their own."""
        ends = {token for token in self.template.closing if token in self.template.specials}
        return tuple(sorted({*ends, self.stop.text} - {""}))

    @functools.cached_property
    def _opening(self) -> str:
        """The end of a request for an answer that answers do not begin with."""
        try:
            talk = self.template.talk([{"role": "user", "content": "q"}])
            asked = self.template.text(talk, prompt=True)
            before = self.template.text(talk.then(talk.edge)).partition(talk.edge)[0]
        except UserError:
            return ""
        return asked[len(before) :] if asked.startswith(before) else ""

    @functools.cached_property
    def _farewell(self) -> str:
        """What is written at the end of a conversation only, whoever spoke last."""
        try:
            talk = self.template.talk([{"role": "user", "content": "question"}])
            short, longer = self.template.text(talk), self.template.text(talk.then("answer"))
        except UserError:
            return ""
        alike = zip(short, longer, strict=False)
        common = next((k for k, (a, b) in enumerate(alike) if a != b), len(short))
        for token in any_of(self.template.closing).finditer(short):
            if token.start() < common < token.end():
                common = token.start()
        rest = short[common:]
        only_there = "question" in short[:common] and longer.endswith(rest)
        return rest if only_there and rest.strip() else ""

    def _so_far(self, talk: Talk) -> str:
        """The conversation as text that may go on."""
        return self.template.text(talk).removesuffix(self._farewell)

    def _found(self, talk: Talk) -> tuple[str, list[Span]]:
        """The text, and the spans without regard to what ends them."""
        if self.template.has_blocks:
            return self._by_blocks(talk)
        text = self.template.text(talk)
        spans = self._by_marks(talk, text)
        if spans is None:
            spans = [self._by_prefix(talk, text, turn) for turn in talk.learned]
        return text, spans

    def _by_blocks(self, talk: Talk) -> tuple[str, list[Span]]:
        text, spans = self.template.text_and_blocks(talk)
        turns = _turns(talk)
        if talk.learned == turns:
            return text, spans

        # A turn may have several blocks, so those of the turns before are counted.
        @functools.cache
        def before(turn: int) -> int:
            first = turn == turns[0]
            return 0 if first else len(self.template.text_and_blocks(talk.first(turn))[1])

        learned = []
        for turn in talk.learned:
            later = [other for other in turns if other > turn]
            learned += spans[before(turn) : before(later[0]) if later else len(spans)]
        return text, learned

    def _by_prefix(self, talk: Talk, text: str, turn: int) -> Span:
        """What a turn adds to the text that asks for it."""
        if turn == 0 and (first := self._first(talk, text)):
            return first
        # A line break between turns is the template's, not the assistant's.
        answered = self._so_far(talk.first(turn + 1)).rstrip()
        asked = self.prompt(talk.first(turn))
        if text.startswith(answered) and answered.startswith(asked):
            return len(asked), len(answered)
        advice = "add {% generation %} tags to the template"
        if text.startswith(answered) and answered.startswith(self._so_far(talk.first(turn))):
            raise UserError(
                f"{talk.where}: the chat template asks for an answer with text that its answers "
                f"do not begin with, so the assistant's tokens can not be found; {advice}"
            )
        if len(talk.learned) > 1:
            advice += ", or try data.supervise=last"
        raise UserError(
            f"{talk.where}: the chat template rewrites earlier turns as the conversation grows, so "
            f"the assistant's tokens can not be found; {advice}"
        )

    def _first(self, talk: Talk, text: str) -> Span | None:
        """The span of a turn that nothing comes before: few templates can ask for that one."""
        frame = self._frame(("user", "assistant"))
        place = _contents(self.template, talk, text).get(0)
        content = talk.messages[0]["content"]
        return _framed(frame, text, place, content) if frame and place else None

    def _by_marks(self, talk: Talk, text: str) -> list[Span] | None:
        """The spans of all turns by marks around their content; None where prefixes must tell."""
        roles = tuple(message["role"] for message in talk.messages)
        frame = self._frame(roles) if len(talk.learned) > 1 and _is_plain(talk) else None
        if frame is None:
            return None
        found = _contents(self.template, talk, text)
        spans = []
        for turn, place in found.items():
            if turn in talk.learned:
                span = _framed(frame, text, place, talk.messages[turn]["content"])
                if span is None:
                    return None
                spans.append(span)
        return spans or None

    def _frame(self, roles: _Roles) -> _Frame | None:
        """How turns are framed in a conversation of these roles, if all are framed alike."""
        shape = _shape(roles)
        if shape is None:
            return None
        if shape not in self._frames:
            try:
                self._frames[shape] = self._learned_frame(shape)
            except TokenizerError:
                raise
            except UserError:
                self._frames[shape] = None
        return self._frames[shape]

    def _learned_frame(self, shape: _Roles) -> _Frame | None:
        messages = [{"role": r, "content": f"{r}{k}"} for k, r in enumerate(shape)]
        turns = [k for k, role in enumerate(shape) if role == "assistant"]
        talk = self.template.talk(messages, learned=turns)
        text = self.template.text(talk)
        places = _contents(self.template, talk, text)
        frames = set()
        for turn in turns:
            start, end = self._by_prefix(talk, text, turn)
            so_far = self._so_far(talk.first(turn))
            low, high = places.get(turn, (-1, -1))
            if not (text.startswith(so_far) and len(so_far) <= start <= low <= high <= end):
                return None
            frames.add(_Frame(text[len(so_far) : start], text[start:low], text[high:end]))
        return frames.pop() if len(frames) == 1 else None


def _turns(talk: Talk) -> list[int]:
    return [k for k, message in enumerate(talk.messages) if message["role"] == "assistant"]


def _is_plain(talk: Talk) -> bool:
    return not talk.tools and all(
        message.keys() == {"role", "content"} for message in talk.messages
    )


def _shape(roles: _Roles) -> _Roles | None:
    """The roles of a short conversation that stands for all long ones like it, if there is one."""
    system = roles[:1] if roles[0] == "system" else ()
    rest = roles[len(system) :]
    first = rest[:1] if rest[:1] == ("assistant",) else ()
    pairs = rest[len(first) :]
    if pairs != tuple(("user", "assistant")[k % 2] for k in range(len(pairs))):
        return None
    return system + first + pairs[: 2 * _ALIKE + len(pairs) % 2]


def _contents(template: Template, talk: Talk, text: str) -> dict[int, Span]:
    """Where the content of each turn of the assistant is in the text, but for white space around.

    Empty if the template does something else to them than to write them.
    """
    messages, turns = list(talk.messages), _turns(talk)
    for turn in turns:
        content = messages[turn]["content"]
        before, said, after = _parted(content)
        edged = f"{before}{talk.edge}{said}{talk.edge}{after}"
        messages[turn] = {**messages[turn], "content": edged}
    parts = template.text(talk._replace(messages=messages)).split(talk.edge)
    if len(parts) != 2 * len(turns) + 1 or "".join(parts) != text:
        return {}
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + len(part))
    return {turn: (ends[2 * k + 1], ends[2 * k + 2]) for k, turn in enumerate(turns)}


def _framed(frame: _Frame, text: str, place: Span, content: str) -> Span | None:
    """The span of a turn around its content; None if it does not stand in this frame."""
    before, said, after = _parted(content)
    if not said and not frame.tail:
        return None  # where such a turn ends is not seen
    low, high = place
    for space in {before: None, "": None}:  # written, or trimmed
        opening = frame.request + frame.lead + space
        if text.endswith(opening, 0, low):
            start = low - len(space) - len(frame.lead)
            break
    else:
        return None
    if not frame.tail:
        return start, high
    for space in {after: None, "": None}:
        if text.startswith(space + frame.tail, high):
            return start, high + len(space) + len(frame.tail)
    return None


def _parted(content: str) -> tuple[str, str, str]:
    """White space, what is said, white space."""
    said = content.strip()
    begin = content.index(said) if said else len(content)
    return content[:begin], said, content[begin + len(said) :]


@functools.lru_cache(maxsize=16)
def turns_of(template: Template) -> Turns:
    """What finds the turns of a template."""
    return Turns(template)
