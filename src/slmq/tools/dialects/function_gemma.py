"""FunctionGemma: keys without quotes, strings between tokens of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from slmq.tools.dialects.base import Call, Dialect, Message, with_names
from slmq.tools.dialects.values import known_values, plain_string, properties, string_limits
from slmq.tools.grammar import Grammar, closed
from slmq.tools.spans import Span, Tagged
from slmq.tools.tool import Tool

__all__ = ["FunctionGemma"]

ANYTHING = {"anyOf": [{"type": kind} for kind in ("string", "number", "boolean", "null")]}
ANY_KEY = "/[A-Za-z_][A-Za-z0-9_]*/"
CALL = re.compile(r"\s*call:([^{\s]+)\s*(\{.*\})\s*", re.DOTALL)
KEY = re.compile(r"\s*([^:{}\[\],]+?)\s*:\s*")
PLAIN = re.compile(r"[^,\[\]{}]+")


class FunctionGemma(Dialect):
    """``<start_function_call>call:name{key:<escape>text<escape>,n:3}<end_function_call>``.

    Keys are in the order of the alphabet, as its template writes them.
    """

    name = "functiongemma"
    openings = ("<start_function_call>",)
    closing = "<end_function_call>"
    separator = ""
    quote = "<escape>"
    marks = (quote,)

    def span(self, opening: str) -> Span:
        """See `Dialect`."""
        return Tagged(self.closing, [(self.quote, self.quote)])

    def decode(self, opening: str, body: str) -> list[Call]:
        """See `Dialect`."""
        found = CALL.fullmatch(body.removesuffix(self.closing))
        if found is None:
            raise ValueError("expected call:name{...}")
        values = _Values(found[2], self.quote)
        arguments = values.value()
        if values.rest.strip() or not isinstance(arguments, dict):
            raise ValueError("expected an object of arguments")
        return [(found[1], arguments)]

    def body(self, tools: Sequence[Tool], grammar: Grammar, most: int) -> str:
        """See `Dialect`."""
        calls = grammar.one_of(
            grammar.rule(
                f"{grammar.text(f'call:{tool.name}')} "
                f"{self._object(closed(tool.parameters), tool.name, grammar)}"
            )
            for tool in tools
        )
        return f"{calls} {grammar.mark(self.closing)}"

    def messages(
        self, messages: Sequence[Message], tools: Sequence[Tool], template: str
    ) -> tuple[list[Message], list[Message] | None]:
        """See `Dialect`. A result is written with the name of its tool."""
        return super().messages(with_names(messages), tools, template)

    def _object(self, schema: Mapping[str, Any], where: str, grammar: Grammar) -> str:
        if "properties" not in schema:
            inner = schema.get("additionalProperties", True)
            value = self._value(inner if isinstance(inner, Mapping) else {}, where, grammar)
            pair = grammar.rule(f'{ANY_KEY} ":" {value}')
            return f'"{{" ( {pair} ( "," {pair} )* )? "}}"'
        required = schema.get("required", ())
        items = [
            (f"{grammar.text(f'{key}:')} {self._value(inner, f'{where}.{key}', grammar)}",
             key in required)
            for key, inner in sorted(properties(schema).items())
        ]  # fmt: skip
        return f'"{{" {grammar.listed(items, ",")} "}}"'

    def _value(self, schema: Mapping[str, Any], where: str, grammar: Grammar) -> str:
        if plain_string(schema):
            return self._string(schema, where, grammar)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return grammar.one_of(
                    self._value(inner, where, grammar) for inner in schema[keyword]
                )
        known = known_values(schema)
        if known is not None:
            return grammar.one_of(
                self._string({"const": value}, where, grammar)
                if isinstance(value, str)
                else grammar.text(json.dumps(value))
                for value in known
            )
        kind = schema.get("type")
        if kind == "object":
            return self._object(schema, where, grammar)
        if kind == "array" and isinstance(schema.get("items"), Mapping):
            least, most = schema.get("minItems", 0), schema.get("maxItems")
            item = grammar.rule(self._value(schema["items"], where, grammar))
            more = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
            listed = f'{item} ( "," {item} ){more}'
            return f'"[" {listed if least else f"( {listed} )?"} "]"'
        if kind in ("integer", "number", "boolean", "null"):
            return grammar.json(schema)
        if kind is None and not schema:
            return self._value(ANYTHING, where, grammar)
        raise ValueError(
            f"{where}: expected a type that {self.name} can write (string, number, integer, "
            f"boolean, null, an array of these, an object of named values), got "
            f"{dict(schema)!r:.80}"
        )

    def _string(self, schema: Mapping[str, Any], where: str, grammar: Grammar) -> str:
        quote = grammar.mark(self.quote)
        known = known_values(schema)
        if known is None:
            return f"{quote} {grammar.until(self.quote, *string_limits(schema, where))}"
        return f"{quote} {grammar.one_of(grammar.text(value) for value in known)} {quote}"


class _Values:
    """Reads values from the left; raises ValueError where none stands."""

    def __init__(self, text: str, quote: str) -> None:
        self.rest = text
        self._quote = quote

    def value(self) -> Any:
        self.rest = self.rest.lstrip()
        if self.rest.startswith(self._quote):
            text, quote, self.rest = self.rest[len(self._quote) :].partition(self._quote)
            if not quote:
                raise ValueError(f"expected {self._quote} at the end of a string")
            return text
        if self._took("{"):
            return dict(self._items("}", self._entry))
        if self._took("["):
            return self._items("]", self.value)
        found = PLAIN.match(self.rest)
        if found is None:
            raise ValueError("expected a value")
        self.rest = self.rest[found.end() :]
        try:
            return json.loads(found[0])
        except ValueError:
            return {"None": None, "True": True, "False": False}.get(found[0], found[0].strip())

    def _entry(self) -> tuple[str, Any]:
        found = KEY.match(self.rest)
        if found is None:
            raise ValueError("expected key:value")
        self.rest = self.rest[found.end() :]
        return found[1].replace(self._quote, ""), self.value()

    def _items(self, end: str, item: Any) -> list[Any]:
        found: list[Any] = []
        while not self._took(end):
            if found and not self._took(","):
                raise ValueError(f"expected , or {end}")
            found.append(item())
        return found

    def _took(self, sign: str) -> bool:
        self.rest = self.rest.lstrip()
        took = self.rest.startswith(sign)
        self.rest = self.rest[len(sign) * took :]
        return took
