"""What stands before every endpoint: who may ask, how much, and for how long.

A browser sends requests to this machine for any page that asks it to. So the name by which the
server is called must be its own (a stranger's domain may point here), pages of other origins are
refused, and bodies must say that they are JSON, which no page can send across origins unasked.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from slmq.batch.lines import read_json
from slmq.server.faults import RefusedError, fault_body, status_of
from slmq.server.health import PATHS
from slmq.server.limits import Limits
from slmq.server.replies import GoneError, Reply

__all__ = ["Guard", "body_of", "read_body"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("slmq.server")

OPEN = {"/", "/version", *PATHS}  # without a key
UPLOAD = "/v1/files"
WITH_BODY = ("POST", "PUT", "PATCH")
ALLOWED_HEADERS = (
    "authorization, content-type, x-api-key, anthropic-version, anthropic-beta, idempotency-key, "
    "x-slmq-deadline-ms"
)


class Guard:
    """An ASGI application before another.

    Parameters
    ----------
    app : callable
    limits : Limits
    """

    def __init__(self, app: App, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._names = {"localhost", socket.gethostname().lower(), *map(str.lower, limits.hosts)}
        self._keys = [key.encode() for key in limits.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began_s = time.perf_counter()
        request_id = f"req_{os.urandom(12).hex()}"
        scope["slmq.id"] = request_id
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        started = False
        origin: str | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                took_ms = round((time.perf_counter() - began_s) * 1e3)
                more = {"x-request-id": request_id, "openai-processing-ms": str(took_ms)}
                if origin is not None:
                    more |= {"access-control-allow-origin": origin, "vary": "origin"}
                pairs = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in more.items()]
                message["headers"] = [*message.get("headers", ()), *pairs]
            await send(message)

        try:
            self._check_host(headers)
            origin = self._checked_origin(headers)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                return await _preflight(scope, receive, send_with_id)
            scope["slmq.key"] = self._checked_key(scope["path"], headers)
            if scope["method"] in WITH_BODY:
                scope["slmq.body"] = await self._read(scope, receive, headers)
            await self._app(scope, receive, send_with_id)
        except GoneError:
            return None
        except Exception as error:
            status, more = status_of(error)
            if status == 500:
                log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            if started:
                raise  # half a response is on its way: the connection ends
            body = fault_body(scope["path"], error)
            await Reply(body, status, more)(scope, receive, send_with_id)
        return None

    def knows(self, host: str) -> bool:
        """Whether a Host header is a name or an address of this server."""
        name = _host_name(host)
        known = not name or name in self._names or "*" in self._names
        return known or name.endswith(".localhost") or _is_address(name)

    def _check_host(self, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if not self.knows(host):
            name = _host_name(host)
            raise RefusedError(
                403,
                f"Host: expected an address, localhost or a name of this server, got {name!r:.80}; "
                f"slmq serve --allow-host {name:.80} makes it one",
            )

    def _checked_origin(self, headers: dict[str, str]) -> str | None:
        """The page of another origin that may read the answer, if such a one asks."""
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site", "none")
        if origin is None:
            if site in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
                raise RefusedError(403, "a page of another site cannot use this server")
            return None
        if origin.partition("://")[2].lower() == headers.get("host", "").lower():
            return None
        if origin in self._limits.origins or "*" in self._limits.origins:
            return origin
        raise RefusedError(
            403,
            f"Origin: the page {origin!r:.80} cannot use this server; slmq serve --allow-origin "
            f"{origin:.80} lets it",
        )

    def _checked_key(self, path: str, headers: dict[str, str]) -> int | None:
        """Which key was given; None where there is one at most."""
        if not self._keys or path in OPEN:
            return None
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        offered = given.encode("utf-8", "surrogateescape")
        # All are compared, so that the time tells nothing.
        same = [hmac.compare_digest(offered, key) for key in self._keys]
        if not sum(same):
            raise RefusedError(
                401,
                "expected the API key in the header Authorization: Bearer KEY or X-Api-Key",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return same.index(True) if len(same) > 1 else None

    async def _read(self, scope: Scope, receive: Receive, headers: dict[str, str]) -> bytes:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        upload = scope["path"] == UPLOAD
        length = headers.get("content-length", "")
        if not length and "transfer-encoding" not in headers:
            return b""
        expected = "multipart/form-data" if upload else "application/json"
        most = self._limits.upload_bytes if upload else self._limits.body_bytes
        if length.isdigit() and int(length) > most:
            raise _too_long(most)
        if kind != expected and length != "0":
            raise RefusedError(415, f"Content-Type: expected {expected}, got {kind!r:.80}")
        return await read_body(receive, most, self._limits.body_s)


async def read_body(receive: Receive, most: int, within_s: float) -> bytes:
    """The body of a request.

    Raises
    ------
    RefusedError
        If it is longer, or slower.
    GoneError
    """
    try:
        return await asyncio.wait_for(_received(receive, most), within_s)
    except asyncio.TimeoutError:
        raise RefusedError(
            408,
            f"the body was not complete after {within_s:g} s",
            headers={"connection": "close"},
        ) from None


def body_of(scope: Scope) -> dict[str, Any]:
    """The JSON object that a request brings; an empty one if it has no body.

    Raises
    ------
    ValueError
    """
    data: bytes = scope.get("slmq.body", b"")
    if not data:
        return {}
    found = read_json(data)
    if not isinstance(found, dict):
        raise ValueError(f"body: expected a JSON object, got {type(found).__name__}")
    return found


async def _received(receive: Receive, most: int) -> bytes:
    parts, length = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        if length > most:
            raise _too_long(most)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_long(most: int) -> RefusedError:
    return RefusedError(
        413, f"the body may have {most} bytes at most", headers={"connection": "close"}
    )


async def _preflight(scope: Scope, receive: Receive, send: Send) -> None:
    allowed = {
        "access-control-allow-methods": "GET, POST, DELETE",
        "access-control-allow-headers": ALLOWED_HEADERS,
        "access-control-max-age": "600",
    }
    await Reply(None, 204, allowed)(scope, receive, send)


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
