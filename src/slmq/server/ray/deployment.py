"""An application for Ray Serve: a door that reads requests, and copies of the server behind it.

A request goes to the copy that its conversation has always gone to, which still has the keys and
values of what was said before. Each copy is the ASGI application of `slmq serve`; it would give the
same bytes as any other.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import RequestRouter

import slmq.hub as hub
from slmq.engine.options import LoadOptions
from slmq.generation.loading import open_model
from slmq.server.app import build_app
from slmq.server.faults import RefusedError, fault_body
from slmq.server.files import Files
from slmq.server.guard import read_body
from slmq.server.limits import Limits
from slmq.server.replies import GoneError, Reply, until_gone
from slmq.server.requestlog import RequestLog
from slmq.server.service import POOL, Service
from slmq.server.shelf import Book, Loaded, Shelf
from slmq.settings import from_keywords

if TYPE_CHECKING:
    from ray.serve.request_router import PendingRequest, RunningReplica

__all__ = ["build_application"]

# What a copy keeps to itself, so that another would not find it.
KEPT = ("/v1/files", "/v1/batches", "/v1/receipts")
PASSED = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers")
BUSY = 64  # requests at a copy before another one helps out
Message = dict[str, Any]


def build_application(
    models: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    num_replicas: int = 1,
    num_cpus: int = 1,
    engine_kwargs: Mapping[str, Any] | None = None,
    sampling_params: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
) -> serve.Application:
    """`slmq serve` on a cluster of Ray's; ``serve.run`` runs it.

    Parameters
    ----------
    models : str, path, or several
        As `slmq.load` takes them; each node needs them, or a way to fetch them.
    num_replicas : int
        Copies of the server: one for each NUMA node is best.
    num_cpus : int
        Threads of each copy.
    engine_kwargs : mapping, optional
        Options of `slmq.load`.
    sampling_params : mapping, optional
        Sampling parameters of requests that do not set them.
    limits : Limits, optional
        Keys, names and origins, as the options of `slmq serve`.

    Returns
    -------
    ray.serve.Application

    Examples
    --------
    >>> from ray import serve  # doctest: +SKIP
    >>> from slmq.server.ray import build_application  # doctest: +SKIP
    >>> serve.run(build_application("smollm2-135m-instruct", num_replicas=4))  # doctest: +SKIP
    """
    names = [models] if isinstance(models, str | os.PathLike) else list(models)
    options = {"n_threads": num_cpus, **(engine_kwargs or {})}
    from_keywords(LoadOptions, options)
    limits = limits or Limits()
    copies = serve.deployment(
        _Copy,
        name="slmq",
        num_replicas=num_replicas,
        max_ongoing_requests=BUSY,
        ray_actor_options={"num_cpus": num_cpus},
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
    ).bind(names, options, dict(sampling_params or {}), limits)
    door = serve.deployment(
        serve.ingress()(_Door),
        name="slmq-door",
        max_ongoing_requests=limits.connections,
        ray_actor_options={"num_cpus": 0},
    )
    return door.bind(copies, limits)


class PrefixRouter(RequestRouter):  # type: ignore[misc,unused-ignore]
    """Sends what begins alike to the same copy; to the next one if that has its hands full.

    Each copy is given a number by the beginning of the request and its own name, and the greatest
    wins: when a copy goes or comes, the others keep their conversations.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The copies in the order in which they are asked."""
        beginning = ""
        if pending_request is not None and pending_request.args:
            beginning = str(pending_request.args[0])
            pending_request.routing_context.should_backoff = True
        ranked = sorted(
            candidate_replicas,
            key=lambda replica: _digest(f"{beginning} {replica.replica_id.unique_id}"),
            reverse=True,
        )
        return [[replica] for replica in ranked]


class _Door:
    """Reads requests, and hands out what a copy answers."""

    def __init__(self, copies: Any, limits: Limits) -> None:
        self._copies = copies.options(method_name="answer", stream=True)
        self._limits = limits

    def __serve_build_asgi_app__(self) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await self._answer(scope, receive, send)

        return app  # uvicorn takes a bound method for an application of ASGI 2

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await _live(receive, send)
        try:
            if scope["path"].startswith(KEPT):
                raise RefusedError(501, "files, batches and receipts are those of a single server")
            body = await read_body(receive, self._limits.body_bytes, self._limits.body_s)
        except RefusedError as error:
            reply = Reply(fault_body(scope["path"], error), error.status, error.headers)
            return await reply(scope, receive, send)
        except GoneError:
            return None
        head = {name: scope[name] for name in PASSED if name in scope}
        with suppress(GoneError):
            await until_gone(receive, self._hand_out(head, body, send))
        return None

    async def _hand_out(self, head: Message, body: bytes, send: Any) -> None:
        messages = self._copies.remote(beginning_of(body), head, body)
        try:
            async for message in messages:
                await send(message)
        except asyncio.CancelledError:
            messages.cancel()
            raise


class _Copy:
    """A server: models, and the application that asks them."""

    async def __init__(  # type: ignore[misc]
        self,
        models: Sequence[str | os.PathLike[str]],
        options: Mapping[str, Any],
        sampling: Mapping[str, Any],
        limits: Limits,
    ) -> None:
        self._pool = ThreadPoolExecutor(POOL, "slmq-server")
        self._folder = TemporaryDirectory(prefix="slmq-", ignore_cleanup_errors=True)
        checked = from_keywords(LoadOptions, options)

        def book(model: str | os.PathLike[str]) -> Book:
            found = hub.resolve(model)

            def load() -> Loaded:
                opened = open_model(found, checked)
                return Loaded(opened, {**opened.suggested, **sampling}, dict(options))

            return Book(found.name, load, found.path, 0)

        shelf = Shelf([book(model) for model in models], pool=self._pool)
        self._service = Service(shelf, limits, self._pool, RequestLog(None))
        files = Files(self._service, Path(self._folder.name))
        self._app = build_app(self._service, files)
        async with shelf.use(None):
            pass  # Ray sends requests only once the first model is there

    async def answer(self, _beginning: str, head: Message, body: bytes) -> AsyncIterator[Message]:
        """What the application sends; it is told that the client has left when nobody reads on."""
        said: asyncio.Queue[Any] = asyncio.Queue(1)  # messages, and None at the end
        gone = asyncio.Event()
        given = False

        async def receive() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await self._app({**head, "asgi": {"version": "3.0"}}, receive, said.put)
            finally:
                await said.put(None)

        task = asyncio.ensure_future(run())
        try:
            while (message := await said.get()) is not None:
                yield message
        finally:
            gone.set()
            if not task.done():
                task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _live(receive: Any, send: Any) -> None:
    """Ray asks whether the application has begun, and has ended."""
    for asked in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{asked}.complete"})


def beginning_of(body: bytes) -> str:
    """What a conversation begins with, up to the first question: the same in each of its turns."""
    try:
        found = json.loads(body)
    except ValueError:
        return ""
    if not isinstance(found, dict):
        return ""
    said = found.get("messages", found.get("input", found.get("prompt")))
    if isinstance(said, list):
        asked = (i for i, one in enumerate(said, 1) if _is_question(one))
        said = said[: next(asked, 1)]
    text = json.dumps([found.get("model"), found.get("system"), found.get("tools"), said])
    return hashlib.sha256(text.encode()).hexdigest()


def _is_question(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "user"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
