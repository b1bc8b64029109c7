"""What a chat with tools says to a model, what the model may answer, and how that is read."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from slmq.chat.messages import checked_messages
from slmq.errors import TemplateError
from slmq.tools.answer import answer_grammar, silent_grammar, thought
from slmq.tools.calls import call_id
from slmq.tools.channels import CHANNEL, ChannelReader, channels_of
from slmq.tools.dialects import Dialect, dialect_named, dialect_of
from slmq.tools.dialects.base import MOST_CALLS
from slmq.tools.reader import CallReader, Reader, ReasoningReader
from slmq.tools.reasoning import begun, pairs_of, switch
from slmq.tools.tool import Tool
from slmq.tools.wish import Wish

__all__ = ["Speaker", "Speech", "prepare"]


class Speaker(Protocol):
    """What is needed of a tokenizer."""

    @property
    def markers(self) -> Mapping[str, int]:
        """Texts that are tokens of their own, with their ids."""

    def template_for(self, *, tools: bool) -> str | None:
        """The source of the chat template, for chats with or without tools."""

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """The prompt of a chat."""


@dataclass(frozen=True)
class Speech:
    """A prompt, and how its answer is to be made and read.

    Attributes
    ----------
    prompt : str
    grammar : str or None
        What the answer has to follow, as Lark; None if it is free.
    thought : str
        What the model says to itself before an answer of any form, as an expression of Lark; empty
        if it does not.
    banned : tuple of int
        Tokens that the answer must not have.
    marks : dict of int to str
        Tokens that the reader wants to be told of as `Mark`.
    """

    prompt: str
    grammar: str | None
    thought: str
    banned: tuple[int, ...]
    marks: dict[int, str]
    _dialect: Dialect | None
    _names: frozenset[str]
    _pairs: dict[str, str]
    _within: str | None
    _channels: bool

    def reader(self, ids: Sequence[int]) -> Reader | None:
        """A reader for the answer to the prompt of these tokens; None if all of it is text."""
        if self._dialect is None and not self._pairs and not self._channels:
            return None
        salt = hashlib.sha256(array("q", ids).tobytes()).digest()
        marks = frozenset(self.marks.values())
        calls = None
        if self._dialect is not None:
            calls = CallReader(self._dialect, self._names, partial(call_id, salt), marks)
        if self._channels:
            addressed = self._dialect is not None and CHANNEL in self._dialect.openings
            return Reader(ChannelReader(addressed), calls)
        reasoning = ReasoningReader(self._pairs, self._within) if self._pairs else None
        return Reader(reasoning, calls)


def prepare(
    speaker: Speaker,
    messages: Sequence[Mapping[str, Any]],
    wish: Wish,
    extra: Mapping[str, Any] | None = None,
) -> Speech:
    """Render a chat, and say what its answer may be.

    Parameters
    ----------
    speaker : Speaker
    messages : sequence of mapping
    wish : Wish
    extra : mapping, optional
        Further variables of the template.

    Raises
    ------
    TypeError, ValueError
        Messages or tools are not of the form that is needed.
    TemplateError
        The template refuses them.
    """
    extra = dict(extra or {})
    if wish.tools and "tools" in extra:
        raise ValueError("tools: expected them once, got them in chat_template_kwargs, too")
    tools = wish.callable
    template = speaker.template_for(tools=bool(tools))
    tokens = speaker.markers
    pairs = pairs_of(tokens)
    variables = {**switch(wish.thinking, template, pairs), **extra}
    dialect = None
    if wish.tools or wish.dialect is not None or _has_calls(messages):
        dialect = dialect_named(wish.dialect or dialect_of(template), tools)
        prompt = _rendered(speaker, dialect, messages, tools, template or "", variables)
    else:
        prompt = speaker.render_chat(messages, **variables)
    within = begun(prompt, _last_words(messages), pairs)
    known = {mark: tokens[mark] for mark in dialect.all_marks if mark in tokens} if dialect else {}
    channels = channels_of(tokens)
    marks = {**known, **{mark: tokens[mark] for pair in pairs.items() for mark in pair}, **channels}
    grammar = None
    if dialect is not None and tools:
        most = MOST_CALLS if wish.several and dialect.several else 1
        free = wish.choice == "auto"
        grammar = answer_grammar(dialect, tools, marks, pairs, within, most=most, free=free)
    elif dialect is not None and wish.tools:
        grammar = silent_grammar(dialect, marks)
    # The markers of channels are those of all answers: their grammar knows what may follow.
    banned = [token for mark, token in known.items() if mark not in channels]
    return Speech(
        prompt,
        grammar,
        thought(marks, pairs, within) if wish.thinking is not False else "",
        tuple(banned) if wish.choice == "none" else (),
        {token: mark for mark, token in marks.items()},
        dialect if tools else None,
        frozenset(tool.name for tool in tools),
        pairs,
        within,
        bool(channels),
    )


def _has_calls(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there are calls or results, which some templates have to be helped with."""
    return any(
        isinstance(message, Mapping)
        and (message.get("tool_calls") or message.get("role") == "tool")
        for message in messages
    )


def _last_words(messages: Sequence[Mapping[str, Any]]) -> str:
    content = messages[-1].get("content")
    return content if isinstance(content, str) else ""


def _rendered(
    speaker: Speaker,
    dialect: Dialect,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool],
    template: str,
    variables: Mapping[str, Any],
) -> str:
    checked = checked_messages(messages)
    if not tools and dialect.name == "generic" and not _has_calls(messages):
        return speaker.render_chat(checked, **variables)
    found, declared = dialect.messages(checked, tools, template)
    try:
        return speaker.render_chat(found, tools=declared, **variables)
    except TemplateError:
        if dialect.name != "generic" or found[0]["role"] != "system" or len(found) < 2:
            raise
        # A template that has no system message: the user says it.
        said = {**found[1], "content": f"{found[0]['content']}\n\n{found[1]['content']}"}
        return speaker.render_chat([said, *found[2:]], tools=declared, **variables)
