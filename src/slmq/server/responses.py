"""OpenAI's Responses, without a memory: every request brings its whole conversation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from slmq.batch.answers import call_body
from slmq.batch.lines import CHAT
from slmq.batch.requests import RequestError
from slmq.server.exchange import exchange, flag, hear_all, only, text_of
from slmq.server.faults import fault_body
from slmq.server.guard import body_of
from slmq.server.replies import PING, Reply, Stream, event

if TYPE_CHECKING:
    from starlette.requests import Request

    from slmq.generation.results import GenerationResult
    from slmq.server.service import Service
    from slmq.server.talk import Heard, Talk
    from slmq.tools.calls import ToolCall

__all__ = ["Responses"]

PATH = "/v1/responses"
SAME = ("model", "temperature", "top_p", "parallel_tool_calls")
IGNORED = (
    "metadata", "user", "safety_identifier", "service_tier", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention", "include", "store", "stream_options",
    "client_metadata",
)  # fmt: skip
OURS = (
    "input", "instructions", "max_output_tokens", "stream", "text", "tools", "tool_choice",
    "reasoning", "truncation", "background", "top_logprobs",
)  # fmt: skip
TEXTS = ("input_text", "output_text", "text")
# What a tool is told to be where its request leaves that out; arguments always fit a schema.
PLAIN_TOOL = {"type": "function", "description": None, "parameters": None, "strict": True}


class Responses:
    """Endpoints.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Reply | Stream:
        """POST /v1/responses."""
        body = body_of(request.scope)

        def whole(talk: Talk, results: list[GenerationResult]) -> dict[str, Any]:
            (result,) = results
            return _response(talk, body, result, _items(talk, result))

        return await exchange(
            self._service,
            request,
            CHAT,
            _chat(body),
            stream=flag(body, "stream", default=False),
            whole=whole,
            events=lambda talk: _events(talk, body),
            ignored=[name for name in IGNORED if body.get(name) not in (None, False)],
        )

    async def count(self, request: Request) -> Reply:
        """POST /v1/responses/input_tokens."""
        found = await self._service.prompt_tokens(CHAT, _chat(body_of(request.scope)))
        return Reply({"object": "response.input_tokens", "input_tokens": found})


def _chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request in the words of a chat completion."""
    given = only(body, (*SAME, *IGNORED, *OURS))
    for name, value in (("truncation", "disabled"), ("background", False)):
        if given.get(name, value) != value:
            raise RequestError(f"{name}: {given[name]!r:.40} is not supported", name)
    chat = {name: given[name] for name in SAME if name in given}
    if "max_output_tokens" in given:
        chat["max_completion_tokens"] = given["max_output_tokens"]
    if given.get("top_logprobs"):
        raise RequestError("top_logprobs: is not supported here", "top_logprobs")
    messages: list[dict[str, Any]] = []
    if "instructions" in given:
        messages.append({"role": "system", "content": given["instructions"]})
    asked = given.get("input")
    if isinstance(asked, str):
        messages.append({"role": "user", "content": asked})
    elif isinstance(asked, list) and all(isinstance(item, dict) for item in asked):
        for i, item in enumerate(asked):
            _add(messages, item, f"input[{i}]")
    else:
        raise RequestError("input: expected a text or a list of items", "input")
    chat["messages"] = messages
    shape = only(given.get("text") or {}, ("format", "verbosity"), "text.").get("format")
    if shape is not None:
        chat["response_format"] = _shape(shape)
    effort = only(
        given.get("reasoning") or {}, ("effort", "summary", "generate_summary"), "reasoning."
    ).get("effort")
    if effort is not None:
        chat["reasoning_effort"] = effort
    _add_tools(chat, given)
    return chat


def _shape(shape: Any) -> dict[str, Any]:
    if not isinstance(shape, dict) or not isinstance(shape.get("type"), str):
        raise RequestError("text.format: expected an object with a type", "text.format")
    if shape["type"] != "json_schema":
        return shape
    inner = {name: value for name, value in shape.items() if name != "type"}
    return {"type": "json_schema", "json_schema": inner}


def _add(messages: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    """Put an item of the input behind the messages before it."""
    kind = item.get("type", "message")
    if kind == "message":
        content = text_of(item.get("content"), f"{where}.content", TEXTS)
        messages.append({"role": item.get("role"), "content": content})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        content = text_of(item.get("output"), f"{where}.output", TEXTS)
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
    elif kind != "reasoning":  # what a model said to itself does not come again
        raise RequestError(f"{where}: the type {kind!r:.40} is not supported", "input")


def _add_tools(chat: dict[str, Any], given: Mapping[str, Any]) -> None:
    tools = given.get("tools")
    if tools:
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise RequestError("tools: expected a list of tools", "tools")
        for i, tool in enumerate(tools):
            if tool.get("type") != "function":
                kind = tool.get("type")
                raise RequestError(f"tools[{i}]: the type {kind!r:.40} is not supported", "tools")
        chat["tools"] = [
            {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
            for tool in tools
        ]
    choice = given.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "function":
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    if choice is not None:
        chat["tool_choice"] = choice


def _response(
    talk: Talk,
    body: Mapping[str, Any],
    result: GenerationResult | None,
    output: list[dict[str, Any]],
) -> dict[str, Any]:
    """The response as of now; without a result it is under way."""
    cut = result is not None and result.finish_reason == "length"
    status = "in_progress" if result is None else "incomplete" if cut else "completed"
    return {
        "id": f"resp_{talk.id}",
        "object": "response",
        "created_at": talk.created,
        "completed_at": None if status != "completed" else talk.created + round(talk.took_s),
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": None,
        "model": talk.book.name,
        "output": output,
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "prompt_cache_key": body.get("prompt_cache_key"),
        "reasoning": body.get("reasoning") or {"effort": None, "summary": None},
        "safety_identifier": body.get("safety_identifier"),
        "service_tier": "default",
        "store": False,
        "temperature": talk.asked.params.get("temperature", 0.0),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": [{**PLAIN_TOOL, **tool} for tool in body.get("tools") or []],
        "top_logprobs": 0,
        "top_p": talk.asked.params.get("top_p", 1.0),
        "presence_penalty": talk.asked.params.get("presence_penalty", 0.0),
        "frequency_penalty": talk.asked.params.get("frequency_penalty", 0.0),
        "truncation": "disabled",
        "usage": None if result is None else _usage(result),
        "metadata": body.get("metadata") or {},
    }


def _usage(result: GenerationResult) -> dict[str, Any]:
    return {
        "input_tokens": result.prompt_tokens,
        "input_tokens_details": {"cached_tokens": result.cached_tokens},
        "output_tokens": result.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": result.reasoning_tokens},
        "total_tokens": result.prompt_tokens + result.generated_tokens,
    }


def _items(talk: Talk, result: GenerationResult) -> list[dict[str, Any]]:
    """What an answer consists of."""
    found: list[dict[str, Any]] = []
    if result.reasoning:
        found.append(_reasoning(talk, len(found), result.reasoning))
    if result.text or not result.tool_calls:
        found.append(_message(talk, len(found), result.text, _status(result)))
    return [*found, *(_call(talk, i, c) for i, c in enumerate(result.tool_calls, len(found)))]


def _status(result: GenerationResult) -> str:
    return "incomplete" if result.finish_reason == "length" else "completed"


def _reasoning(talk: Talk, index: int, text: str | None, status: str = "completed") -> Any:
    content = [] if text is None else [{"type": "reasoning_text", "text": text}]
    return {
        "id": f"rs_{talk.id}_{index}",
        "type": "reasoning",
        "summary": [],
        "content": content,
        "status": status,
    }


def _message(talk: Talk, index: int, text: str | None, status: str) -> dict[str, Any]:
    return {
        "id": f"msg_{talk.id}_{index}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [] if text is None else [_part(text)],
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call(talk: Talk, index: int, call: ToolCall, *, begun: bool = False) -> dict[str, Any]:
    function = call_body(call)["function"]
    return {
        "id": f"fc_{talk.id}_{index}",
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": "" if begun else function["arguments"],
        "status": "in_progress" if begun else "completed",
    }


async def _events(talk: Talk, body: Mapping[str, Any]) -> AsyncIterator[bytes]:
    output = _Output(talk)
    number = 0

    def numbered(kind: str, **fields: Any) -> bytes:
        nonlocal number
        found = event({"type": kind, "sequence_number": number, **fields}, kind)
        number += 1
        return found

    try:
        for kind in ("response.created", "response.in_progress"):
            yield numbered(kind, response=_response(talk, body, None, []))
        async for heard in hear_all(talk):
            if heard is None:
                yield PING
                continue
            yield b"".join(numbered(kind, **fields) for kind, fields in output.of(heard))
            if heard.result is not None:
                done = _response(talk, body, heard.result, output.items)
                yield numbered(f"response.{done['status']}", response=done)
    except Exception as error:
        fault = fault_body(PATH, error)["error"]
        failed = _response(talk, body, None, output.items)
        failed |= {"status": "failed", "error": {"code": "server_error", **_only_message(fault)}}
        yield numbered("response.failed", response=failed)


def _only_message(fault: Mapping[str, Any]) -> dict[str, Any]:
    return {"message": fault["message"]}


Event = tuple[str, dict[str, Any]]


class _Output:
    """The items of a stream, one after another."""

    def __init__(self, talk: Talk) -> None:
        self.items: list[dict[str, Any]] = []
        self._talk = talk
        self._open = ""
        self._text = ""

    def of(self, heard: Heard) -> Iterator[Event]:
        """The events of a piece."""
        if heard.reasoning:
            yield from self._say("reasoning", heard.reasoning)
        if heard.text:
            yield from self._say("message", heard.text)
        for call in heard.calls:
            yield from self._close("completed")
            yield from self._called(call)
        result = heard.result
        if result is not None:
            if not self.items and not self._open:  # an empty answer is one, too
                yield from self._begin("message")
            yield from self._close(_status(result))

    @property
    def _place(self) -> dict[str, Any]:
        index = len(self.items)
        prefix = "msg" if self._open == "message" else "rs"
        item_id = f"{prefix}_{self._talk.id}_{index}"
        return {"item_id": item_id, "output_index": index, "content_index": 0}

    def _say(self, kind: str, text: str) -> Iterator[Event]:
        if self._open != kind:
            yield from self._close("completed")
            yield from self._begin(kind)
        self._text += text
        if kind == "message":
            yield "response.output_text.delta", {**self._place, "delta": text, "logprobs": []}
        else:
            yield "response.reasoning_text.delta", {**self._place, "delta": text}

    def _begin(self, kind: str) -> Iterator[Event]:
        self._open, self._text = kind, ""
        index = len(self.items)
        make = _message if kind == "message" else _reasoning
        item = make(self._talk, index, None, "in_progress")
        yield "response.output_item.added", {"output_index": index, "item": item}
        part = _part("") if kind == "message" else {"type": "reasoning_text", "text": ""}
        yield "response.content_part.added", {**self._place, "part": part}

    def _close(self, status: str) -> Iterator[Event]:
        if not self._open:
            return
        place, index, text = self._place, len(self.items), self._text
        if self._open == "message":
            yield "response.output_text.done", {**place, "text": text, "logprobs": []}
            yield "response.content_part.done", {**place, "part": _part(text)}
            item = _message(self._talk, index, text, status)
        else:
            yield "response.reasoning_text.done", {**place, "text": text}
            part = {"type": "reasoning_text", "text": text}
            yield "response.content_part.done", {**place, "part": part}
            item = _reasoning(self._talk, index, text, status)
        yield "response.output_item.done", {"output_index": index, "item": item}
        self.items.append(item)
        self._open = ""

    def _called(self, call: ToolCall) -> Iterator[Event]:
        index = len(self.items)
        item = _call(self._talk, index, call)
        place = {"item_id": item["id"], "output_index": index}
        begun = _call(self._talk, index, call, begun=True)
        yield "response.output_item.added", {"output_index": index, "item": begun}
        arguments = item["arguments"]
        yield "response.function_call_arguments.delta", {**place, "delta": arguments}
        done = {**place, "arguments": arguments, "name": call.name}
        yield "response.function_call_arguments.done", done
        yield "response.output_item.done", {"output_index": index, "item": item}
        self.items.append(item)
