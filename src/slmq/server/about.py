"""What the server tells of itself: models, health, counts, and what texts are as tokens."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from slmq.batch.requests import RequestError
from slmq.server.exchange import flag, only
from slmq.server.guard import body_of
from slmq.server.page import page
from slmq.server.replies import Reply
from slmq.server.routing import AUTO

if TYPE_CHECKING:
    from starlette.requests import Request

    from slmq.server.service import Service
    from slmq.server.shelf import Book, EncoderBook, Entry

__all__ = ["About", "describe"]


class About:
    """Endpoints.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._began = int(time.time())

    async def root(self, request: Request) -> Reply:
        """GET /: the chat page for browsers; for ollama's clients, a sign of life."""
        if "text/html" not in request.headers.get("accept", ""):
            return Reply("slmq is running; see /v1/models", headers={"vary": "accept"})
        text, headers = page()
        return Reply(text, headers={**headers, "vary": "accept"})

    async def models(self, _request: Request) -> Reply:
        """GET /v1/models."""
        shelf = self._service.shelf
        found = [describe(book, self._began) for book in shelf.books]
        found += [describe_encoder(book, self._began) for book in shelf.encoders]
        if self._service.routing is not None:
            auto = {"id": AUTO, "object": "model", "created": self._began, "owned_by": "slmq"}
            found.insert(0, auto)
        return Reply({"object": "list", "data": found})

    async def model(self, request: Request) -> Reply:
        """GET /v1/models/{name}."""
        shelf, name = self._service.shelf, request.path_params["name"]
        for encoder in shelf.encoders:
            if encoder.name == name:
                return Reply(describe_encoder(encoder, self._began))
        return Reply(describe(shelf.find(name), self._began))

    async def receipt(self, request: Request) -> Reply:
        """GET /v1/receipts/{id}: what was asked and answered, for `slmq verify`."""
        name, key = request.path_params["id"], request.scope.get("slmq.key")
        return Reply(self._service.receipts.find(name, key), kind="application/json")

    async def healthy(self, request: Request) -> Reply:
        """GET /livez, /readyz, /health: as the door answers them, on a connection that is kept."""
        return Reply(self._service.health.check(request.scope["path"]))

    async def metrics(self, _request: Request) -> Reply:
        """GET /metrics."""
        text = self._service.metrics.text(self._service)
        return Reply(text, kind="text/plain; version=0.0.4; charset=utf-8")

    async def version(self, _request: Request) -> Reply:
        """GET /version."""
        return Reply({"version": version("slmq")})

    async def tokenize(self, request: Request) -> Reply:
        """POST /tokenize: the tokens of a text."""
        body = body_of(request.scope)
        text = _required(body, "content", "prompt")
        special = _flag(body, "add_special", default=False)
        pieces = _flag(body, "with_pieces", default=False)
        async with self._service.shelf.use(body.get("model")) as book:
            assert book.loaded is not None
            model = book.loaded.model
            tokenizer = model.tokenizer
            ids = await self._service.run(lambda: tokenizer.encode(text, add_special=special))
            count = {"count": len(ids), "max_model_len": model.n_ctx}
            if not pieces:
                return Reply({"tokens": ids, **count})
            found = [{"id": i, "piece": _piece(tokenizer.token_bytes(i))} for i in ids]
            return Reply({"tokens": found, **count})

    async def detokenize(self, request: Request) -> Reply:
        """POST /detokenize: the text of tokens."""
        body = body_of(request.scope)
        ids = body.get("tokens")
        if not isinstance(ids, list):
            raise RequestError(f"tokens: expected a list of token ids, got {ids!r:.80}", "tokens")
        async with self._service.shelf.use(body.get("model")) as book:
            assert book.loaded is not None
            text = book.loaded.model.tokenizer.decode(ids, skip_special=False)
            return Reply({"content": text, "prompt": text})

    async def apply_template(self, request: Request) -> Reply:
        """POST /apply-template: the prompt that a chat becomes."""
        known = ("model", "messages", "tools", "add_generation_prompt", "chat_template_kwargs")
        given = only(body_of(request.scope), known)
        extra, tools = given.get("chat_template_kwargs", {}), given.get("tools")
        if not isinstance(extra, dict):
            raise RequestError(f"{known[-1]}: expected an object, got {extra!r:.80}", known[-1])
        if not isinstance(tools, list | None):
            raise RequestError(f"tools: expected a list, got {tools!r:.80}", "tools")
        if not isinstance(given.get("messages"), list):
            raise RequestError("messages: expected a list of messages", "messages")
        opened = flag(given, "add_generation_prompt", default=True)
        async with self._service.shelf.use(given.get("model")) as book:
            assert book.loaded is not None
            write = partial(
                book.loaded.model.tokenizer.render_chat,
                given["messages"],
                add_generation_prompt=opened,
                tools=tools or None,
                **extra,
            )
            return Reply({"prompt": await self._service.run(write)})


def describe(book: Book, created: int) -> dict[str, Any]:
    """A model, in the words of OpenAI, with what llama.cpp and vLLM tell beside."""
    found = _named(book, created)
    if book.base is not None:
        found["parent"] = book.base.name
    if book.loaded is not None:
        engine = book.loaded.model.engine
        found["max_model_len"] = engine.n_ctx
        found["meta"] = {
            "n_vocab": engine.n_vocab,
            "n_ctx": engine.n_ctx,
            "n_ctx_train": engine.info.n_ctx_train,
            "n_params": engine.info.parameters,
            "size": engine.info.weight_bytes,
        }
    return found


def describe_encoder(book: EncoderBook, created: int) -> dict[str, Any]:
    """An encoder, in the same words."""
    found = {**_named(book, created), "endpoints": ["/v1/embeddings", "/v1/rerank"]}
    if book.loaded is not None:
        encoder = book.loaded.encoder
        found["max_model_len"] = encoder.max_length
        found["meta"] = {"n_embd": encoder.dimensions, "size": encoder.weight_bytes}
    return found


def _named(book: Entry[Any], created: int) -> dict[str, Any]:
    return {
        "id": book.name,
        "object": "model",
        "created": created,
        "owned_by": "slmq",
        "loaded": book.loaded is not None,
    }


def _required(body: Mapping[str, Any], *names: str) -> str:
    """The text under the first of several names that there is."""
    for name in names:
        if name in body:
            if isinstance(body[name], str):
                return str(body[name])
            raise RequestError(f"{name}: expected a string, got {body[name]!r:.80}", name)
    raise RequestError(f"{names[0]}: is missing", names[0])


def _flag(body: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(f"{name}: expected true or false, got {value!r:.80}", name)
    return value


def _piece(spelled: bytes) -> str | list[int]:
    """Bytes as text where they are text."""
    try:
        return spelled.decode("utf-8")
    except UnicodeDecodeError:
        return list(spelled)
