"""The grammar of an answer that may hold calls: free up to the first one, strict within it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slmq.tools.dialects import Dialect
from slmq.tools.grammar import EMPTY, Grammar, any_text
from slmq.tools.tool import Tool

__all__ = ["answer_grammar"]


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
    ways: list[str] = []
    if dialect.bare:
        ways.append(dialect.bare_body(tools, grammar, most))
    marked = [mark for mark in dialect.openings[:1] if mark in tokens or not dialect.bare]
    for mark in marked:
        body = grammar.rule(dialect.body(tools, grammar, most))
        again = ""
        if dialect.separator is not None and most > 1:
            between = f"{grammar.text(dialect.separator)} {grammar.mark(mark)} {body}"
            again = f"( {between} ){{0,{most - 1}}}"
        ways.append(f"{_opening(grammar, mark, tokens, free=free)} {body} {again}")
    if free:
        ways.append(_text(grammar, dialect.bare))
    return grammar.source(f"{_thought(grammar, pairs, within)} {grammar.one_of(ways)}")


def _opening(grammar: Grammar, mark: str, tokens: Mapping[str, int], *, free: bool) -> str:
    """The marker, and the text before it where that is free."""
    if not free:
        return grammar.mark(mark)
    return (
        f"TEXT {grammar.mark(mark)}"
        if mark in tokens
        else grammar.lazy(f"TEXT {grammar.text(mark)}")
    )


def _text(grammar: Grammar, bare: str) -> str:
    """An answer without calls: where a bracket begins one, text begins with something else."""
    if not bare:
        return "TEXT"
    return f"{EMPTY} | /[^{bare}\\s]{any_text()}/".replace("[^[", "[^\\[")


def _thought(grammar: Grammar, pairs: Mapping[str, str], within: str | None) -> str:
    """What a model says to itself first."""
    if within is not None:
        return f"TEXT {grammar.mark(within)}"
    if not pairs:
        return ""
    ways = [f"{grammar.mark(begin)} TEXT {grammar.mark(end)}" for begin, end in pairs.items()]
    return f"( {grammar.one_of(ways)} )?"
