"""Mistral: a token, then a list of JSON objects, or since 2025 a name and its arguments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from slmq.tools.calls import ALPHABET, ID_LENGTH, call_id
from slmq.tools.dialects.base import Call, Dialect, Message, json_call, json_calls
from slmq.tools.grammar import COMMA, Grammar, closed
from slmq.tools.spans import SPACE, Balanced, Span
from slmq.tools.tool import Tool

__all__ = ["Mistral", "MistralNamed"]

ARGUMENTS = "[ARGS]"
CALL_ID = "[CALL_ID]"


class Mistral(Dialect):
    """``[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]``.

    The newer form, ``[TOOL_CALLS]name[ARGS]{...}``, is read as well.
    """

    name = "mistral"
    openings = ("[TOOL_CALLS]",)
    marks = (ARGUMENTS, CALL_ID)

    def span(self, opening: str) -> Span:
        """See `Dialect`."""
        return Balanced("[{", '"', later="{")

    def decode(self, opening: str, body: str) -> list[Call]:
        """See `Dialect`."""
        body = body.strip(SPACE)
        if body.startswith(("[", "{")):
            return json_calls(body)
        head, brace, rest = body.partition("{")
        name = head.partition("[")[0].strip(SPACE)
        arguments = json.loads(brace + rest)
        if not isinstance(arguments, dict):
            raise ValueError("expected an object of arguments")
        return [(name, arguments)]

    def body(self, tools: Sequence[Tool], grammar: Grammar, most: int) -> str:
        """See `Dialect`."""
        call = grammar.rule(json_call(tools, grammar))
        return f'" "? "[" {grammar.repeated(call, COMMA, most)} "]"'

    def messages(
        self, messages: Sequence[Message], tools: Sequence[Tool], template: str
    ) -> tuple[list[Message], list[Message] | None]:
        """See `Dialect`. The templates refuse ids of another form, so they get one."""
        found = [_with_ids(message) for message in messages]
        return super().messages(found, tools, template)


class MistralNamed(Mistral):
    """``[TOOL_CALLS]name[ARGS]{...}``, again for each call."""

    name = "mistral-args"
    separator = ""

    def body(self, tools: Sequence[Tool], grammar: Grammar, most: int) -> str:
        """See `Dialect`."""
        return grammar.one_of(
            grammar.rule(
                f"{grammar.text(tool.name)} {grammar.mark(ARGUMENTS)} "
                f"{grammar.json(closed(tool.parameters))}"
            )
            for tool in tools
        )


def _with_ids(message: Message) -> Message:
    found = dict(message)
    if "tool_call_id" in found:
        found["tool_call_id"] = _fitting(found["tool_call_id"])
    if found.get("tool_calls"):
        found["tool_calls"] = [
            {**call, "id": _fitting(call["id"])} if "id" in call else call
            for call in found["tool_calls"]
        ]
    return found


def _fitting(given: Any) -> Any:
    """An id of nine letters and digits for any other; the same for the same."""
    if not isinstance(given, str) or (len(given) == ID_LENGTH and set(given) <= set(ALPHABET)):
        return given
    return call_id(given.encode("utf-8", "surrogatepass"), 0)
