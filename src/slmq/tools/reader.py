"""An answer as it comes: what of it is text, what is reasoning, what is a call of a tool.

Streams and whole answers go through the same reader. What it says depends on the text and its
marks alone, never on where the pieces are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from slmq.tools.calls import Mark, Said, ToolCall
from slmq.tools.channels import ChannelReader
from slmq.tools.reasoning import HEADS
from slmq.tools.spans import SPACE, MalformedError, Span

if TYPE_CHECKING:
    from slmq.tools.dialects.base import Dialect

__all__ = ["CallReader", "Reader", "ReasoningReader"]

LONGEST_BODY = 1 << 20  # characters; an answer that never ends a call holds no more back


class CallReader:
    """Tells calls from text.

    Parameters
    ----------
    dialect : Dialect
        How the model writes calls.
    names : collection of str
        The tools that there are: a call of any other is text.
    new_id : callable
        Gives the id of the call of this number.
    tokens : collection of str
        Markers that are one token; only as such they count.
    """

    def __init__(
        self,
        dialect: Dialect,
        names: Mapping[str, Any] | frozenset[str],
        new_id: Callable[[int], str],
        tokens: frozenset[str] = frozenset(),
    ) -> None:
        self._dialect = dialect
        self._names = names
        self._new_id = new_id
        self._spelled = [text for text in dialect.openings if text not in tokens]
        self._marked = [text for text in dialect.openings if text in tokens]
        self._count = 0
        self._span: Span | None = None
        self._raw = ""  # of the call that has begun, its opening included
        self._opening = 0  # characters of it
        self._space = ""  # before it: none of the text, unless the call is text, too
        self._behind_call = False
        self._spoken = False
        self._held = ""  # text that may turn out to be the space before a call, or its opening
        # Whether a call may begin without a marker: at the start, and behind another such call.
        self._bare = bool(dialect.bare)

    def push(self, piece: str) -> Said:
        """Take a piece of text, or a `Mark`."""
        said = Said()
        if isinstance(piece, Mark) and self._span is None:
            if piece in self._marked:  # any other is a token without a meaning here
                self._begin(said, piece)
            return said
        rest: str | None = piece
        while rest:
            rest = self._outside(said, rest) if self._span is None else self._inside(said, rest)
        return said

    def finish(self) -> Said:
        """The end of the answer: an unfinished call is text."""
        said = Said()
        self._speak(said, self._space + self._raw + self._held)
        self._span, self._space, self._raw, self._held = None, "", "", ""
        return said

    def _outside(self, said: Said, text: str) -> str | None:
        """Take text up to the next call; return what is left."""
        text, self._held = self._held + text, ""
        if self._bare:
            body = text.lstrip(SPACE + (self._dialect.between if self._count else ""))
            if not body:
                self._held = text
                return None
            if body[0] in self._dialect.bare:
                self._begin(said, text[: len(text) - len(body)])
                return body
            self._bare = False
        found = [(at, mark) for mark in self._spelled if (at := text.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            self._held = text[:at]
            self._begin(said, mark)
            return text[at + len(mark) :]
        safe = len(text) - self._partial(text)
        safe = len(text[:safe].rstrip(SPACE))
        self._speak(said, text[:safe])
        self._held = text[safe:]
        return None

    def _begin(self, said: Said, opening: str) -> None:
        """Begin a call; the space before it is none of the text."""
        words = self._held.rstrip(SPACE)
        self._speak(said, words)
        self._space, self._held = self._held[len(words) :], ""
        self._span = self._dialect.span(opening)
        self._raw, self._opening = opening, len(opening)

    def _inside(self, said: Said, text: str) -> str | None:
        """Take text of the call that has begun; return what is left behind it."""
        assert self._span is not None
        try:
            end = self._span.push(text)
            if end is None and len(self._raw) + len(text) > LONGEST_BODY:
                raise MalformedError(LONGEST_BODY - len(self._raw))
        except MalformedError as stop:
            # All before is text now, and what comes may begin another call.
            self._speak(said, self._space + self._raw + text[: stop.at])
            self._span, self._space, self._raw, self._bare = None, "", "", False
            return text[stop.at :]
        if end is None:
            self._raw += text
            return None
        self._end(said, self._raw + text[:end])
        return text[end:]

    def _end(self, said: Said, raw: str) -> None:
        """The body is whole: it is calls, or text after all."""
        space, self._span, self._space, self._raw = self._space, None, "", ""
        if not self._take(said, raw):
            self._speak(said, space + raw)
            self._bare = False

    def _take(self, said: Said, raw: str) -> bool:
        """Read the calls of a body; whether it has some that there are tools for."""
        try:
            calls = self._dialect.decode(raw[: self._opening], raw[self._opening :])
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return False
        if not calls or any(name not in self._names for name, _ in calls):
            return False
        for name, arguments in calls:
            said.calls.append(ToolCall(self._new_id(self._count), name, arguments))
            self._count += 1
        self._behind_call = True
        return True

    def _speak(self, said: Said, text: str) -> None:
        """Text of the answer; calls between two texts leave one line end."""
        if self._behind_call:
            text = text.lstrip(SPACE)
            self._behind_call = not text
            text = "\n" * (self._spoken and bool(text)) + text
        self._spoken = self._spoken or bool(text)
        said.text += text

    def _partial(self, text: str) -> int:
        """Length of the longest ending that may begin a marker."""
        longest = max((len(mark) for mark in self._spelled), default=0)
        for length in range(min(longest - 1, len(text)), 0, -1):
            if any(mark.startswith(text[-length:]) for mark in self._spelled):
                return length
        return 0


class ReasoningReader:
    """Tells what a model says to itself from what it answers.

    Parameters
    ----------
    pairs : mapping of str to str
        Markers that begin reasoning, and those that end it: tokens, so that the same characters as
        ordinary text are text.
    within : str or None
        The marker that ends the reasoning which the prompt has begun.
    """

    def __init__(self, pairs: Mapping[str, str], within: str | None = None) -> None:
        self._pairs = dict(pairs)
        self._end = within
        self._held = ""  # line ends within reasoning, which count if more follows
        self._fresh = within is not None  # no character since the marker
        self._stripping = False  # line ends behind reasoning
        self._opening = ""
        self._head = ""  # what may stand here and is no reasoning

    def push(self, piece: str) -> tuple[str, str]:
        """Take a piece of text, or a `Mark`; return what is answer and what is reasoning."""
        if isinstance(piece, Mark):
            if self._end is None and piece in self._pairs:
                self._end, self._fresh, self._held = self._pairs[piece], True, ""
                self._opening, self._head = piece, HEADS.get(piece, "")
                return "", ""
            if piece == self._end:
                self._end, self._stripping = None, True
                return "", ""
            if piece in self._pairs or piece in self._pairs.values():
                return "", ""  # one that begins or ends nothing
        if self._end is None:
            return self._answer(piece), ""
        piece = self._behind_head(piece)
        text = piece.lstrip("\n") if self._fresh else piece
        self._fresh = self._fresh and not text
        text = self._held + text
        spoken = text.rstrip("\n")
        self._held = text[len(spoken) :]
        return "", spoken

    def _behind_head(self, piece: str) -> str:
        """What is left of a piece; a beginning that is another than the head is reasoning."""
        while self._head and piece:
            if piece[0] != self._head[0]:
                whole = HEADS[self._opening]
                piece = whole[: len(whole) - len(self._head)] + piece
                self._head = ""
                return piece
            piece, self._head = piece[1:], self._head[1:]
        return piece

    def _answer(self, piece: str) -> str:
        if not self._stripping:
            return piece
        text = piece.lstrip("\n")
        self._stripping = not text
        return type(piece)(text)


class Reader:
    """Both readers, one behind the other.

    Parameters
    ----------
    reasoning : ReasoningReader, ChannelReader or None
    calls : CallReader or None
    """

    def __init__(
        self, reasoning: ReasoningReader | ChannelReader | None, calls: CallReader | None
    ) -> None:
        self._reasoning = reasoning
        self._calls = calls

    def push(self, piece: str) -> Said:
        """Take a piece of text, or a `Mark`."""
        answer, reasoning = (piece, "") if self._reasoning is None else self._reasoning.push(piece)
        if self._calls is None:
            return Said(answer, reasoning)
        said = self._calls.push(answer)
        said.reasoning = reasoning
        return said

    def finish(self) -> Said:
        """The end of the answer."""
        return Said() if self._calls is None else self._calls.finish()
