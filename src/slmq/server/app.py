"""The addresses of the server, each with what answers there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.routing import Router

from slmq.server.about import About
from slmq.server.adapters import Adapters
from slmq.server.decisions import Decisions
from slmq.server.embeddings import Embeddings
from slmq.server.faults import RefusedError
from slmq.server.guard import Guard
from slmq.server.health import PATHS
from slmq.server.messages import Messages
from slmq.server.ollama import Ollama
from slmq.server.openai import OpenAI
from slmq.server.responses import Responses

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from slmq.server.files import Files
    from slmq.server.service import Service

__all__ = ["build_app"]


def build_app(service: Service, files: Files) -> Guard:
    """The application that a server runs.

    Parameters
    ----------
    service : Service
    files : Files

    Returns
    -------
    Guard
        An ASGI application.
    """
    openai, about, adapters = OpenAI(service), About(service), Adapters(service)
    decisions, embeddings = Decisions(service), Embeddings(service)
    messages, responses, ollama = Messages(service), Responses(service), Ollama(service)
    router = _Routes(redirect_slashes=False)
    post, get = ["POST"], ["GET"]
    for path, endpoint, methods in (
        # Some clients of OpenAI's and of llama.cpp's leave the version out.
        ("/chat/completions", openai.chat, post),
        ("/chat/completions/input_tokens", openai.count, post),
        ("/completions", openai.completions, post),
        ("/rerank", embeddings.rerank, post),
        ("/responses", responses.create, post),
        ("/models", about.models, get),
        ("/v1/chat/completions", openai.chat, post),
        ("/v1/chat/completions/input_tokens", openai.count, post),
        ("/v1/completions", openai.completions, post),
        ("/v1/files", files.upload, post),
        ("/v1/files", files.files, get),
        ("/v1/files/{id}", files.file, get),
        ("/v1/files/{id}", files.delete, ["DELETE"]),
        ("/v1/files/{id}/content", files.content, get),
        ("/v1/batches", files.create, post),
        ("/v1/batches", files.batches, get),
        ("/v1/batches/{id}", files.batch, get),
        ("/v1/batches/{id}/cancel", files.cancel, post),
        ("/v1/responses", responses.create, post),
        ("/v1/responses/input_tokens", responses.count, post),
        ("/v1/embeddings", embeddings.create, post),
        ("/v1/rerank", embeddings.rerank, post),
        ("/v1/decisions", decisions.create, post),
        ("/v1/systemone", decisions.system_one, post),
        ("/v1/messages", messages.create, post),
        ("/v1/messages/count_tokens", messages.count, post),
        ("/api/chat", ollama.chat, post),
        ("/api/generate", ollama.generate, post),
        ("/api/tags", ollama.tags, get),
        ("/api/ps", ollama.loaded, get),
        ("/api/show", ollama.show, post),
        ("/api/version", ollama.version, get),
        ("/", about.root, get),
        ("/v1/receipts/{id}", about.receipt, get),
        ("/v1/models", about.models, get),
        ("/v1/models/{name:path}", about.model, get),
        ("/v1/load_lora_adapter", adapters.load, post),
        ("/v1/unload_lora_adapter", adapters.unload, post),
        *((path, about.healthy, get) for path in PATHS),
        ("/metrics", about.metrics, get),
        ("/version", about.version, get),
        ("/tokenize", about.tokenize, post),
        ("/detokenize", about.detokenize, post),
        ("/apply-template", about.apply_template, post),
    ):
        router.add_route(path, endpoint, methods)
    if service.routing is not None:
        router.add_route("/v1/route", service.routing.dry_run, post)
    return Guard(router, service.limits)


class _Routes(Router):  # type: ignore[misc,unused-ignore]
    """Says in JSON what is not there."""

    async def not_found(self, scope: Scope, _receive: Receive, _send: Send) -> None:
        raise RefusedError(404, f"there is nothing at {scope['path']!r:.200}", code="not_found")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # lets starlette raise for a method that a path lacks
        try:
            await super().__call__(scope, receive, send)
        except HTTPException as error:
            message = f"{scope['method']} is not what {scope['path']!r:.200} takes"
            raise RefusedError(error.status_code, message, headers=error.headers) from None
