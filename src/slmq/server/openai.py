"""OpenAI's chat and text completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from slmq.batch.answers import (
    call_body,
    chat_choice,
    chat_logprobs,
    text_choices,
    text_logprobs,
    usage,
)
from slmq.batch.lines import CHAT, COMPLETIONS
from slmq.batch.requests import RequestError, ignored_fields
from slmq.generation.results import GenerationResult
from slmq.server.exchange import exchange
from slmq.server.faults import fault_body
from slmq.server.guard import body_of
from slmq.server.replies import DONE, PING, Reply, Stream, event

if TYPE_CHECKING:
    from starlette.requests import Request

    from slmq.server.routing import Counts
    from slmq.server.service import Service
    from slmq.server.talk import Heard, Talk

__all__ = ["OpenAI", "full_usage"]

TRANSPORT = ("stream", "stream_options")
STREAM_OPTIONS = {"include_usage", "include_obfuscation", "continuous_usage_stats"}


class OpenAI:
    """Endpoints.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def chat(self, request: Request) -> Reply | Stream:
        """POST /v1/chat/completions."""
        return await self._answer(request, CHAT)

    async def completions(self, request: Request) -> Reply | Stream:
        """POST /v1/completions."""
        return await self._answer(request, COMPLETIONS)

    async def count(self, request: Request) -> Reply:
        """POST /v1/chat/completions/input_tokens: how long the prompt is, as llama.cpp tells."""
        found = await self._service.prompt_tokens(CHAT, body_of(request.scope))
        return Reply({"input_tokens": found})

    async def _answer(self, request: Request, url: str) -> Reply | Stream:
        body, routing = body_of(request.scope), self._service.routing
        if url == CHAT and routing is not None and routing.takes(body.get("model")):
            _transport(body)
            found: Reply | Stream = await routing.answer(request, body, self._counted)
            return found
        return await self._local(request, body, url)

    async def _counted(self, request: Request, body: Mapping[str, Any], counts: Counts) -> Any:
        """An answer of a model of this server, whose tokens are told once it is over."""
        return await self._local(request, body, CHAT, counts)

    async def _local(
        self, request: Request, body: Mapping[str, Any], url: str, counts: Counts | None = None
    ) -> Reply | Stream:
        stream, with_usage = _transport(body)
        rest = {name: value for name, value in body.items() if name not in TRANSPORT}
        shape = _Chat if url == CHAT else _Text

        def whole(talk: Talk, results: list[GenerationResult]) -> dict[str, Any]:
            if counts is not None:
                counts(*_tokens(talk))
            return shape(talk).whole(results)

        def events(talk: Talk) -> AsyncIterator[bytes]:
            parts = _events(talk, shape(talk), url, with_usage)
            return parts if counts is None else _told(parts, talk, counts)

        return await exchange(
            self._service,
            request,
            url,
            rest,
            stream=stream,
            whole=whole,
            events=events,
            ignored=ignored_fields({**rest, "model": None}),
        )


def full_usage(results: list[GenerationResult], n: int) -> dict[str, Any]:
    """Tokens of a request, and how many of them were cached or guessed."""
    return {
        **usage(results, n),
        "prompt_tokens_details": {
            "cached_tokens": sum(result.cached_tokens for result in results[::n])
        },
        "completion_tokens_details": {
            "reasoning_tokens": sum(result.reasoning_tokens for result in results),
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


async def _told(parts: AsyncIterator[bytes], talk: Talk, counts: Counts) -> AsyncIterator[bytes]:
    """A stream whose tokens are told at its end, also if nobody reads on."""
    try:
        async for part in parts:
            yield part
    finally:
        counts(*_tokens(talk))


def _tokens(talk: Talk) -> tuple[int, int]:
    """Tokens of the prompt and of the answers that are complete."""
    results = [result for result in talk.results if result is not None]
    prompt = results[0].prompt_tokens if results else 0
    return prompt, sum(result.generated_tokens for result in results)


def _transport(body: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a client wants a stream, and in it the usage."""
    stream = body.get("stream") or False
    if not isinstance(stream, bool):
        raise RequestError(f"stream: expected true or false, got {stream!r:.80}", "stream")
    options = body.get("stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise RequestError("stream_options: needs stream", "stream_options")
    if not isinstance(options, dict) or not STREAM_OPTIONS.issuperset(options):
        raise RequestError(
            f"stream_options: expected an object with include_usage, got {options!r:.80}",
            "stream_options",
        )
    return stream, options.get("include_usage") is True


class _Chat:
    """Answers to a chat, in one piece and in many."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._head = {
            "id": f"chatcmpl-{talk.id}",
            "object": "chat.completion",
            "created": talk.created,
            "model": talk.book.name,
            "system_fingerprint": talk.submitted.fingerprint,
        }

    def whole(self, results: list[GenerationResult]) -> dict[str, Any]:
        choices = []
        for i, result in enumerate(results):
            choice = chat_choice(i, result, self._talk.tokenizer)
            choice["message"] |= {"refusal": None, "annotations": []}
            choices.append(choice)
        counts = full_usage(results, self._talk.asked.n)
        return {**self._head, "choices": choices, "usage": counts, **_timings(results)}

    def first(self) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [self._piece(i, delta) for i in range(len(self._talk.results))]

    def pieces(self, heard: Heard) -> list[dict[str, Any]]:
        found = []
        logprobs = None
        if self._talk.asked.params.get("logprobs") is not None:
            logprobs = chat_logprobs(heard.logprobs, self._talk.tokenizer)
        for delta in _deltas(heard):
            found.append(self._piece(heard.index, delta, logprobs))
            logprobs = None
        if heard.result is not None:
            found.append(self._piece(heard.index, {}, logprobs, heard.result.finish_reason))
        return found

    def last(self, results: list[GenerationResult]) -> dict[str, Any]:
        counts = full_usage(results, self._talk.asked.n)
        return {**self._chunk(), "choices": [], "usage": counts, **_timings(results)}

    def _piece(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason,
        }  # fmt: skip
        return {**self._chunk(), "choices": [choice]}

    def _chunk(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"}


def _deltas(heard: Heard) -> Iterator[dict[str, Any]]:
    """What was said, in the order in which a model says it."""
    if heard.reasoning:
        yield {"reasoning_content": heard.reasoning}
    if heard.text:
        yield {"content": heard.text}
    for index, call in enumerate(heard.calls, heard.called):
        body = call_body(call)
        function = body["function"]
        arguments, function["arguments"] = function["arguments"], ""
        yield {"tool_calls": [{"index": index, **body}]}
        yield {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}


class _Text:
    """Completions of texts, in one piece and in many."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._said = [0] * len(talk.results)  # characters
        self._head = {
            "id": f"cmpl-{talk.id}",
            "object": "text_completion",
            "created": talk.created,
            "model": talk.book.name,
            "system_fingerprint": talk.submitted.fingerprint,
        }

    def whole(self, results: list[GenerationResult]) -> dict[str, Any]:
        choices = text_choices(self._talk.asked, results, self._talk.tokenizer)
        counts = full_usage(results, self._talk.asked.n)
        return {**self._head, "choices": choices, "usage": counts, **_timings(results)}

    def first(self) -> list[dict[str, Any]]:
        if not self._talk.asked.echo:
            return []
        before = [
            self._talk.asked.said_before(i, self._talk.tokenizer)
            for i in range(len(self._talk.results))
        ]
        return [self._piece(i, text) for i, text in enumerate(before)]

    def pieces(self, heard: Heard) -> list[dict[str, Any]]:
        logprobs = None
        if self._talk.asked.params.get("logprobs") is not None:
            start = self._said[heard.index]
            logprobs = text_logprobs(heard.logprobs, self._talk.tokenizer, start)
            self._said[heard.index] += sum(len(text) for text in (logprobs or {})["tokens"])
        reason = None if heard.result is None else heard.result.finish_reason
        return [self._piece(heard.index, heard.text, logprobs, reason)]

    def _piece(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason,
        }  # fmt: skip
        return {**self._head, "choices": [choice]}

    def last(self, results: list[GenerationResult]) -> dict[str, Any]:
        counts = full_usage(results, self._talk.asked.n)
        return {**self._head, "choices": [], "usage": counts, **_timings(results)}


async def _events(
    talk: Talk, shape: _Chat | _Text, url: str, with_usage: bool
) -> AsyncIterator[bytes]:
    """The events of a stream; one that fails ends with an error in its place."""
    empty = {"usage": None} if with_usage else {}
    try:
        first = b"".join(event({**piece, **empty}) for piece in shape.first())
        if first:
            yield first
        while not talk.complete:
            news = await talk.hear()
            pieces = [piece for heard in news for piece in shape.pieces(heard)]
            # What is there at a time goes out in one write.
            yield b"".join(event({**piece, **empty}) for piece in pieces) if news else PING
        if with_usage:
            yield event(shape.last([result for result in talk.results if result is not None]))
    except Exception as error:
        yield event(fault_body(url, error))
    yield DONE


def _timings(results: list[GenerationResult]) -> dict[str, Any]:
    """Speeds, in llama.cpp's words; of a single answer only."""
    if len(results) != 1:
        return {}
    (result,) = results
    computed = result.prompt_tokens - result.cached_tokens
    later = max(result.generated_tokens - 1, 0)
    prompt_ms = computed / result.prompt_tps * 1e3 if result.prompt_tps else 0.0
    predicted_ms = later / result.generation_tps * 1e3 if result.generation_tps else 0.0
    return {
        "timings": {
            "cache_n": result.cached_tokens,
            "prompt_n": computed,
            "prompt_ms": prompt_ms,
            "prompt_per_second": result.prompt_tps,
            "predicted_n": result.generated_tokens,
            "predicted_ms": predicted_ms,
            "predicted_per_second": result.generation_tps,
            "queue_ms": result.queue_s * 1e3,
        }
    }
