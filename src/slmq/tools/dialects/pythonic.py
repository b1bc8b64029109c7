"""Calls written as Python: Llama 4, Olmo 3, LFM2."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from slmq.tools.dialects.base import Call, Dialect
from slmq.tools.dialects.values import properties
from slmq.tools.grammar import COMMA, Grammar, closed
from slmq.tools.spans import SPACE, Balanced, Span, Tagged
from slmq.tools.tool import Tool

__all__ = ["Lfm2", "Olmo3", "Pythonic", "python_call", "python_calls"]

WORDS = {"true": True, "false": False, "null": None}
ESCAPE = re.compile(r"\\(.)", re.DOTALL)
PYTHONS = "\\'\"abfnrtvxuUN01234567\n"  # what may follow a backslash
LONGEST = 1 << 16  # characters that Python's own parser is given
STRINGS = [('"', '"'), ("'", "'")]


class Pythonic(Dialect):
    """``[name(key="text", n=3), ...]`` as the whole answer."""

    name = "pythonic"
    bare = "["

    def span(self, opening: str) -> Span:
        """See `Dialect`."""
        return Balanced("[", "\"'", self.closing)

    def decode(self, opening: str, body: str) -> list[Call]:
        """See `Dialect`."""
        return python_calls(body.removesuffix(self.closing))

    def written(self, calls: Sequence[Call]) -> str:
        """See `Dialect`."""
        opening = self.openings[0] if self.openings else ""
        return f"{opening}[{', '.join(map(_as_python, calls))}]{self.closing}"

    def body(self, tools: Sequence[Tool], grammar: Grammar, most: int) -> str:
        """See `Dialect`."""
        call = grammar.rule(python_call(tools, grammar))
        end = grammar.mark(self.closing) if self.closing else ""
        return f'"[" {grammar.repeated(call, COMMA, most)} "]" {end}'


class Lfm2(Pythonic):
    """``<|tool_call_start|>[name(key="text"), ...]<|tool_call_end|>``."""

    name = "lfm2"
    openings = ("<|tool_call_start|>",)
    closing = "<|tool_call_end|>"
    bare = ""


class Olmo3(Pythonic):
    """``<function_calls>`` around one call a line."""

    name = "olmo3"
    openings = ("<function_calls>",)
    closing = "</function_calls>"
    bare = ""

    def span(self, opening: str) -> Span:
        """See `Dialect`."""
        return Tagged(self.closing, STRINGS, escapes=True)

    def decode(self, opening: str, body: str) -> list[Call]:
        """See `Dialect`."""
        return python_calls(body.removesuffix(self.closing), "exec")

    def body(self, tools: Sequence[Tool], grammar: Grammar, most: int) -> str:
        """See `Dialect`."""
        line = grammar.rule(f'{python_call(tools, grammar)} "\\n"')
        return f'"\\n" {line}{{1,{most}}} {grammar.mark(self.closing)}'


def python_call(tools: Sequence[Tool], grammar: Grammar, method: str = "") -> str:
    """One call with its arguments by keyword."""
    calls = []
    for tool in tools:
        if not tool.name.isidentifier():
            raise ValueError(
                f"tool {tool.name!r}: expected a name that Python can call, as this model writes "
                f"calls as Python"
            )
        schema = closed(tool.parameters)
        required = schema.get("required", ())
        items = [
            (f"{grammar.text(f'{key}=')} {_value(inner, grammar)}", key in required)
            for key, inner in properties(schema).items()
        ]
        opening = grammar.text(f"{tool.name}{method}(")
        calls.append(grammar.rule(f'{opening} {grammar.listed(items, ", ")} ")"'))
    return grammar.one_of(calls)


def _as_python(call: Call) -> str:
    return f"{call[0]}({', '.join(f'{key}={value!r}' for key, value in call[1].items())})"


def _value(schema: Mapping[str, Any], grammar: Grammar) -> str:
    """A value as Python writes it; within lists and objects, true, false and null as JSON does."""
    if schema.get("type") == "boolean" and "enum" not in schema:
        return '( "True" | "False" )'
    if schema.get("type") == "null":
        return '"None"'
    if "anyOf" in schema:
        return grammar.one_of(_value(inner, grammar) for inner in schema["anyOf"])
    return grammar.json(schema)


def python_calls(body: str, mode: str = "eval") -> list[Call]:
    """The calls of a list, or of lines; raises ValueError or SyntaxError if it is no such thing."""
    if len(body) > LONGEST:
        raise ValueError(f"expected at most {LONGEST} characters, got {len(body)}")
    tree: Any = ast.parse(ESCAPE.sub(_escaped, body.strip(SPACE)), mode=mode)
    nodes: list[Any]
    if mode == "exec":
        nodes = [getattr(line, "value", None) for line in tree.body]
    else:
        nodes = tree.body.elts if isinstance(tree.body, ast.List) else [tree.body]
    return [_call(node) for node in nodes]


def _escaped(found: re.Match[str]) -> str:
    """An escape that Python knows: JSON also has one for the slash, and models invent others."""
    if found[1] == "/":
        return "/"
    return found[0] if found[1] in PYTHONS else f"\\{found[0]}"


def _call(node: Any) -> Call:
    if not isinstance(node, ast.Call) or node.args or any(key.arg is None for key in node.keywords):
        raise ValueError("expected a call with arguments by keyword")
    name = node.func
    if isinstance(name, ast.Attribute) and name.attr == "call":
        name = name.value
    return ast.unparse(name), {str(key.arg): _literal(key.value) for key in node.keywords}


def _literal(node: Any) -> Any:
    if isinstance(node, ast.Name) and node.id in WORDS:
        return WORDS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_literal(key) for key in node.keys]
        if not all(isinstance(key, str) for key in keys):
            raise ValueError("expected keys of type str")
        return dict(zip(keys, map(_literal, node.values), strict=True))
    value = ast.literal_eval(node)
    if isinstance(value, str):  # JSON writes characters beyond U+FFFF as two escapes
        return value.encode("utf-16", "surrogatepass").decode("utf-16")
    if not isinstance(value, int | float | None):
        raise ValueError(f"expected a value that JSON has, got {type(value).__name__}")
    return value
