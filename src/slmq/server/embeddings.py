"""Vectors and rankings by encoders: OpenAI's embeddings, and rerank as Cohere and Jina have it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from slmq.batch.requests import RequestError
from slmq.server.exchange import flag, ignored_header, only
from slmq.server.guard import body_of
from slmq.server.replies import Reply, until_gone

if TYPE_CHECKING:
    from starlette.requests import Request

    from slmq.embedding.encoder import Encoder
    from slmq.server.service import Service

__all__ = ["Embeddings"]

MOST_TEXTS = 2048  # as OpenAI


class Embeddings:
    """Endpoints.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._turn = asyncio.Lock()  # one at a time: the others need the threads of the pool

    async def create(self, request: Request) -> Reply:
        """POST /v1/embeddings."""
        known = ("model", "input", "encoding_format", "dimensions", "user", "prompt", "truncate")
        given = only(body_of(request.scope), known)
        texts = _texts(given.get("input"), "input")
        form = given.get("encoding_format", "float")
        if form not in ("float", "base64"):
            raise RequestError(
                f"encoding_format: expected 'float' or 'base64', got {form!r:.80}",
                "encoding_format",
            )
        work = partial(
            _embed,
            texts=texts,
            prompt=given.get("prompt"),
            dimensions=given.get("dimensions"),
            truncate=flag(given, "truncate", default=False),
            as_base64=form == "base64",
        )
        name, (data, tokens) = await self._run(request, given.get("model"), work)
        body = {"object": "list", "data": data, "model": name, "usage": _usage(tokens)}
        return Reply(body, 200, ignored_header([f for f in ("user",) if f in given]))

    async def rerank(self, request: Request) -> Reply:
        """POST /v1/rerank."""
        known = (
            *("model", "query", "documents", "top_n", "return_documents", "truncate"),
            "instruction",
        )
        given = only(body_of(request.scope), known)
        query = given.get("query")
        if not isinstance(query, str):
            raise RequestError(f"query: expected a text, got {query!r:.80}", "query")
        documents = _documents(given.get("documents"))
        top = given.get("top_n")
        if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
            raise RequestError(f"top_n: expected at least 1, got {top!r:.80}", "top_n")
        instruction = given.get("instruction")
        if instruction is not None and not isinstance(instruction, str):
            raise RequestError(
                f"instruction: expected a text, got {instruction!r:.80}", "instruction"
            )
        work = partial(
            _rerank,
            query=query,
            documents=documents,
            instruction=instruction,
            top_k=top,
            truncate=flag(given, "truncate", default=False),
        )
        name, (ranked, tokens) = await self._run(request, given.get("model"), work)
        shown = flag(given, "return_documents", default=False)
        results = [
            {"index": r.index, "relevance_score": r.score}
            | ({"document": {"text": r.text}} if shown else {})
            for r in ranked
        ]
        return Reply({"model": name, "results": results, "usage": _usage(tokens)})

    async def _run(
        self, request: Request, model: Any, work: Callable[[Encoder], Any]
    ) -> tuple[str, Any]:
        """The name of an encoder, and what it makes of a request."""
        self._service.require_open()
        shelf = self._service.shelf
        async with self._turn, shelf.used(shelf.find_encoder(model)) as book:
            assert book.loaded is not None
            running = self._service.run(work, book.loaded.encoder)
            return book.name, await until_gone(request.receive, running)


def _embed(
    encoder: Encoder, *, texts: Sequence[str], as_base64: bool, **options: Any
) -> tuple[list[dict[str, Any]], int]:
    vectors = encoder.embed(texts, **options)
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
            if as_base64
            else vector.tolist(),
        }
        for i, vector in enumerate(vectors)
    ]
    return data, _tokens(encoder, texts)


def _rerank(
    encoder: Encoder, *, query: str, documents: list[str], **options: Any
) -> tuple[Any, int]:
    ranked = encoder.rerank(query, documents, **options)
    return ranked, _tokens(encoder, [query, *documents])


def _tokens(encoder: Encoder, texts: Sequence[str]) -> int:
    """Tokens that were read of these texts."""
    encoded = (len(encoder.tokenizer.encode_parts(text)) for text in texts)
    return sum(min(count, encoder.max_length) for count in encoded)


def _texts(value: Any, where: str) -> list[str]:
    """One text or several."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not 1 <= len(texts) <= MOST_TEXTS:
        raise RequestError(f"{where}: expected a text or 1..{MOST_TEXTS} texts", where)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise RequestError(
                f"{where}[{i}]: expected a text, got {text!r:.80}; ids of tokens are those of "
                f"another tokenizer (LangChain: check_embedding_ctx_length=False)",
                where,
            )
    return texts


def _documents(value: Any) -> list[str]:
    """Texts, or objects with a text each."""
    if not isinstance(value, list):
        raise RequestError(f"documents: expected a list, got {value!r:.80}", "documents")
    return _texts([one.get("text") if isinstance(one, dict) else one for one in value], "documents")


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}
