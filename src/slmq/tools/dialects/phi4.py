"""Phi-4-mini: a list of JSON objects between tokens, and tools in the system message."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from slmq.tools.dialects.base import Dialect, Message, json_call
from slmq.tools.grammar import COMMA, Grammar
from slmq.tools.spans import Balanced, Span
from slmq.tools.tool import Tool

__all__ = ["Phi4"]

FROM_SYSTEM = re.compile(r"message(\.tools\b|\[['\"]tools['\"]\])")


class Phi4(Dialect):
    """``<|tool_call|>[{"name": ..., "arguments": {...}}, ...]<|/tool_call|>``."""

    name = "phi4-mini"
    openings = ("<|tool_call|>",)
    closing = "<|/tool_call|>"

    def span(self, opening: str) -> Span:
        """See `Dialect`."""
        return Balanced("[{", '"', self.closing)

    def body(self, tools: Sequence[Tool], grammar: Grammar, most: int) -> str:
        """See `Dialect`."""
        call = grammar.rule(json_call(tools, grammar))
        return f'"[" {grammar.repeated(call, COMMA, most)} "]" {grammar.mark(self.closing)}'

    def messages(
        self, messages: Sequence[Message], tools: Sequence[Tool], template: str
    ) -> tuple[list[Message], list[Message] | None]:
        """See `Dialect`. The model's own template reads tools from the system message only."""
        if not FROM_SYSTEM.search(template):
            return super().messages(messages, tools, template)
        found, _ = super().messages(messages, (), template)
        found = [self._answered(message) for message in found]
        if tools:
            if found[0]["role"] != "system":
                found.insert(0, {"role": "system", "content": ""})
            declared = [tool.declaration["function"] for tool in tools]
            found[0] = {**found[0], "tools": json.dumps(declared, ensure_ascii=False)}
        return found, None

    @staticmethod
    def _answered(message: Message) -> Message:
        """A result by the role that the model knows."""
        return {**message, "role": "tool_response"} if message["role"] == "tool" else message
