"""The official clients, unchanged, against a real server of the tiny model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from live_server import LiveServer

HI: Any = [{"role": "user", "content": "Hi"}]
N = 24
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["s", "m"]}},
    "required": ["ok", "size"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def wanted(server: LiveServer) -> str:
    """What every client should get to read."""
    return server.model.generate(HI, max_tokens=N).text


@pytest.fixture(scope="module")
def openai(server: LiveServer) -> Any:
    module = pytest.importorskip("openai")
    return module.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def anthropic(server: LiveServer) -> Any:
    module = pytest.importorskip("anthropic")
    return module.Anthropic(base_url=server.url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def ollama(server: LiveServer) -> Any:
    return pytest.importorskip("ollama").Client(host=server.url)


# OpenAI --------------------------------------------------------------------------------------


def test_openai_chats(openai: Any, wanted: str) -> None:
    asked = {"model": "tiny", "messages": HI, "max_completion_tokens": N}
    answer = openai.chat.completions.create(**asked)
    assert answer.choices[0].message.content == wanted
    assert answer.choices[0].finish_reason == "length"
    stream = openai.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = (c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "".join(texts) == wanted
    assert chunks[-1].usage.completion_tokens == N
    probable = openai.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert len(probable.choices[0].logprobs.content) == N
    extra = openai.chat.completions.create(**asked, extra_body={"top_k": 1})
    assert extra.choices[0].message.content == wanted
    with openai.chat.completions.stream(**asked, stop=wanted[10:13]) as followed:
        final = followed.get_final_completion().choices[0]
    assert final.message.content == wanted[: wanted.index(wanted[10:13])]


def test_openai_completes_and_lists(openai: Any, server: LiveServer) -> None:
    text = openai.completions.create(model="tiny", prompt="Once", max_tokens=N, logprobs=1)
    assert text.choices[0].text == server.model.generate("Once", max_tokens=N).text
    assert [model.id for model in openai.models.list()] == ["tiny"]
    assert openai.models.retrieve("tiny").id == "tiny"


def test_openai_gets_errors_of_its_own(openai: Any) -> None:
    module = pytest.importorskip("openai")
    with pytest.raises(module.NotFoundError, match="not served"):
        openai.chat.completions.create(model="gpt-5", messages=HI)
    with pytest.raises(module.BadRequestError) as caught:
        openai.chat.completions.create(model="tiny", messages=HI, temperature=-1)
    assert caught.value.param == "temperature"
    assert caught.value.request_id.startswith("req_")


def test_openai_calls_tools_and_parses(openai: Any) -> None:
    pydantic = pytest.importorskip("pydantic")
    size = pydantic.create_model("Size", ok=(bool, ...), width=(bool, ...))
    parsed = openai.chat.completions.parse(
        model="tiny", messages=HI, response_format=size, max_tokens=100
    )
    assert isinstance(parsed.choices[0].message.parsed, size)
    tool = {"type": "function", "function": {"name": "measure", "parameters": SCHEMA}}
    asked = {"model": "tiny", "messages": HI, "tools": [tool], "max_tokens": 200}
    answer = openai.chat.completions.create(**asked, tool_choice="required")
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "measure"
    history = [*HI, answer.choices[0].message]
    history.append({"role": "tool", "tool_call_id": call.id, "content": "12"})
    later = openai.chat.completions.create(**{**asked, "messages": history})
    assert later.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_openai_responses(openai: Any, wanted: str) -> None:
    answer = openai.responses.create(model="tiny", input="Hi", max_output_tokens=N)
    assert answer.output_text == wanted
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    items: Any = [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]
    with openai.responses.stream(model="tiny", input=items, max_output_tokens=N) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert events[-1].response.output_text == wanted
    if hasattr(openai.responses, "input_tokens"):  # since 2.8
        counted = openai.responses.input_tokens.count(model="tiny", input="Hi")
        assert counted.input_tokens == answer.usage.input_tokens


def test_openai_responses_call_tools(openai: Any) -> None:
    tool = {"type": "function", "name": "measure", "parameters": SCHEMA, "strict": True}
    asked: Any = {"model": "tiny", "tools": [tool], "max_output_tokens": 200}
    answer = openai.responses.create(input="Hi", tool_choice="required", **asked)
    call = answer.output[-1]
    assert (call.type, call.name) == ("function_call", "measure")
    assert set(json.loads(call.arguments)) == {"ok", "size"}
    items: Any = [
        *HI,
        call,
        {"type": "function_call_output", "call_id": call.call_id, "output": "1"},
    ]
    assert openai.responses.create(input=items, **asked).status in ("completed", "incomplete")
    with openai.responses.stream(input="Hi", tool_choice="required", **asked) as stream:
        final = stream.get_final_response()
    assert final.output[-1].arguments == call.arguments


# Anthropic -----------------------------------------------------------------------------------


def test_anthropic_messages(anthropic: Any, server: LiveServer, wanted: str) -> None:
    asked: Any = {"model": "tiny", "messages": HI, "max_tokens": N}
    answer = anthropic.messages.create(**asked)
    assert [block.text for block in answer.content] == [wanted]
    assert answer.stop_reason == "max_tokens"
    counts = answer.usage
    wanted_tokens = server.model.generate(HI, max_tokens=1).prompt_tokens
    assert counts.input_tokens + counts.cache_read_input_tokens == wanted_tokens
    assert anthropic.messages.count_tokens(model="tiny", messages=HI).input_tokens == wanted_tokens
    with anthropic.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == wanted
        final = stream.get_final_message()
    assert final.content[0].text == wanted
    assert final.usage.output_tokens == N
    stop = wanted[10:13]
    stopped = anthropic.messages.create(**asked, stop_sequences=[stop])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)
    system = anthropic.messages.create(**asked, system=[{"type": "text", "text": "Be brief."}])
    messages = [{"role": "system", "content": "Be brief."}, *HI]
    assert system.content[0].text == server.model.generate(messages, max_tokens=N).text


def test_anthropic_tools(anthropic: Any) -> None:
    tool = {"name": "measure", "description": "Measures.", "input_schema": SCHEMA}
    asked: Any = {"model": "tiny", "max_tokens": 200, "tools": [tool]}
    asked["tool_choice"] = {"type": "tool", "name": "measure", "disable_parallel_tool_use": True}
    answer = anthropic.messages.create(messages=HI, **asked)
    use = answer.content[-1]
    assert (use.type, use.name, answer.stop_reason) == ("tool_use", "measure", "tool_use")
    assert set(use.input) == {"ok", "size"}
    with anthropic.messages.stream(messages=HI, **asked) as stream:
        final = stream.get_final_message()
    assert final.content[-1].input == use.input
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "12"}
    history: Any = [*HI, {"role": "assistant", "content": answer.content}]
    history.append({"role": "user", "content": [result]})
    asked["tool_choice"] = {"type": "auto"}
    assert anthropic.messages.create(messages=history, **asked).stop_reason


def test_anthropic_gets_errors_of_its_own(anthropic: Any) -> None:
    module = pytest.importorskip("anthropic")
    image: Any = [{"role": "user", "content": [{"type": "image", "source": {}}]}]
    with pytest.raises(module.BadRequestError, match="text only"):
        anthropic.messages.create(model="tiny", messages=image, max_tokens=2)
    with pytest.raises(module.NotFoundError) as caught:
        anthropic.messages.create(model="claude", messages=HI, max_tokens=2)
    assert caught.value.body["error"]["type"] == "not_found_error"


# Ollama --------------------------------------------------------------------------------------


def test_ollama_chats_and_generates(ollama: Any, server: LiveServer, wanted: str) -> None:
    asked: Any = {"model": "tiny", "options": {"num_predict": N, "num_ctx": 2048}}
    answer = ollama.chat(messages=HI, **asked)
    assert (answer.message.content, answer.done_reason) == (wanted, "length")
    assert answer.eval_count == N
    parts = list(ollama.chat(messages=HI, stream=True, **asked))
    assert "".join(part.message.content for part in parts) == wanted
    assert [part.done for part in parts][-2:] == [False, True]
    assert ollama.generate(prompt="Hi", **asked).response == wanted
    raw = ollama.generate(prompt="Once", raw=True, **asked).response
    assert raw == server.model.generate("Once", max_tokens=N).text
    shaped = ollama.chat(messages=HI, format=SCHEMA, model="tiny", options={"num_predict": 100})
    assert set(json.loads(shaped.message.content)) == {"ok", "size"}


def test_ollama_finds_models(ollama: Any) -> None:
    assert [model.model for model in ollama.list().models] == ["tiny"]
    assert [model.model for model in ollama.ps().models] == ["tiny"]
    shown = ollama.show("tiny:latest")
    assert shown.modelinfo["llama.context_length"] == 2048
    assert "tools" in shown.capabilities


def test_ollama_gets_errors_of_its_own(ollama: Any) -> None:
    module = pytest.importorskip("ollama")
    with pytest.raises(module.ResponseError, match="not served") as caught:
        ollama.chat(model="llama3", messages=HI)
    assert caught.value.status_code == 404
    with pytest.raises(module.ResponseError, match="2048"):
        ollama.chat(model="tiny", messages=HI, options={"num_ctx": 4096})
