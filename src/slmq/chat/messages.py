"""Messages and tools of a conversation, checked before a template sees them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

DEEPEST = 100  # of what a message or a tool holds; JSON schemas of tools have some 10
REASONING = ("reasoning_content", "thinking", "reasoning")


def checked_messages(messages: object, *, parts: bool = False) -> list[dict[str, Any]]:
    """Return a copy in plain types, or raise `TypeError` or `ValueError`.

    Content that is a list of text parts stays one if `parts`, for templates that take it apart,
    and else becomes one string.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise TypeError(
            f"expected a list of messages with role and content, got {type(messages).__name__}"
        )
    if not messages:
        raise ValueError("expected at least one message, got an empty list")
    return [
        checked_message(message, f"messages[{i}]", parts=parts)
        for i, message in enumerate(messages)
    ]


def checked_message(message: object, where: str, *, parts: bool = False) -> dict[str, Any]:
    """Return a copy of one message; see `checked_messages`."""
    if not isinstance(message, Mapping):
        raise TypeError(
            f"{where}: expected a mapping with role and content, got {type(message).__name__}"
        )
    found = dict(message)
    if not isinstance(found.get("role"), str):
        kind = type(found["role"]).__name__ if "role" in found else "no role"
        raise TypeError(f"{where}: expected a role (a string such as 'user'), got {kind}")
    content = found.get("content")
    if content is not None:
        text = checked_content(content, f"{where}.content")
        if not parts or isinstance(content, str):
            found["content"] = text
    elif not found.get("tool_calls") and ("content" not in found or found["role"] != "assistant"):
        raise ValueError(f"{where}: expected content (a string), got none")
    for name in REASONING:
        if found.get(name) is not None:  # templates of different years know it by different names
            found |= {
                other: found[name]
                for other in ("thinking", "reasoning_content")
                if found.get(other) is None
            }
            break
    copy = plain(found, where)
    assert isinstance(copy, dict)
    if copy.get("tool_calls"):
        copy["tool_calls"] = checked_calls(copy["tool_calls"], f"{where}.tool_calls")
    return copy


def checked_calls(calls: object, where: str) -> list[Any]:
    """Return calls with their arguments as objects, as templates want them; they may be JSON text.

    Calls may stand as they are or, as in OpenAI's API, under ``"function"``.
    """
    if not isinstance(calls, list):
        raise TypeError(f"{where}: expected a list of calls, got {type(calls).__name__}")
    found = []
    for i, call in enumerate(calls):
        if not isinstance(call, dict):
            raise TypeError(f"{where}[{i}]: expected a mapping, got {type(call).__name__}")
        if "function" in call:
            inner = with_arguments(call["function"], f"{where}[{i}].function")
            found.append({**call, "function": inner})
        else:
            found.append(with_arguments(call, f"{where}[{i}]"))
    return found


def with_arguments(call: object, where: str) -> dict[str, Any]:
    """Return a call whose arguments are an object."""
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise TypeError(f"{where}: expected a mapping with a name, got {call!r:.60}")
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise ValueError(f"{where}.arguments: expected JSON, got {error}") from None
    if not isinstance(arguments, dict):
        kind = type(arguments).__name__
        raise TypeError(f"{where}.arguments: expected an object, got {kind}")
    return {**call, "arguments": arguments}


def without_nulls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages without the keys whose value is None."""
    return [
        {key: value for key, value in message.items() if value is not None} for message in messages
    ]


def checked_content(content: object, where: str) -> str:
    """Return content as one string; it may come as a list of text parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, bytes | Mapping) or not isinstance(content, Sequence):
        raise TypeError(
            f"{where}: expected a string or a list of text parts, got {type(content).__name__}"
        )
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, Mapping):
            raise TypeError(
                f"{where}[{i}]: expected {{'type': 'text', 'text': ...}}, got {type(part).__name__}"
            )
        kind = part.get("type")
        if kind != "text":
            got = f"{kind!r:.40}" if isinstance(kind, str | None) else type(kind).__name__
            raise ValueError(
                f"{where}[{i}]: expected a part of type 'text', got {got}; the model reads text "
                f"only"
            )
        if not isinstance(part.get("text"), str):
            raise TypeError(
                f"{where}[{i}]: expected text (a string), got {type(part.get('text')).__name__}"
            )
        texts.append(part["text"])
    return "".join(texts)


def checked_tools(tools: object) -> Any:
    """Return a copy of the schemas in plain types."""
    if tools is None:
        return None
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise TypeError(f"tools: expected a list of JSON schemas, got {type(tools).__name__}")
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise TypeError(
                f"tools[{i}]: expected a JSON schema (a mapping), got {type(tool).__name__}"
            )
    return plain(tools, "tools")


def plain(value: object, where: str, depth: int = 0) -> Any:
    """Copy JSON data into plain types, so that a template sees nothing that has methods of its own.

    Raises
    ------
    TypeError
        There is something that JSON cannot express.
    ValueError
        A string holds a lone surrogate, or the data are nested too deep or hold themselves.
    """
    if depth > DEEPEST:
        raise ValueError(f"{where:.80}: expected JSON data nested up to {DEEPEST} deep, got more")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        try:
            return value.encode("utf-8").decode("utf-8")
        except UnicodeEncodeError as e:
            raise ValueError(
                f"{where}: expected Unicode text, got a lone surrogate "
                f"U+{ord(value[e.start]):04X} at index {e.start}"
            ) from None
    if isinstance(value, Mapping):
        return {
            plain(key, where, depth + 1): plain(item, f"{where}.{key}", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise TypeError(f"{where}: expected JSON data, got {type(value).__name__}")
