"""Qwen3-Coder and Qwen 3.5: parameters between tags, strings as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from slmq.tools.dialects.base import Call, Dialect
from slmq.tools.dialects.values import known_values, plain_string, properties, string_limits
from slmq.tools.grammar import NEW_LINE, Grammar, any_text, closed
from slmq.tools.spans import Span, Tagged
from slmq.tools.tool import Tool

__all__ = ["QwenXml"]

VALUE_END = "\n</parameter>"
FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*)</function>\s*", re.DOTALL)
PARAMETER = re.compile(
    r"\s*<parameter=([^>\n]+)>(?:(?:\n(.*?))??\n</parameter>|([^\n]*?)</parameter>)", re.DOTALL
)


class QwenXml(Dialect):
    """``<tool_call><function=name><parameter=key>value</parameter>...</function></tool_call>``.

    Parameters
    ----------
    tools : sequence of Tool
        Their schemas tell which values are strings: these stand there without quotes.
    """

    name = "qwen3-coder"
    openings = ("<tool_call>",)
    closing = "</tool_call>"
    separator = "\n"

    def __init__(self, tools: Sequence[Tool] = ()) -> None:
        self._schemas = {tool.name: properties(tool.parameters) for tool in tools}

    def span(self, opening: str) -> Span:
        """See `Dialect`."""
        return Tagged(self.closing, [("<parameter=", "</parameter>")])

    def decode(self, opening: str, body: str) -> list[Call]:
        """See `Dialect`."""
        found = FUNCTION.fullmatch(body.removesuffix(self.closing))
        if found is None:
            raise ValueError("expected <function=name>")
        name, inner = found[1].strip(), found[2]
        schemas = self._schemas.get(name, {})
        arguments: dict[str, Any] = {}
        at = 0
        while (parameter := PARAMETER.match(inner, at)) is not None:
            key = parameter[1].strip()
            text = parameter[2] or parameter[3] or ""
            arguments[key] = _value(text, schemas.get(key, {}))
            at = parameter.end()
        if inner[at:].strip():
            raise ValueError("expected <parameter=name>")
        return [(name, arguments)]

    def body(self, tools: Sequence[Tool], grammar: Grammar, most: int) -> str:
        """See `Dialect`."""
        call = grammar.one_of(self._function(tool, grammar) for tool in tools)
        return f'"\\n" {call} "\\n" {grammar.mark(self.closing)}'

    def _function(self, tool: Tool, grammar: Grammar) -> str:
        schema = closed(tool.parameters)
        required = schema.get("required", ())
        parts = []
        for key, inner in properties(schema).items():
            value = self._parameter(inner, f"{tool.name}({key})", grammar)
            part = f"( {grammar.text(f'<parameter={key}>')} {value} {NEW_LINE} )"
            parts.append(part if key in required else part + "?")
        return grammar.rule(
            f"{grammar.text(f'<function={tool.name}>')} {NEW_LINE} {' '.join(parts)} "
            f"{grammar.text('</function>')}"
        )

    @staticmethod
    def _parameter(schema: Mapping[str, Any], where: str, grammar: Grammar) -> str:
        """A value with the line ends around it, and the tag that ends it."""
        if not plain_string(schema):
            return f"{NEW_LINE} {grammar.json(schema)} {grammar.text(VALUE_END)}"
        known = known_values(schema)
        if known is not None:
            return grammar.one_of(grammar.text(f"\n{value}{VALUE_END}") for value in known)
        least, most = string_limits(schema, where)
        text = f"(\\n{any_text(least, most)})" + "?" * (least == 0)
        return grammar.lazy(f"/{text}/ {grammar.text(VALUE_END)}")


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    """A value: JSON, unless the schema wants a string or it is no JSON."""
    if plain_string(schema):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)
