"""Answers of a given shape, calls of tools, reasoning; real server, real engine, tiny model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from live_server import LiveServer

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["s", "m"]}},
    "required": ["ok", "size"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "measure", "parameters": SCHEMA}}


def test_a_schema_is_kept(server: LiveServer) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
    body = {"messages": HI, "response_format": wanted, "max_tokens": 100}
    texts = [
        server.ask(CHAT, body).body["choices"][0]["message"]["content"],
        server.model.generate(HI, schema=SCHEMA, max_tokens=100).text,
    ]
    assert texts[0] == texts[1]
    assert set(json.loads(texts[0])) == {"ok", "size"}


@pytest.mark.parametrize(
    "shape",
    [
        {"type": "json_schema"},
        {"type": "xml"},
        "json",
        {"type": "json_object", "schema": 123},
        {"type": "json_object", "shema": SCHEMA},
        {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strickt": True}},
        {"type": "json_schema", "schema": SCHEMA},
        {"type": "text", "schema": SCHEMA},
    ],
)
def test_a_shape_that_is_none_is_named(server: LiveServer, shape: Any) -> None:
    answered = server.ask(CHAT, {"messages": HI, "response_format": shape})
    assert (answered.status, answered.body["error"]["param"]) == (400, "response_format")


def test_a_schema_is_kept_by_the_names_that_llama_cpp_has_for_it(server: LiveServer) -> None:
    wanted = server.model.generate(HI, schema=SCHEMA, max_tokens=100).text
    for named in (
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"json_schema": SCHEMA},
        {"schema": SCHEMA},
    ):
        (choice,) = server.ask(CHAT, {"messages": HI, "max_tokens": 100, **named}).body["choices"]
        assert choice["message"]["content"] == wanted


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames"),
        ({"type": "hiccup"}, "hiccup"),
        ({"type": 123}, "type must be a string"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused(
    server: LiveServer, schema: Any, named: str
) -> None:
    for wanted in (
        {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
        {"type": "json_object", "schema": schema},
    ):
        answered = server.ask(CHAT, {"messages": HI, "response_format": wanted})
        assert answered.status == 400
        assert named in answered.body["error"]["message"]


def test_calls_in_one_piece_and_in_many(server: LiveServer) -> None:
    body = {"messages": HI, "tools": [TOOL], "tool_choice": "required", "max_tokens": 200}
    body["parallel_tool_calls"] = False
    (choice,) = server.ask(CHAT, body).body["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert call["function"]["name"] == "measure"
    assert set(json.loads(call["function"]["arguments"])) == {"ok", "size"}
    events = server.ask(CHAT, {**body, "stream": True}).events
    deltas = [d for e in events for d in e["choices"][0]["delta"].get("tool_calls", [])]
    first, *rest = deltas
    assert first == {"index": 0, **call, "function": {"name": "measure", "arguments": ""}}
    assert all(set(delta) == {"index", "function"} for delta in rest)
    pieces = "".join(delta["function"]["arguments"] for delta in deltas)
    assert pieces == call["function"]["arguments"]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
    # The answer to the call goes back as clients send it.
    history = [*HI, {**choice["message"], "refusal": None}]
    history.append({"role": "tool", "tool_call_id": call["id"], "content": "12"})
    assert server.ask(CHAT, {**body, "messages": history}).status == 200


def test_what_is_wrong_with_tools_is_named(server: LiveServer) -> None:
    for change, param in (
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
    ):
        answered = server.ask(CHAT, {"messages": HI, "max_tokens": 2, **change})
        assert answered.status == 400
        assert param in answered.body["error"]["message"]
