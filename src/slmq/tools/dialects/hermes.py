"""Hermes, Qwen 2.5, Qwen 3 and SmolLM3: a JSON object between tags."""

from __future__ import annotations

from collections.abc import Sequence

from slmq.tools.dialects.base import Dialect, json_call
from slmq.tools.grammar import Grammar
from slmq.tools.tool import Tool

__all__ = ["Hermes"]


class Hermes(Dialect):
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, again for each call."""

    name = "hermes"
    openings = ("<tool_call>",)
    closing = "</tool_call>"
    separator = "\n"

    def body(self, tools: Sequence[Tool], grammar: Grammar, most: int) -> str:
        """See `Dialect`."""
        call, end = json_call(tools, grammar), grammar.mark(self.closing)
        return f'"\\n" {call} "\\n" {end}'
