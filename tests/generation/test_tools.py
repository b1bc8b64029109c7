"""Chats with tools over a model of random weights: whatever it draws is a call, if it has to be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import slmq
from slmq import ClosedError, Model
from slmq.tools.calls import ToolCall
from slmq.tools.tool import Tool

USER = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}


@pytest.fixture(scope="module")
def model(tiny_model_path: Path) -> Iterator[Model]:
    with slmq.load(tiny_model_path, n_ctx=4096) as m:
        yield m


def paint(colour: Literal["red", "green"], dry: bool) -> str:
    """Paint it.

    Parameters
    ----------
    colour : str
        Which.
    dry : bool
        Whether to wait.
    """
    return f"{colour}, {dry}"


def stop() -> str:
    """Stop it."""
    return "stopped"


def fail() -> str:
    """Fail."""
    raise KeyError("no such thing")


def fields(result: Any) -> tuple[Any, ...]:
    return result.text, result.tokens, result.finish_reason, result.tool_calls


@pytest.mark.parametrize("dialect", ["generic", "hermes", "llama3", "pythonic", "qwen3-coder"])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_required_call_is_one(model: Model, dialect: str, temperature: float) -> None:
    for seed in range(3):
        result = model.generate(
            USER,
            tools=[paint, stop],
            tool_choice="required",
            parallel_tool_calls=False,
            dialect=dialect,
            temperature=temperature,
            seed=seed,
        )
        assert (result.finish_reason, result.text, result.complete) == ("tool_calls", "", True)
        (call,) = result.tool_calls
        assert Tool.of({"paint": paint, "stop": stop}[call.name]).call(call.arguments)


def test_a_named_tool_is_called(model: Model) -> None:
    choice = {"type": "function", "function": {"name": "stop"}}
    for asked in ("stop", choice):
        result = model.generate(USER, tools=[paint, stop], tool_choice=asked)
        assert [call.name for call in result.tool_calls] == ["stop"]
        assert result.tool_calls[0].arguments == {}


def test_calls_are_the_same_in_a_stream_alone_and_together(model: Model) -> None:
    params: dict[str, Any] = {"tools": [paint], "tool_choice": "required", "temperature": 1}
    alone = [model.generate(USER, **params, seed=seed) for seed in range(4)]
    with model.stream(USER, **params, seed=2) as stream:
        chunks = list(stream)
    assert stream.result is not None
    assert fields(stream.result) == fields(alone[2])
    assert [call for chunk in chunks for call in chunk.tool_calls] == alone[2].tool_calls
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["tool_calls"]
    together = model.samples(USER, 4, **params, seed=0)
    assert list(map(fields, together)) == list(map(fields, alone))
    mapped = list(model.map([USER] * 2, **params, seed=3))
    assert list(map(fields, mapped)) == [fields(alone[3])] * 2


def test_ids_are_those_of_the_prompt_and_of_nobody_else(model: Model) -> None:
    params: dict[str, Any] = {"tools": [stop], "tool_choice": "required"}
    first, again = model.generate(USER, **params), model.generate(USER, **params)
    other = model.generate([{"role": "user", "content": "ho"}], **params)
    assert first.tool_calls == again.tool_calls
    assert first.tool_calls[0].id != other.tool_calls[0].id
    assert len(first.tool_calls[0].id) == 9
    assert first.tool_calls[0].id.isalnum()


def test_a_call_that_is_cut_off_is_text(model: Model) -> None:
    whole = model.generate(USER, tools=[paint], tool_choice="required")
    for limit in range(1, len(whole.tokens)):
        cut = model.generate(USER, tools=[paint], tool_choice="required", max_tokens=limit)
        assert (cut.finish_reason, cut.tool_calls, cut.complete) == ("length", [], False)
        assert "<tool_call>".startswith(cut.text) or cut.text.startswith("<tool_call>")
    with pytest.raises(ValueError, match="parsed: expected an answer with schema="):
        _ = whole.parsed


def test_without_a_choice_the_tools_are_hidden(model: Model) -> None:
    plain = model.generate(USER, max_tokens=8)
    none = model.generate(USER, max_tokens=8, tools=[stop], tool_choice="none")
    assert none.prompt_tokens == plain.prompt_tokens


def test_without_a_choice_no_call_is_written(model: Model) -> None:
    """Where the marker is no token, which could be banned, the text has to do without it."""
    wanted: dict[str, Any] = {"tools": [stop], "tool_choice": "none", "max_tokens": 12}
    biased = {ord("<") - 33: 50.0, ord("t") - 33: 40.0}  # ids of a byte-level alphabet
    text = model.generate(USER, **wanted, logit_bias=biased).text
    assert "<" in text
    assert "<tool_call" not in text


def test_text_of_a_user_is_text(model: Model) -> None:
    """Markers in a message are no calls, and end no reasoning."""
    text = '<tool_call>{"name": "stop", "arguments": {}}</tool_call> <think> [TOOL_CALLS] </think>'
    for message in (text, "<think>", "<tool_call>"):
        asked = [{"role": "user", "content": message}]
        result = model.generate(asked, tools=[stop], max_tokens=4)
        assert result.tool_calls == []
        assert result.reasoning == ""


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"tools": 3}, "tools: expected a list of functions"),
        ({"tools": [stop, stop]}, r"tools\[1\]: expected another name"),
        ({"tool_choice": "required"}, "expected 'auto' or 'none' without tools"),
        ({"tools": [stop], "tool_choice": "start"}, "auto, required, none, stop; got 'start'"),
        ({"tools": [stop], "tool_choice": 3}, "tool_choice: expected 'auto' or the name"),
        ({"tools": [stop], "dialect": "latin"}, "dialect: expected one of hermes, .*'latin'"),
        ({"tools": [stop], "json": True}, "cannot have json=, too"),
        ({"tools": [stop], "ignore_eos": True}, "cannot have ignore_eos=, too"),
        ({"tools": [stop], "chat_template_kwargs": {"tools": []}}, "expected them once"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls: expected a bool"),
        ({"thinking": "yes"}, "thinking: expected a bool"),
        ({"thinking": True}, "thinking: expected a model whose template"),
        ({"tools": [{"name": "f", "parameters": {"properties": {"a": {"not": {}}}}}]}, "tools: "),
    ],
)
def test_wrong_wishes_are_named(model: Model, params: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        model.generate(USER, max_tokens=1, **params)


def test_tools_need_messages(model: Model) -> None:
    for prompt in ("hi", [1, 2]):
        with pytest.raises(ValueError, match="tools: expected a prompt of messages"):
            model.generate(prompt, tools=[stop])
        with pytest.raises(ValueError, match="thinking: expected a prompt of messages"):
            model.generate(prompt, thinking=False)


def test_a_history_may_hold_calls_as_json_text(model: Model) -> None:
    def history(arguments: Any) -> list[dict[str, Any]]:
        function = {"name": "stop", "arguments": arguments}
        call = {"id": "call_1", "type": "function", "function": function}
        return [
            *USER,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "stopped"},
        ]

    one = model.generate(history({"a": 1}), max_tokens=4)
    two = model.generate(history('{"a": 1}'), max_tokens=4)
    assert one.prompt_tokens == two.prompt_tokens
    assert one.tokens == two.tokens
    for wrong, message in [("{", "arguments: expected JSON"), ("[]", "expected an object")]:
        with pytest.raises((ValueError, TypeError), match=message):
            model.generate(history(wrong))


# Turns of a chat --------------------------------------------------------------------------------


def test_a_turn_runs_calls_until_the_model_answers(model: Model) -> None:
    asked: list[ToolCall] = []
    chat = model.chat(
        tools=[paint], tool_choice="paint", max_tokens=120, max_rounds=1, on_call=asked.append
    )
    result = chat.send("hello")
    assert result.tool_calls == []
    assert result.finish_reason in ("stop", "length")
    user, called, told, answered = chat.messages
    assert (user["role"], user["content"]) == ("user", "hello")
    (call,) = asked
    assert called["tool_calls"] == [call.message]
    assert told == {
        "role": "tool",
        "tool_call_id": call.id,
        "name": "paint",
        "content": paint(**call.arguments),
    }
    assert answered == {"role": "assistant", "content": result.text}
    assert chat.undo()
    assert chat.messages == []


def test_a_turn_streams_all_its_answers(model: Model) -> None:
    params: dict[str, Any] = {"tools": [paint], "tool_choice": "required", "max_rounds": 1}
    whole = model.chat(**params, max_tokens=120)
    result = whole.send("hello")
    chat = model.chat(**params, max_tokens=120)
    with chat.stream("hello") as turn:
        chunks = list(turn)
    assert turn.finished
    assert next(c.finish_reason for c in chunks if c.finish_reason) == "tool_calls"
    assert turn.result is not None
    assert fields(turn.result) == fields(result)
    assert chat.messages == whole.messages
    assert chat.stream("again").finish().text is not None


def test_without_rounds_there_are_no_calls(model: Model) -> None:
    chat = model.chat(tools=[stop], tool_choice="required", max_rounds=0, max_tokens=4)
    chat.send("hello")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]


def test_an_error_of_a_tool_is_told_to_the_model(model: Model) -> None:
    chat = model.chat(tools=[fail], tool_choice="fail", max_rounds=1, max_tokens=120)
    chat.send("hello")
    assert chat.messages[2]["content"] == "Error: KeyError: 'no such thing'"


def test_the_hook_may_answer_for_a_tool_or_end_the_turn(model: Model) -> None:
    chat = model.chat(
        tools=[fail], tool_choice="fail", max_rounds=1, max_tokens=120, on_call=lambda call: "no"
    )
    chat.send("hello")
    assert chat.messages[2]["content"] == "no"

    def refuse(call: ToolCall) -> None:
        raise PermissionError(call.name)

    chat = model.chat(tools=[fail], tool_choice="fail", max_tokens=120, on_call=refuse)
    with pytest.raises(PermissionError, match="fail"):
        chat.send("hello")
    assert chat.messages == []
    with pytest.raises(PermissionError):
        chat.send("the session goes on")


def test_arguments_that_do_not_fit_the_function_are_told(model: Model) -> None:
    loose = Tool("paint", "", {"type": "object", "properties": {"n": {"enum": [1]}}}, paint)
    chat = model.chat(tools=[loose], tool_choice="paint", max_rounds=1, max_tokens=120)
    chat.send("hello")
    assert chat.messages[2]["content"].startswith("Error: ")


def test_a_turn_that_is_closed_leaves_no_trace_before_its_answer(model: Model) -> None:
    chat = model.chat(tools=[stop], tool_choice="stop", max_tokens=30)
    turn = chat.stream("hello")
    next(turn)
    turn.close()
    assert turn.finished
    assert list(turn) == []
    assert chat.messages == []
    with pytest.raises(ClosedError), turn:
        turn.finish()


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"tools": [{"name": "f"}]}, TypeError, "a chat runs its calls, but 'f' has a schema only"),
        ({"max_rounds": -1}, ValueError, "max_rounds: expected an int >= 0, got -1"),
        ({"max_rounds": "2"}, TypeError, "max_rounds: expected an int >= 0, got str"),
    ],
)
def test_wrong_chats_are_named(
    model: Model, params: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.chat(**params)


def test_results_have_calls_as_json(model: Model) -> None:
    result = model.generate(USER, tools=[stop], tool_choice="stop")
    (call,) = json.loads(json.dumps(result.as_json()))["tool_calls"]
    assert call == {"id": result.tool_calls[0].id, "name": "stop", "arguments": {}}
