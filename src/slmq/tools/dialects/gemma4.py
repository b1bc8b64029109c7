"""Gemma 4: as FunctionGemma, with tokens of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from slmq.tools.dialects.base import Message
from slmq.tools.dialects.function_gemma import FunctionGemma
from slmq.tools.tool import Tool

__all__ = ["Gemma4"]


class Gemma4(FunctionGemma):
    """``<|tool_call>call:name{key:<|"|>text<|"|>,n:3}<tool_call|>``."""

    name = "gemma4"
    openings = ("<|tool_call>",)
    closing = "<tool_call|>"
    quote = '<|"|>'
    marks = (quote,)

    def messages(
        self, messages: Sequence[Message], tools: Sequence[Tool], template: str
    ) -> tuple[list[Message], list[Message] | None]:
        """See `Dialect`. Results belong to the message that has the calls."""
        found, declared = super().messages(messages, tools, template)
        joined: list[Message] = []
        for message in found:
            if message["role"] == "tool" and joined and joined[-1]["role"] == "assistant":
                answered = {"name": message.get("name"), "response": _value(message["content"])}
                before = joined[-1].get("tool_responses", [])
                joined[-1] = {**joined[-1], "tool_responses": [*before, answered]}
            else:
                joined.append(message)
        return joined, declared


def _value(content: Any) -> Any:
    """An object as one, anything else as text."""
    try:
        value = json.loads(content)
    except (TypeError, ValueError):
        return content
    return value if isinstance(value, dict) else content
