"""Anthropic's Messages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from slmq.batch.lines import CHAT
from slmq.batch.requests import RequestError
from slmq.server.exchange import exchange, flag, hear_all, only, text_of
from slmq.server.faults import fault_body
from slmq.server.guard import body_of
from slmq.server.replies import Reply, Stream, as_json, event

if TYPE_CHECKING:
    from starlette.requests import Request

    from slmq.generation.results import GenerationResult
    from slmq.server.service import Service
    from slmq.server.talk import Heard, Talk
    from slmq.tools.calls import ToolCall

__all__ = ["Messages"]

PATH = "/v1/messages"
SAME = ("model", "max_tokens", "temperature", "top_p", "top_k")
IGNORED = ("metadata", "service_tier", "context_management", "cache_control", "inference_geo")
OURS = (
    "messages", "system", "stop_sequences", "stream", "tools", "tool_choice", "thinking",
    "output_config", "output_format",
)  # fmt: skip
CHOICES = {"auto": "auto", "any": "required", "none": "none"}
REASONS = {"tool_calls": "tool_use", "length": "max_tokens"}


class Messages:
    """Endpoints.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Reply | Stream:
        """POST /v1/messages."""
        body = body_of(request.scope)
        if body.get("max_tokens") is None:
            raise RequestError("max_tokens: is missing", "max_tokens")
        return await exchange(
            self._service,
            request,
            CHAT,
            _chat(body),
            stream=flag(body, "stream", default=False),
            whole=_whole,
            events=_events,
            ignored=[name for name in IGNORED if body.get(name) is not None],
        )

    async def count(self, request: Request) -> Reply:
        """POST /v1/messages/count_tokens."""
        found = await self._service.prompt_tokens(CHAT, _chat(body_of(request.scope)))
        return Reply({"input_tokens": found})


def _chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request in OpenAI's words."""
    given = only(body, (*SAME, *IGNORED, *OURS))
    chat = {name: given[name] for name in SAME if name in given}
    messages: list[dict[str, Any]] = []
    if "system" in given:
        messages.append({"role": "system", "content": text_of(given["system"], "system", ["text"])})
    turns = given.get("messages")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RequestError("messages: expected a list of messages", "messages")
    for i, turn in enumerate(turns):
        messages += _turn(turn, f"messages[{i}]")
    if turns and turns[-1].get("role") == "assistant":
        raise RequestError(
            "messages: expected the last one to be the user's; the model does not go on with what "
            "it is said to have begun",
            "messages",
        )
    chat["messages"] = messages
    if "stop_sequences" in given:
        chat["stop"] = given["stop_sequences"]
    _add_tools(chat, given)
    thinking = given.get("thinking")
    if thinking is not None:
        kind = thinking.get("type") if isinstance(thinking, dict) else None
        if kind not in ("enabled", "adaptive", "disabled"):
            raise RequestError("thinking: expected the type enabled or disabled", "thinking")
        chat["reasoning_effort"] = "none" if kind == "disabled" else "medium"
    shape = given.get("output_format") or only(
        given.get("output_config") or {}, ("format", "effort"), "output_config."
    ).get("format")
    if shape is not None:
        schema = shape.get("schema") if isinstance(shape, dict) else None
        chat["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
    return chat


def _turn(turn: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """A message in OpenAI's words; results of tools are messages of their own."""
    role, content = turn.get("role"), turn.get("content")
    if role not in ("user", "assistant", "system"):
        raise RequestError(f"{where}.role: expected user or assistant, got {role!r:.40}", where)
    if isinstance(content, str):
        yield {"role": role, "content": content}
        return
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise RequestError(f"{where}.content: expected a string or a list of blocks", where)
    said: dict[str, Any] = {"role": role, "content": ""}
    texts = []
    for i, block in enumerate(content):
        kind = block.get("type")
        place = f"{where}.content[{i}]"
        if kind == "tool_result":
            found = block.get("content") or ""
            text = text_of(found, f"{place}.content", ["text"])
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}
        elif kind == "tool_use":
            arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
            function = {"name": block.get("name"), "arguments": arguments}
            call = {"id": block.get("id"), "type": "function", "function": function}
            said.setdefault("tool_calls", []).append(call)
        elif kind == "thinking":
            said["reasoning_content"] = block.get("thinking")
        elif kind != "redacted_thinking":
            texts.append(text_of([block], place, ["text"]))
    if texts:
        said["content"] = "".join(texts)
    if texts or "tool_calls" in said:
        yield said


def _add_tools(chat: dict[str, Any], given: Mapping[str, Any]) -> None:
    tools = given.get("tools")
    if tools:
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise RequestError("tools: expected a list of tools", "tools")
        for i, tool in enumerate(tools):
            if tool.get("type", "custom") != "custom":
                raise RequestError(f"tools[{i}]: {tool['type']!r:.40} is not supported", "tools")
        chat["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.get("name"),
                    "description": tool.get("description") or "",
                    "parameters": tool.get("input_schema") or {"type": "object"},
                },
            }
            for tool in tools
        ]
    choice = given.get("tool_choice")
    if choice is None:
        return
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "tool":
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif kind in CHOICES:
        chat["tool_choice"] = CHOICES[kind]
    else:
        raise RequestError("tool_choice: expected the type auto, any, tool or none", "tool_choice")
    if choice.get("disable_parallel_tool_use") is True:
        chat["parallel_tool_calls"] = False


def _whole(talk: Talk, results: list[GenerationResult]) -> dict[str, Any]:
    (result,) = results
    blocks: list[dict[str, Any]] = []
    if result.reasoning:
        blocks.append({"type": "thinking", "thinking": result.reasoning, "signature": ""})
    if result.text:
        blocks.append({"type": "text", "text": result.text, "citations": None})
    for call in result.tool_calls:
        blocks.append({"type": "tool_use", **_use(call), "input": call.arguments})
    return {**_head(talk), "content": blocks, **_end(result), "usage": _usage(result)}


def _head(talk: Talk) -> dict[str, Any]:
    return {
        "id": f"msg_{talk.id}",
        "type": "message",
        "role": "assistant",
        "model": talk.book.name,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
    }


def _use(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "name": call.name, "input": {}, "caller": {"type": "direct"}}


def _end(result: GenerationResult) -> dict[str, Any]:
    """Why an answer ended."""
    sequence = result.stopped_by if isinstance(result.stopped_by, str) else None
    reason = REASONS.get(result.finish_reason, "end_turn")
    if sequence is not None and reason == "end_turn":
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": sequence}


def _usage(result: GenerationResult) -> dict[str, Any]:
    computed = result.prompt_tokens - result.cached_tokens
    details = {"thinking_tokens": result.reasoning_tokens}
    return _counts(computed, result.cached_tokens, result.generated_tokens, details)


def _counts(
    computed: int, cached: int, output: int, details: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "input_tokens": computed,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "cache_creation": None,
        "output_tokens": output,
        "output_tokens_details": details,
        "inference_geo": None,
        "server_tool_use": None,
        "service_tier": "standard",
    }


async def _events(talk: Talk) -> AsyncIterator[bytes]:
    blocks = _Blocks()
    begun = False
    try:
        async for heard in hear_all(talk):
            if heard is None:
                yield event({"type": "ping"}, "ping")
                continue
            if not begun:
                begun = True
                message = {**_head(talk), "usage": _counts(heard.prompt_tokens, 0, 0)}
                yield event({"type": "message_start", "message": message}, "message_start")
            yield b"".join(event(e, e["type"]) for e in blocks.of(heard))
            if heard.result is not None:
                delta = {"type": "message_delta", "delta": _end(heard.result)}
                yield event({**delta, "usage": _usage(heard.result)}, "message_delta")
                yield event({"type": "message_stop"}, "message_stop")
    except Exception as error:
        yield event(fault_body(PATH, error), "error")


class _Blocks:
    """The blocks of a stream, one after another."""

    def __init__(self) -> None:
        self._index = -1
        self._open = ""

    def of(self, heard: Heard) -> Iterator[dict[str, Any]]:
        """The events of a piece."""
        if heard.reasoning:
            yield from self._begin("thinking", {"thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": heard.reasoning})
        if heard.text:
            yield from self._begin("text", {"text": "", "citations": None})
            yield self._delta({"type": "text_delta", "text": heard.text})
        for call in heard.calls:
            yield from self._end()
            yield from self._begin("tool_use", _use(call))
            arguments = as_json(call.arguments).decode("ascii")
            yield self._delta({"type": "input_json_delta", "partial_json": arguments})
        if heard.result is not None:
            yield from self._end()

    def _begin(self, kind: str, head: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if self._open == kind:
            return
        yield from self._end()
        self._index += 1
        self._open = kind
        block = {"type": kind, **head}
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _end(self) -> Iterator[dict[str, Any]]:
        if self._open:
            self._open = ""
            yield {"type": "content_block_stop", "index": self._index}
