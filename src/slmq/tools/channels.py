"""Answers in channels, as gpt-oss writes them: what it says to itself, then what it says.

A message is ``<|start|>assistant<|channel|>NAME<|message|>TEXT<|end|>``, the last one ends with
``<|return|>``. The channel "analysis" is reasoning, and the others are the answer (OpenAI, "OpenAI
harmony response format", 2025). The prompt ends within the head of the first message.
"""

from __future__ import annotations

from collections.abc import Mapping

from slmq.tools.calls import Mark
from slmq.tools.grammar import EMPTY, Grammar

__all__ = ["ChannelReader", "channels_of", "thought_in_channels"]

START, CHANNEL, MESSAGE, END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
CONSTRAIN = "<|constrain|>"  # before the type of what follows, within a head
REASONING = "analysis"
HEAD, TEXT, THOUGHT, OUTSIDE = range(4)


def channels_of(tokens: Mapping[str, int]) -> dict[str, int]:
    """The markers of messages and channels, if a vocabulary has them as tokens."""
    if not all(mark in tokens for mark in (START, CHANNEL, MESSAGE, END)):
        return {}
    marks = (START, CHANNEL, MESSAGE, END, CONSTRAIN)
    return {mark: tokens[mark] for mark in marks if mark in tokens}


def thought_in_channels(tokens: Mapping[str, int]) -> str:
    """What comes before an answer of any form: an expression of Lark, in which TEXT is any text."""
    mark = Grammar(tokens).mark
    thought = f'{mark(CHANNEL)} "{REASONING}" {mark(MESSAGE)} TEXT {mark(END)}'
    final = f'{mark(CHANNEL)} "final" {mark(MESSAGE)}'
    return f'( ( {thought} {mark(START)} "assistant" | {EMPTY} ) {final} )?'


class ChannelReader:
    """Tells the channels apart; as `ReasoningReader`."""

    def __init__(self) -> None:
        self._place = TEXT
        self._head = ""

    def push(self, piece: str) -> tuple[str, str]:
        """Take a piece of text, or a `Mark`; return what is answer and what is reasoning."""
        if isinstance(piece, Mark) and piece in (START, CHANNEL, MESSAGE, END, CONSTRAIN):
            self._turn(piece)
            return "", ""
        if self._place == HEAD:
            self._head += piece
        return (piece if self._place == TEXT else ""), (piece if self._place == THOUGHT else "")

    def _turn(self, mark: str) -> None:
        if mark == CHANNEL:
            self._place, self._head = HEAD, ""
        elif mark == MESSAGE:
            thinks = self._head.split()[:1] == [REASONING]
            self._place, self._head = (THOUGHT if thinks else TEXT), ""
        elif mark != CONSTRAIN:
            self._place, self._head = OUTSIDE, ""
