"""Sixty answers with calls for every dialect, written by hand-made writers, and what they say.

A writer knows only how a family writes calls; it shares no line with the code under test.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Call = tuple[str, dict[str, Any]]
Pieces = list[str]
"""Texts and markers, one after the other."""

MARKS = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "generic": ("<tool_call>", "</tool_call>"),
    "qwen3-coder": ("<tool_call>", "</tool_call>"),
    "llama3": ("<|python_tag|>",),
    "mistral": ("[TOOL_CALLS]", "[ARGS]"),
    "mistral-args": ("[TOOL_CALLS]", "[ARGS]"),
    "phi4-mini": ("<|tool_call|>", "<|/tool_call|>"),
    "functiongemma": ("<start_function_call>", "<end_function_call>", "<escape>"),
    "gemma4": ("<|tool_call>", "<tool_call|>", '<|"|>'),
    "apertus": ("<|tools_prefix|>", "<|tools_suffix|>"),
    "harmony": ("<|channel|>", "<|constrain|>", "<|message|>"),
    "pythonic": (),
    "olmo3": ("<function_calls>", "</function_calls>"),
    "lfm2": ("<|tool_call_start|>", "<|tool_call_end|>"),
}

# No quotes, braces or escapes alone: they stand in strings, where they must not count.
ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"n": 3},
    {"s": "x"},
    {"s": "a b", "n": -1},
    {"s": 'q"}]) '},
    {"s": "[{('\\"},
    {"s": "é🗼"},
    {"s": "</f>"},
    {"l": [1, 2]},
    {"l": ["a", "]"]},
    {"b": True, "n": 1.5},
    {"o": {"k": None}},
]


def as_json(call: Call, key: str = "arguments") -> str:
    return json.dumps({"name": call[0], key: call[1]}, ensure_ascii=False)


def as_python(call: Call) -> str:
    return f"{call[0]}({', '.join(f'{key}={value!r}' for key, value in call[1].items())})"


def as_xml(call: Call) -> str:
    values = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in call[1].items()
    }
    parts = [f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items()]
    return f"<function={call[0]}>\n{''.join(parts)}</function>"


def as_gemma(value: Any) -> str:
    if isinstance(value, str):
        return f"<escape>{value}<escape>"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_gemma(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_gemma, value)) + "]"
    return json.dumps(value)


WRITERS: dict[str, Callable[[list[Call]], str]] = {
    "hermes": lambda calls: "\n".join(f"<tool_call>\n{as_json(c)}\n</tool_call>" for c in calls),
    "generic": lambda calls: "\n".join(f"<tool_call>{as_json(c)}</tool_call>" for c in calls),
    "qwen3-coder": lambda calls: "\n".join(
        f"<tool_call>\n{as_xml(c)}\n</tool_call>" for c in calls
    ),
    "llama3": lambda calls: "; ".join(as_json(c, "parameters") for c in calls),
    "mistral": lambda calls: f"[TOOL_CALLS] [{', '.join(map(as_json, calls))}]",
    "mistral-args": lambda calls: "".join(
        f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments)}" for name, arguments in calls
    ),
    "phi4-mini": lambda calls: f"<|tool_call|>[{', '.join(map(as_json, calls))}]<|/tool_call|>",
    "functiongemma": lambda calls: "".join(
        f"<start_function_call>call:{name}{as_gemma(arguments)}<end_function_call>"
        for name, arguments in calls
    ),
    "gemma4": lambda calls: "".join(
        f"<|tool_call>call:{name}{as_gemma(arguments)}<tool_call|>".replace("<escape>", '<|"|>')
        for name, arguments in calls
    ),
    "apertus": lambda calls: (
        "<|tools_prefix|>["
        + ", ".join(json.dumps({name: arguments}, ensure_ascii=False) for name, arguments in calls)
        + "]<|tools_suffix|>"
    ),
    "harmony": lambda calls: "".join(
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
        f"{json.dumps(arguments, ensure_ascii=False)}"
        for name, arguments in calls
    ),
    "pythonic": lambda calls: f"[{', '.join(map(as_python, calls))}]",
    "olmo3": lambda calls: (
        "<function_calls>\n"
        + "".join(f"{as_python(call)}\n" for call in calls)
        + "</function_calls>"
    ),
    "lfm2": lambda calls: (
        f"<|tool_call_start|>[{', '.join(map(as_python, calls))}]<|tool_call_end|>"
    ),
}
BARE = {"llama3", "pythonic"}


def answers(dialect: str) -> list[tuple[str, str, list[Call]]]:
    """Sixty answers: the text, what of it is ordinary text, and the calls."""
    write = WRITERS[dialect]
    found = []
    for i, arguments in enumerate(ARGUMENTS):
        call = ("f", arguments)
        other = ("g", ARGUMENTS[i % 2])
        whole = write([call])
        found.append((whole, "", [call]))
        found.append((write([call, other]), "", [call, other]))
        cut = whole[: min(3 + i, len(whole) // 2)]  # in the middle of a call
        found.append((cut, cut, []))
        unknown = write([("h", arguments)])
        found.append((unknown, unknown, []))
        before = "" if dialect in BARE else "So:\n"
        found.append((f"{before}{whole}\n ok", "So:\nok" if before else "ok", [call]))
    assert len(found) == 60
    return found


def pieces(text: str, marks: tuple[str, ...]) -> list[tuple[str, bool]]:
    """The text as characters, and markers as one piece each."""
    found: list[tuple[str, bool]] = []
    while text:
        mark = next((mark for mark in marks if text.startswith(mark)), None)
        found.append((mark or text[0], mark is not None))
        text = text[len(mark or text[0]) :]
    return found
