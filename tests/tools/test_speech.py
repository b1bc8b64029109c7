"""Chats with tools say what the templates of their families say; others get instructions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from chat_cases import CHATS, PARALLEL, RENDERED, SPECIAL_TOKENS, TEMPLATES, WEATHER, cases

from slmq.chat.templates import ChatTemplates
from slmq.errors import TemplateError
from slmq.tools.calls import Mark, Said
from slmq.tools.dialects import dialect_of
from slmq.tools.reader import Reader, ReasoningReader
from slmq.tools.speech import Speech, prepare
from slmq.tools.tool import tools_of
from slmq.tools.wish import Wish

EXPECTED = json.loads(RENDERED.read_text(encoding="utf-8"))
FAMILIES = {
    "qwen2.5": "hermes",
    "tinyswallow": "hermes",
    "tool_tags": "hermes",
    "qwen3-coder": "qwen3-coder",
    "headers": "llama3",
    "mistral-v0.3": "mistral",
    "mistral-args": "mistral-args",
    "phi-4-mini": "phi4-mini",
    "functiongemma": "functiongemma",
    "llama-4 pythonic": "pythonic",
    "olmo-3": "olmo3",
}
THINK = {"<think>": 300, "</think>": 301}


class Templates:
    """A tokenizer, as far as chats with tools need one."""

    def __init__(self, source: str, markers: Mapping[str, int] | None = None) -> None:
        self.markers: Mapping[str, int] = markers or {}
        self._chat = ChatTemplates({"default": source}, SPECIAL_TOKENS)

    def template_for(self, *, tools: bool) -> str | None:
        return self._chat.source(tools=tools)

    def render_chat(self, messages: Any, *, tools: Any = None, **extra: Any) -> str:
        return self._chat.render(messages, add_generation_prompt=True, tools=tools, extra=extra)


def speech(source: str, messages: Any, extra: Any = None, **wish: Any) -> Speech:
    wish["tools"] = tools_of(wish.get("tools") or ())
    return prepare(Templates(source, wish.pop("markers", None)), messages, Wish(**wish), extra)


def test_families_are_known_by_their_templates() -> None:
    assert {name: dialect_of(source) for name, source in TEMPLATES.items()} == {
        name: FAMILIES.get(name, "generic") for name in TEMPLATES
    }
    assert dialect_of(None) == "generic"


WITH_TOOLS = [
    (template, chat)
    for template, chat in cases()
    if template in FAMILIES
    and template != "phi-4-mini"  # whose template reads them from the system message
    and CHATS[chat].get("tools") == [WEATHER]
]


@pytest.mark.parametrize(("template", "chat"), WITH_TOOLS)
def test_history_with_calls_and_results_is_that_of_transformers(template: str, chat: str) -> None:
    asked = dict(CHATS[chat])
    messages, tools = asked.pop("messages"), asked.pop("tools")
    expected = EXPECTED[f"{template}/{chat}"]
    if expected.startswith("TemplateError"):
        if template == "functiongemma":  # it wants names; ids tell them
            assert "response:weather{value:" in speech(TEMPLATES[template], messages, asked,
                                                       tools=tools).prompt  # fmt: skip
            return
        with pytest.raises(TemplateError):
            speech(TEMPLATES[template], messages, asked, tools=tools)
    else:
        assert speech(TEMPLATES[template], messages, asked, tools=tools).prompt == expected


def test_every_family_has_a_history_that_renders() -> None:
    rendered = {t for t, c in WITH_TOOLS if not EXPECTED[f"{t}/{c}"].startswith("TemplateError")}
    assert rendered == FAMILIES.keys() - {"phi-4-mini"}


@pytest.mark.parametrize("template", sorted(TEMPLATES.keys() - FAMILIES.keys() - {"corners"}))
def test_templates_without_tools_get_instructions(template: str) -> None:
    """Whatever roles they refuse: nothing is left that a plain template would not know."""
    if template == "dated":
        return  # it shows no messages
    said = speech(TEMPLATES[template], PARALLEL, tools=[WEATHER], extra={"enable_thinking": False})
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Zürich"}}</tool_call>' in (
        said.prompt
    )
    assert "The weather in a city, in °C & more <now>" in said.prompt
    assert "Result of weather: 13" in said.prompt
    assert said.grammar is not None
    plain = speech(TEMPLATES[template], PARALLEL[:1], tools=[WEATHER], choice="none")
    assert plain.grammar is not None  # any text without the marker
    assert plain.prompt == speech(TEMPLATES[template], PARALLEL[:1]).prompt


def test_phi_4_mini_reads_tools_from_the_system_message() -> None:
    said = speech(TEMPLATES["phi-4-mini"], PARALLEL, tools=[WEATHER]).prompt
    listed = json.dumps([WEATHER["function"]], ensure_ascii=False)
    assert said.startswith(f"<|system|><|tool|>{listed}<|/tool|><|end|>")
    call = '{"name": "weather", "arguments": {"city": "Zürich"}}'
    assert f"Two cities.<|tool_call|>[{call}, {call}]<|/tool_call|><|end|>" in said
    assert "<|tool_response|>13<|end|>" in said


def test_ids_that_mistral_refuses_are_made_to_fit() -> None:
    history = json.loads(json.dumps(PARALLEL).replace("abcdef", "call_of_somebody_else_"))
    said = speech(TEMPLATES["mistral-v0.3"], history, tools=[WEATHER]).prompt
    assert "call_of" not in said
    with pytest.raises(TemplateError, match="alphanumeric strings with length 9"):
        ChatTemplates({"default": TEMPLATES["mistral-v0.3"]}, SPECIAL_TOKENS).render(
            history, add_generation_prompt=True, tools=[WEATHER], extra={}
        )


def test_a_named_tool_is_the_only_one_that_is_shown_and_allowed() -> None:
    tools = [WEATHER, {"name": "other", "description": "Else."}]
    said = speech(TEMPLATES["qwen2.5"], PARALLEL, tools=tools, choice="weather")
    assert "Else." not in said.prompt
    assert said.grammar is not None
    assert "other" not in said.grammar


def test_without_a_choice_the_marker_is_banned() -> None:
    markers = {"<tool_call>": 7, "</tool_call>": 8}
    said = speech(TEMPLATES["qwen2.5"], PARALLEL, tools=[WEATHER], choice="none", markers=markers)
    assert said.banned == (7, 8)
    assert said.grammar is None


# Reasoning --------------------------------------------------------------------------------------

HELLO = [{"role": "user", "content": "hi"}]


def heard(reader: Reader, pieces: list[str]) -> tuple[str, str]:
    said = Said()
    for piece in pieces:
        said.add(reader.push(piece))
    said.add(reader.finish())
    return said.text, said.reasoning


def test_reasoning_that_the_template_opens_is_split_off() -> None:
    for thinking, expected in [(None, ("Hi.", "a\n\nb")), (False, ("a\n\nb\n\n\nHi.", ""))]:
        said = speech(TEMPLATES["thinking"], HELLO, markers=THINK, thinking=thinking)
        assert said.prompt.endswith("<think>\n") is (thinking is None)
        reader = said.reader([1])
        assert reader is not None
        assert heard(reader, ["a\n", "\n", "b", "\n", Mark("</think>"), "\n", "\nHi."]) == expected


def test_markers_at_the_end_of_a_message_open_nothing() -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    said = speech(source, [{"role": "user", "content": "what is <think>"}], markers=THINK)
    reader = said.reader([1])
    assert reader is not None
    assert heard(reader, ["a tag"]) == ("a tag", "")


def test_thinking_needs_a_template_that_knows_it() -> None:
    assert speech(TEMPLATES["pipes"], HELLO, thinking=False).prompt  # it never reasons
    for thinking, markers in [(True, {}), (False, THINK)]:
        with pytest.raises(ValueError, match="thinking: expected a model whose template"):
            speech(TEMPLATES["pipes"], HELLO, thinking=thinking, markers=markers)


THOUGHTS = [
    (["<think>", "\nhm\n", "</think>", "\n\nYes."], ("Yes.", "hm")),
    (["So ", "<think>", "a\n\nb", "</think>", "c"], ("So c", "a\n\nb")),
    (["<think>", "never ends\n"], ("", "never ends")),
    (["</think>", "stray"], ("stray", "")),
    (["<think>", "<think>", "x", "</think>", "y"], ("y", "x")),
    (["no marks"], ("no marks", "")),
]


@pytest.mark.parametrize(("parts", "expected"), THOUGHTS)
def test_reasoning_is_told_by_tokens_however_text_is_cut(
    parts: list[str], expected: tuple[str, str]
) -> None:
    marks = {"<think>", "</think>"}
    for size in (1, 2, 3, 100):
        reader = Reader(ReasoningReader({"<think>": "</think>"}), None)
        pieces: list[str] = []
        for part in parts:
            if part in marks:
                pieces.append(Mark(part))
            else:
                pieces += [part[i : i + size] for i in range(0, len(part), size)]
        assert heard(reader, pieces) == expected
    spelled = Reader(ReasoningReader({"<think>": "</think>"}), None)
    assert heard(spelled, list("".join(parts))) == ("".join(parts), "")
