"""What goes back over the wire: JSON in one piece, or a stream of events.

JSON is ASCII throughout: some clients cut lines at characters such as U+2028.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["GoneError", "Reply", "Stream", "as_json", "event", "line", "until_gone"]

T = TypeVar("T")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"


class GoneError(Exception):
    """The client has left."""


def as_json(value: Any) -> bytes:
    """A value as JSON in ASCII."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def event(value: Any, name: str | None = None) -> bytes:
    """A server-sent event."""
    head = b"" if name is None else b"event: " + name.encode("ascii") + b"\n"
    return head + b"data: " + as_json(value) + b"\n\n"


def line(value: Any) -> bytes:
    """A line of JSON."""
    return as_json(value) + b"\n"


class Reply:
    """A response in one piece.

    Parameters
    ----------
    body : bytes, str, or what JSON can hold
        None is no body at all.
    status : int
    headers : mapping of str to str, optional
    kind : str, optional
        Content type, if it is not JSON.
    """

    def __init__(
        self,
        body: Any,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        kind: str | None = None,
    ) -> None:
        if body is None:
            self.data = b""
        elif isinstance(body, bytes):
            self.data = body
        elif isinstance(body, str):
            self.data, kind = body.encode(), kind or "text/plain; charset=utf-8"
        else:
            self.data = as_json(body)
        self.status = status
        self.headers = {"content-type": kind or "application/json", **(headers or {})}

    def add_headers(self, headers: Mapping[str, str]) -> None:
        """Tell more."""
        self.headers |= headers

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Send it."""
        headers = {**self.headers, "content-length": str(len(self.data))}
        if self.status == 204:
            del headers["content-length"], headers["content-type"]
        await send(_start(self.status, headers))
        body = b"" if scope["method"] == "HEAD" else self.data
        await send({"type": "http.response.body", "body": body})


class Stream:
    """A response that is made while it is sent; it ends when the client leaves.

    Parameters
    ----------
    parts : async iterator of bytes
    close : callable
        Called at the end, also when nothing was read of `parts`.
    kind : str
        Content type.
    headers : mapping of str to str, optional
    """

    def __init__(
        self,
        parts: AsyncIterator[bytes],
        close: Callable[[], None],
        kind: str = "text/event-stream; charset=utf-8",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._parts = parts
        self._close = close
        self._headers = {
            "content-type": kind,
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            **(headers or {}),
        }

    def add_headers(self, headers: Mapping[str, str]) -> None:
        """Tell more."""
        self._headers |= headers

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await send(_start(200, self._headers))
            await until_gone(receive, self._write(send))
        finally:
            self._close()

    async def _write(self, send: Send) -> None:
        async for part in self._parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def until_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Wait for something as long as the client is there.

    Raises
    ------
    GoneError
        The client has left; `work` was cancelled.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise GoneError
    finally:
        for one in (task, watch):
            if not one.done():
                one.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await one
        del task, watch, one  # the traceback of a failure knows this frame, and the task both


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(status: int, headers: Mapping[str, str]) -> dict[str, Any]:
    pairs = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}
