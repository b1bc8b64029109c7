"""Apertus: a list of objects, of which each has one key, the name of its tool."""

from __future__ import annotations

import json
from collections.abc import Sequence

from slmq.tools.dialects.base import Call, Dialect
from slmq.tools.grammar import COMMA, Grammar, closed
from slmq.tools.spans import SPACE, Balanced, Span
from slmq.tools.tool import Tool

__all__ = ["Apertus"]


class Apertus(Dialect):
    """``<|tools_prefix|>[{"name": {...}}, ...]<|tools_suffix|>``."""

    name = "apertus"
    openings = ("<|tools_prefix|>",)
    closing = "<|tools_suffix|>"

    def span(self, opening: str) -> Span:
        """See `Dialect`."""
        return Balanced("[", '"', self.closing)

    def decode(self, opening: str, body: str) -> list[Call]:
        """See `Dialect`."""
        listed = json.loads(body.strip(SPACE).removesuffix(self.closing))
        calls: list[Call] = []
        for item in listed:
            if not isinstance(item, dict) or len(item) != 1:
                raise ValueError("expected objects of one key, the name of a tool")
            [(name, arguments)] = item.items()
            if not isinstance(arguments, dict):
                raise ValueError("expected an object of arguments")
            calls.append((name, arguments))
        return calls

    def body(self, tools: Sequence[Tool], grammar: Grammar, most: int) -> str:
        """See `Dialect`."""
        call = grammar.rule(
            grammar.one_of(
                grammar.rule(
                    grammar.text(f"{{{json.dumps(tool.name)}: ")
                    + f" {grammar.json(closed(tool.parameters))} "
                    + grammar.text("}")
                )
                for tool in tools
            )
        )
        return f'"[" {grammar.repeated(call, COMMA, most)} "]" {grammar.mark(self.closing)}'
