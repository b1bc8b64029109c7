"""The API of ollama: lines of JSON, durations in nanoseconds."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from slmq.batch.lines import CHAT, COMPLETIONS
from slmq.batch.requests import RequestError
from slmq.generation.params import DRAW, SamplingParams
from slmq.server.exchange import exchange, flag, hear_all, only
from slmq.server.faults import fault_body
from slmq.server.guard import body_of
from slmq.server.replies import Reply, Stream, line
from slmq.settings import names_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from slmq.generation.results import GenerationResult
    from slmq.server.service import Service
    from slmq.server.shelf import Book
    from slmq.server.talk import Talk

__all__ = ["Ollama"]

LINES = "application/x-ndjson"
# Their names for our parameters; most are the same.
OPTIONS = {name: name for name in ("seed", "stop", *names_of(SamplingParams, DRAW))}
OPTIONS |= {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}
NO_OPTIONS = (
    "num_thread", "num_gpu", "num_batch", "num_keep", "main_gpu", "use_mmap", "use_mlock", "numa",
    "low_vram", "repeat_last_n",
)  # fmt: skip
BOTH = ("model", "stream", "format", "options", "think", "keep_alive")


class Ollama:
    """Endpoints.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def chat(self, request: Request) -> Reply | Stream:
        """POST /api/chat."""
        given = only(body_of(request.scope), (*BOTH, "messages", "tools"))
        messages = given.get("messages")
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise RequestError("messages: expected a list of messages", "messages")
        body = {**self._common(given), "messages": [_message(m) for m in messages]}
        if given.get("tools"):
            body["tools"] = given["tools"]
        return await self._answer(request, given, CHAT, body, _said)

    async def generate(self, request: Request) -> Reply | Stream:
        """POST /api/generate."""
        given = only(body_of(request.scope), (*BOTH, "prompt", "system", "raw"))
        prompt = given.get("prompt", "")
        if not isinstance(prompt, str) or not prompt:
            raise RequestError("prompt: expected a text", "prompt")
        body = self._common(given)
        if flag(given, "raw", default=False):
            return await self._answer(
                request, given, COMPLETIONS, {**body, "prompt": prompt}, _text
            )
        system = [{"role": "system", "content": given["system"]}] if "system" in given else []
        body["messages"] = [*system, {"role": "user", "content": prompt}]
        return await self._answer(request, given, CHAT, body, _text)

    async def tags(self, _request: Request) -> Reply:
        """GET /api/tags."""
        return Reply({"models": [_entry(book) for book in self._service.shelf.books]})

    async def loaded(self, _request: Request) -> Reply:
        """GET /api/ps."""
        far = datetime.fromtimestamp(time.time() + 86400, timezone.utc).isoformat()
        books = [book for book in self._service.shelf.books if book.loaded is not None]
        more = {"size_vram": 0, "expires_at": far}
        return Reply({"models": [{**_entry(b), "size": b.memory_bytes, **more} for b in books]})

    async def show(self, request: Request) -> Reply:
        """POST /api/show."""
        body = body_of(request.scope)
        async with self._service.shelf.use(body.get("model") or body.get("name")) as book:
            assert book.loaded is not None
            engine = book.loaded.model.engine
            tokenizer = engine.tokenizer
            kind = engine.info.architecture
            chats = tokenizer.chat_template is not None
            return Reply(
                {
                    "modelfile": "",
                    "parameters": "",
                    "template": tokenizer.chat_template or "",
                    "details": _details(book),
                    "model_info": {
                        "general.architecture": kind,
                        "general.parameter_count": engine.info.parameters,
                        f"{kind}.context_length": engine.n_ctx,
                    },
                    "capabilities": ["completion", *(["tools"] if chats else [])],
                }
            )

    async def version(self, _request: Request) -> Reply:
        """GET /api/version."""
        return Reply({"version": version("slmq")})

    async def _answer(
        self, request: Request, given: Mapping[str, Any], url: str, body: Any, shape: Any
    ) -> Reply | Stream:
        ignored = ["keep_alive"] if "keep_alive" in given else []
        ignored += [f"options.{n}" for n in given.get("options", ()) if n in NO_OPTIONS]
        began = time.perf_counter()

        async def events(talk: Talk) -> AsyncIterator[bytes]:
            try:
                async for heard in hear_all(talk):
                    if heard is None:
                        continue
                    if heard.text or heard.reasoning or heard.calls:
                        said = shape(heard.text, heard.reasoning, heard.calls)
                        yield line({**_head(talk), **said, "done": False})
                    if heard.result is not None:
                        last = {**_head(talk), **shape("", "", []), **_end(heard.result, began)}
                        yield line(last)
            except Exception as error:
                yield line(fault_body("/api/", error))

        def whole(talk: Talk, results: list[GenerationResult]) -> dict[str, Any]:
            (result,) = results
            said = shape(result.text, result.reasoning, result.tool_calls)
            return {**_head(talk), **said, **_end(result, began)}

        stream = flag(given, "stream", default=True)
        return await exchange(
            self._service, request, url, body, stream=stream, whole=whole, events=events,
            ignored=ignored, kind=LINES,
        )  # fmt: skip

    def _common(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What both endpoints take, in OpenAI's words."""
        options = given.get("options") or {}
        if not isinstance(options, dict):
            raise RequestError("options: expected an object", "options")
        options = only(options, (*OPTIONS, *NO_OPTIONS, "num_ctx"), "options.")
        body = {OPTIONS[name]: value for name, value in options.items() if name in OPTIONS}
        if "model" in given:
            body["model"] = given["model"]
        if isinstance(body.get("max_tokens"), int) and body["max_tokens"] < 0:
            del body["max_tokens"]  # as long as it goes
        self._check_context(given.get("model"), options.get("num_ctx"))
        if "think" in given:
            body["thinking"] = given["think"] not in (False, "none")
        shape = given.get("format")
        if shape == "json":
            body["response_format"] = {"type": "json_object"}
        elif isinstance(shape, dict):
            body["response_format"] = {"type": "json_schema", "json_schema": {"schema": shape}}
        elif shape not in (None, ""):
            raise RequestError("format: expected 'json' or a JSON schema", "format")
        return body

    def _check_context(self, name: Any, wanted: Any) -> None:
        """A context that a client counts on must be there: nothing is cut off to fit."""
        book = self._service.shelf.find(name)
        if book.loaded is None or not isinstance(wanted, int):
            return
        n_ctx = book.loaded.model.n_ctx
        if wanted > n_ctx:
            raise RequestError(
                f"options.num_ctx: the context of {book.name!r} holds {n_ctx}, got {wanted}; "
                "slmq serve --n-ctx sets it",
                "options.num_ctx",
            )


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message in OpenAI's words."""
    given = only(
        message,
        ("role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id"),
        "messages.",
    )
    if given.pop("images", None):
        raise RequestError("messages.images: the model reads text only", "messages")
    if "thinking" in given:
        given["reasoning_content"] = given.pop("thinking")
    if "tool_name" in given:
        given["name"] = given.pop("tool_name")
    return given


def _said(text: str, reasoning: str, calls: Any) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reasoning:
        message["thinking"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return {"message": message}


def _text(text: str, reasoning: str, _calls: Any) -> dict[str, Any]:
    return {"response": text, **({"thinking": reasoning} if reasoning else {})}


def _head(talk: Talk) -> dict[str, Any]:
    return {"model": talk.book.name, "created_at": datetime.now(timezone.utc).isoformat()}


def _end(result: GenerationResult, began: float) -> dict[str, Any]:
    computed = result.prompt_tokens - result.cached_tokens
    later = max(result.generated_tokens - 1, 0)
    return {
        "done": True,
        "done_reason": "length" if result.finish_reason == "length" else "stop",
        "total_duration": _ns(time.perf_counter() - began),
        "load_duration": 0,
        "prompt_eval_count": result.prompt_tokens,
        "prompt_eval_duration": _ns(computed / result.prompt_tps if result.prompt_tps else 0),
        "eval_count": result.generated_tokens,
        "eval_duration": _ns(later / result.generation_tps if result.generation_tps else 0),
    }


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _entry(book: Book) -> dict[str, Any]:
    return {
        "name": book.name,
        "model": book.name,
        "modified_at": datetime.fromtimestamp(_modified(book), timezone.utc).isoformat(),
        "size": book.disk_bytes,
        "digest": "",
        "details": _details(book),
    }


def _modified(book: Book) -> float:
    try:
        return book.path.stat().st_mtime
    except OSError:
        return 0.0


def _details(book: Book) -> dict[str, Any]:
    kind = parameters = level = ""
    if book.loaded is not None:
        info = book.loaded.model.engine.info
        kind, parameters = info.architecture, f"{info.parameters / 1e6:.0f}M"
        level = max(info.formats, key=info.formats.__getitem__, default="")
    return {
        "parent_model": "",
        "format": "gguf" if book.path.suffix == ".gguf" else "folder",
        "family": kind,
        "families": [kind] if kind else [],
        "parameter_size": parameters,
        "quantization_level": level,
    }
