"""Answers in channels, as gpt-oss writes them: what it says to itself, then what it says.

A message is ``<|start|>assistant<|channel|>NAME<|message|>TEXT<|end|>``, the last one ends with
``<|return|>``. The channel "analysis" is reasoning, and the others are the answer (OpenAI, "OpenAI
harmony response format", 2025). The prompt ends within the head of the first message.
"""

from __future__ import annotations

from collections.abc import Mapping

from slmq.tools.calls import Mark
from slmq.tools.grammar import EMPTY, Grammar

__all__ = [
    "CHANNEL",
    "CONSTRAIN",
    "MESSAGE",
    "RECIPIENT",
    "ChannelReader",
    "answer_in_channels",
    "channels_of",
    "thought_in_channels",
]

START, CHANNEL, MESSAGE, END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
CONSTRAIN = "<|constrain|>"  # before the type of what follows, within a head
RECIPIENT = "to=functions."  # and the name of a tool, within a head
REASONING = "analysis"
HEAD, TEXT, THOUGHT, OUTSIDE = range(4)


def channels_of(tokens: Mapping[str, int]) -> dict[str, int]:
    """The markers of messages and channels, if a vocabulary has them as tokens."""
    if not all(mark in tokens for mark in (START, CHANNEL, MESSAGE, END)):
        return {}
    marks = (START, CHANNEL, MESSAGE, END, CONSTRAIN)
    return {mark: tokens[mark] for mark in marks if mark in tokens}


def answer_in_channels(call: str | None, tokens: Mapping[str, int], *, free: bool) -> str:
    """A message to a tool, or one to the user, behind what the model says to itself.

    Parameters
    ----------
    call : str or None
        The message to a tool behind its first marker, as an expression of Lark; None: it may be
        addressed to the user alone.
    tokens : mapping of str to int
        Markers that are tokens.
    free : bool
        Whether it may be addressed to the user.
    """
    mark = Grammar(tokens).mark
    ways = [] if call is None else [f"{mark(CHANNEL)} {call}"]
    if free or call is None:
        ways.append(f'{mark(CHANNEL)} "final" {mark(MESSAGE)} TEXT')
    thought = f'{mark(CHANNEL)} "{REASONING}" {mark(MESSAGE)} TEXT {mark(END)}'
    return f'( {thought} {mark(START)} "assistant" )? {Grammar.one_of(ways)}'


def thought_in_channels(tokens: Mapping[str, int]) -> str:
    """What comes before an answer of any form: an expression of Lark, in which TEXT is any text."""
    mark = Grammar(tokens).mark
    thought = f'{mark(CHANNEL)} "{REASONING}" {mark(MESSAGE)} TEXT {mark(END)}'
    final = f'{mark(CHANNEL)} "final" {mark(MESSAGE)}'
    return f'( ( {thought} {mark(START)} "assistant" | {EMPTY} ) {final} )?'


class ChannelReader:
    """Tells the channels apart; as `ReasoningReader`.

    Parameters
    ----------
    calls : bool
        Whether messages to tools are handed on whole, head and markers included.
    """

    def __init__(self, calls: bool = False) -> None:
        self._calls = calls
        self._place = TEXT
        self._head = ""
        self._held = ""  # of a message to a tool: what stands before its text

    def push(self, piece: str) -> tuple[str, str]:
        """Take a piece of text, or a `Mark`; return what is answer and what is reasoning."""
        if isinstance(piece, Mark) and piece in (START, CHANNEL, MESSAGE, END, CONSTRAIN):
            return self._turn(piece), ""
        if self._place == HEAD:
            self._head += piece
        elif self._place == TEXT and self._held:
            piece, self._held = self._held + piece, ""
        return (piece if self._place == TEXT else ""), (piece if self._place == THOUGHT else "")

    def _turn(self, mark: str) -> str:
        """Go on to another place; return what of it is answer."""
        if mark == CHANNEL:
            self._place, self._head = HEAD, ""
        elif mark == MESSAGE and self._calls and RECIPIENT in self._head:
            self._place, self._held, self._head = TEXT, self._head + MESSAGE, ""
            return Mark(CHANNEL)
        elif mark == MESSAGE:
            thinks = self._head.split()[:1] == [REASONING]
            self._place, self._head = (THOUGHT if thinks else TEXT), ""
        elif mark == CONSTRAIN and self._place == HEAD:
            self._head += mark
        elif mark != CONSTRAIN:
            self._place, self._head = OUTSIDE, ""
        return ""
