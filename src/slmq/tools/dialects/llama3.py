"""Llama 3: a JSON object as the whole answer, or behind a token; built-in tools as Python."""

from __future__ import annotations

from collections.abc import Sequence

from slmq.tools.dialects.base import Call, Dialect, json_call, json_calls
from slmq.tools.dialects.pythonic import python_call, python_calls
from slmq.tools.grammar import Grammar
from slmq.tools.spans import SPACE, Balanced, Span
from slmq.tools.tool import Tool

__all__ = ["Llama3"]


class Llama3(Dialect):
    """``{"name": ..., "parameters": {...}}``, and ``<|python_tag|>name.call(key="text")``."""

    name = "llama3"
    openings = ("<|python_tag|>",)
    bare = "{"
    between = ";,"
    several = False  # "only single tool-calls at once", says the template

    def span(self, opening: str) -> Span:
        """See `Dialect`."""
        if opening in self.openings:
            return Balanced("{", "\"'", later="(")
        return Balanced("{", '"')

    def decode(self, opening: str, body: str) -> list[Call]:
        """See `Dialect`."""
        body = body.strip(SPACE)
        return json_calls(body) if body.startswith("{") else python_calls(body)

    def bare_body(self, tools: Sequence[Tool], grammar: Grammar, most: int) -> str:
        """See `Dialect`."""
        return json_call(tools, grammar, "parameters")

    def body(self, tools: Sequence[Tool], grammar: Grammar, most: int) -> str:
        """See `Dialect`."""
        named = [tool for tool in tools if tool.name.isidentifier()]
        ways = [self.bare_body(tools, grammar, most)]
        ways += [python_call(named, grammar, ".call")] if named else []
        return grammar.one_of(ways)
