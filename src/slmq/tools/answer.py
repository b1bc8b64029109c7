"""The grammar of an answer that may hold calls: free up to the first one, strict within it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from slmq.tools.channels import (
    CHANNEL,
    answer_in_channels,
    channels_of,
    thought_in_channels,
)
from slmq.tools.dialects import Dialect
from slmq.tools.grammar import ANY, EMPTY, Grammar, any_text
from slmq.tools.tool import Tool

__all__ = ["answer_grammar", "silent_grammar", "thought"]

LINES = r"/\n{0,2}/"  # between reasoning and answer


def answer_grammar(
    dialect: Dialect,
    tools: Sequence[Tool],
    tokens: Mapping[str, int],
    pairs: Mapping[str, str],
    within: str | None,
    *,
    most: int,
    free: bool,
) -> str:
    """What an answer has to follow, as Lark.

    Parameters
    ----------
    dialect : Dialect
    tools : sequence of Tool
        Those that may be called.
    tokens : mapping of str to int
        Markers that are tokens.
    pairs : mapping of str to str
        Markers of reasoning.
    within : str or None
        The marker that ends the reasoning that the prompt has begun.
    most : int
        Calls in the answer.
    free : bool
        Whether the answer may be text alone, and text may stand before a call.

    Raises
    ------
    ValueError
        The schema of a tool cannot be enforced in this dialect.
    """
    grammar = Grammar(tokens)
    if _in_channels(dialect, tokens):
        body = grammar.rule(dialect.body(tools, grammar, most))
        return grammar.source(answer_in_channels(body, tokens, free=free))
    words = _words(dialect.bare)
    ways: list[str] = []
    if dialect.bare:
        ways.append(dialect.bare_body(tools, grammar, most))
    for mark in dialect.openings[:1]:
        if dialect.bare and mark not in tokens:
            continue  # its calls have no need of it
        body = grammar.rule(dialect.body(tools, grammar, most))
        if dialect.separator is not None:
            between = f"{grammar.text(dialect.separator)} {grammar.mark(mark)}"
            body = grammar.repeated(body, between, most)
        opening = grammar.mark(mark)
        if free and mark in tokens:
            opening = f"{words} {opening}"
        elif free:
            opening = grammar.lazy(f"{words} {opening}")
        ways.append(f"{opening} {body}")
    if free:
        ways.append(words)
    return grammar.source(f"{thought(tokens, pairs, within)} {grammar.one_of(ways)}")


def silent_grammar(dialect: Dialect, tokens: Mapping[str, int]) -> str | None:
    """Any text without a marker; None where all markers are tokens, which can be banned."""
    if _in_channels(dialect, tokens):
        return Grammar(tokens).source(answer_in_channels(None, tokens, free=True))
    # Without the end of a tag: models that may not write one write its relatives.
    spelled = [mark.rstrip(">") for mark in dialect.openings if mark not in tokens]
    if not spelled:
        return None
    grammar = Grammar(tokens)
    banned = " ".join(f"& ~/{ANY}*{re.escape(mark)}{ANY}*/" for mark in spelled)
    return grammar.source("WORDS") + f"WORDS: /{ANY}*/ {banned}\n"


def _in_channels(dialect: Dialect, tokens: Mapping[str, int]) -> bool:
    """Whether calls are messages of a channel, as answers are."""
    return CHANNEL in dialect.openings and bool(channels_of(tokens))


def _words(bare: str) -> str:
    """Any text; where a bracket begins a call, text begins with something else."""
    return f"( /[^\\{bare}\\s]{any_text()}/ | {EMPTY} )" if bare else "TEXT"


def thought(tokens: Mapping[str, int], pairs: Mapping[str, str], within: str | None) -> str:
    """What a model says to itself first: an expression of Lark, in which TEXT is any text.

    Parameters
    ----------
    tokens, pairs, within
        See `answer_grammar`.
    """
    if channels_of(tokens):
        return thought_in_channels(tokens)
    grammar = Grammar(tokens)
    if within is not None:
        return f"TEXT {grammar.mark(within)} {LINES}"
    if not pairs:
        return ""
    ways = [f"{grammar.mark(begin)} TEXT {grammar.mark(end)}" for begin, end in pairs.items()]
    return f"( {grammar.one_of(ways)} {LINES} )?"
