"""Gemma 4, Apertus and LFM2.5: known by their templates; results, and reasoning with a head."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slmq.tools.calls import Mark
from slmq.tools.dialects import dialect_named, dialect_of
from slmq.tools.reader import ReasoningReader
from slmq.tools.reasoning import pairs_of
from slmq.tools.tool import Tool

GEMMA4 = "{% if tools %}<|tool>..<tool|>{% endif %}'<|tool_call>call:' + name + '}<tool_call|>'"
APERTUS = "{% set tool_calls_token = '<|tools_prefix|>' %}{{ tool_calls }}"
HARMONY = "{% if tools %}'functions'{% endif %}to=functions.' + name + '<|channel|>commentary json"
LFM2_5 = """{%- set keep_past_thinking = false -%}{% if tools %}List of tools: [{% endif %}"""
TOOLS = (Tool("f", "", {"type": "object", "properties": {"s": {"type": "string"}}}),)


@pytest.mark.parametrize(
    ("template", "name"),
    [(GEMMA4, "gemma4"), (APERTUS, "apertus"), (LFM2_5, "lfm2"), (HARMONY, "harmony")],
)
def test_families_are_known_by_their_templates(template: str, name: str) -> None:
    assert dialect_of(template) == name


def call(name: str, id: str, **arguments: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_results_of_gemma_4_belong_to_their_calls() -> None:
    history: list[dict[str, Any]] = [
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "", "tool_calls": [call("f", "a"), call("g", "b")]},
        {"role": "tool", "tool_call_id": "b", "content": '{"n": 3}'},
        {"role": "tool", "tool_call_id": "a", "content": "[1]"},
        {"role": "assistant", "content": "Done."},
    ]
    before = json.dumps(history)
    found, declared = dialect_named("gemma4", TOOLS).messages(history, TOOLS, "tool_calls")
    assert [message["role"] for message in found] == ["user", "assistant", "assistant"]
    assert found[1]["tool_responses"] == [
        {"name": "g", "response": {"n": 3}},
        {"name": "f", "response": "[1]"},
    ]
    assert "tool_responses" not in found[2]
    assert declared == [tool.declaration for tool in TOOLS]
    assert json.dumps(history) == before


@pytest.mark.parametrize(
    "body",
    [
        '[{"f": {}, "g": {}}]<|tools_suffix|>',
        "[[]]<|tools_suffix|>",
        '[{"f": 3}]<|tools_suffix|>',
        "{}x<|tools_suffix|>",
    ],
)
def test_lists_that_are_no_calls_of_apertus(body: str) -> None:
    with pytest.raises(ValueError, match=r"expected|Extra data"):
        dialect_named("apertus", TOOLS).decode("<|tools_prefix|>", body)


PAIRS = {"<|channel>": "<channel|>"}


@pytest.mark.parametrize(
    ("said", "reasoning"),
    [
        ("thought\nIt rains.\n", "It rains."),
        ("thought\n\nIt rains.", "It rains."),
        ("thoughts are free", "thoughts are free"),
        ("It thought\nso", "It thought\nso"),
        ("thought\n", ""),
        ("tho", ""),  # no more than the beginning of the head
    ],
)
def test_the_head_of_a_channel_is_no_reasoning(said: str, reasoning: str) -> None:
    """However the text is cut."""
    assert pairs_of(dict.fromkeys(["<|channel>", "<channel|>"], 3)) == PAIRS
    for size in range(1, len(said) + 1):
        reader = ReasoningReader(PAIRS)
        pieces = [said[i : i + size] for i in range(0, len(said), size)]
        found = [reader.push(piece) for piece in (Mark("<|channel>"), *pieces, Mark("<channel|>"))]
        found.append(reader.push("\nYes."))
        assert "".join(thought for _, thought in found) == reasoning
        assert "".join(answer for answer, _ in found) == "Yes."
