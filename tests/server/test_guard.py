"""Who may use the server, and for how long: pages of others, keys, limits; over real sockets."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from live_server import LONGEST_S, LiveServer, live_server, wait_until

from slmq.generation.model import Model
from slmq.server.limits import Limits

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
SHORT: dict[str, Any] = {"messages": HI, "max_tokens": 2}
STRICT = Limits(
    keys=("secret-1", "secret-2"),
    hosts=("models.example.org",),
    origins=("https://chat.example.org",),
    body_bytes=10_000,
    head_s=0.5,
    body_s=0.5,
    write_s=0.5,
)
KEY = {"authorization": "Bearer secret-2"}


@pytest.fixture(scope="module")
def strict(model: Model) -> Iterator[LiveServer]:
    with live_server({"tiny": model}, STRICT) as running:
        yield running


def read_to_end(client: socket.socket) -> bytes:
    """All until the server closes."""
    client.settimeout(LONGEST_S)
    seen = b""
    try:
        while data := client.recv(65536):
            seen += data
    except ConnectionResetError:
        pass
    return seen


@pytest.mark.parametrize(
    "host", ["evil.example:8080", "localhost.evil.example", "127.0.0.1.nip.io"]
)
def test_a_domain_that_points_here_cannot_use_the_server(server: LiveServer, host: str) -> None:
    """DNS rebinding: the page's own domain resolves to this machine, so all looks alike to it."""
    own = {"host": host, "origin": f"http://{host}"}
    for path, body in (("/v1/models", None), (CHAT, SHORT)):
        answered = server.ask(path, body, headers=own)
        assert answered.status == 403
        assert "--allow-host" in answered.body["error"]["message"]


@pytest.mark.parametrize(
    "host", ["localhost:1", "127.0.0.1", "[::1]:80", "chat.localhost", socket.gethostname()]
)
def test_its_own_names_are_known(server: LiveServer, host: str) -> None:
    assert server.ask("/v1/models", headers={"host": host}).status == 200


def test_a_page_of_another_origin_cannot_use_the_server(server: LiveServer) -> None:
    """What a browser sends for a page elsewhere: a form, a script, an image."""
    evil = {"origin": "https://evil.example"}
    simple = {"content-type": "text/plain"}
    assert server.ask(CHAT, SHORT, headers=evil).status == 403
    assert server.ask(CHAT, SHORT, headers={"origin": "null"}).status == 403
    assert server.ask(CHAT, SHORT, headers={**evil, **simple}).status == 403
    assert server.ask(CHAT, SHORT, headers=simple).status == 415
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert server.ask(CHAT, SHORT, headers=form).status == 415
    image = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert server.ask("/v1/models", headers=image).status == 403
    asks = {**evil, "access-control-request-method": "POST"}
    refused = server.ask(CHAT, method="OPTIONS", headers=asks)
    assert refused.status == 403
    assert "access-control-allow-origin" not in refused.headers
    assert server.model.stats().running == 0


def test_its_own_page_and_pages_that_are_allowed_can(strict: LiveServer) -> None:
    own = {"origin": f"http://127.0.0.1:{strict.port}", **KEY}
    assert strict.ask(CHAT, SHORT, headers=own).status == 200
    allowed = {"origin": "https://chat.example.org"}
    asks = {**allowed, "access-control-request-method": "POST"}
    preflight = strict.ask(CHAT, method="OPTIONS", headers=asks)
    assert preflight.status == 204
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    answered = strict.ask(CHAT, SHORT, headers={**allowed, **KEY})
    for found in (preflight, answered):
        assert found.headers["access-control-allow-origin"] == "https://chat.example.org"
        assert "access-control-allow-credentials" not in found.headers
    assert answered.status == 200
    assert strict.ask("/health", headers={"host": "Models.Example.org:443"}).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic secret-1"},
        {"authorization": "Bearer secret-1x"},
        {"x-api-key": "Bearer secret-1"},
    ],
)
def test_without_its_key_nothing_is_told(strict: LiveServer, headers: dict[str, str]) -> None:
    for path, body in ((CHAT, SHORT), ("/v1/models", None), ("/metrics", None), ("/nothing", None)):
        answered = strict.ask(path, body, headers=headers)
        assert answered.status == 401
        assert answered.body["error"]["code"] == "invalid_api_key"
    assert strict.ask("/health", headers=headers).status == 200


def test_either_key_opens_it_in_either_header(strict: LiveServer) -> None:
    for headers in (KEY, {"x-api-key": "secret-1"}, {"authorization": "bearer secret-1"}):
        assert strict.ask("/v1/models", headers=headers).status == 200


def test_long_bodies_are_refused_before_they_are_read(strict: LiveServer) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer secret-1\r\n"
    with strict.connect() as client:  # a gigabyte, of which nothing has come yet
        client.sendall(f"{head}content-type: application/json\r\n".encode())
        client.sendall(b"content-length: 1000000000\r\n\r\n")
        seen = read_to_end(client)
    assert seen.startswith(b"HTTP/1.1 413 ")
    assert b"10000 bytes" in seen
    with strict.connect() as client:  # of unknown length
        client.sendall(f"{head}content-type: application/json\r\n".encode())
        client.sendall(b"transfer-encoding: chunked\r\n\r\n")
        try:
            for _ in range(1000):
                client.sendall(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass
        else:
            assert read_to_end(client).startswith(b"HTTP/1.1 413 ")
    assert strict.ask("/health").status == 200


def test_slow_clients_are_let_go(strict: LiveServer) -> None:
    """A head that never ends, a body that never ends, and one that comes byte by byte."""
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer secret-1\r\n"
    typed = f"{head}content-type: application/json\r\ncontent-length: 100\r\n\r\n"
    with strict.connect() as silent, strict.connect() as headless, strict.connect() as bodiless:
        headless.sendall(head.encode())
        bodiless.sendall(typed.encode() + b"{")
        assert read_to_end(silent) == b""
        assert read_to_end(headless) == b""
        assert read_to_end(bodiless).startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: not strict.wire.server_state.connections)


def test_a_client_that_does_not_read_is_given_up(strict: LiveServer) -> None:
    body = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "stream": True, "n": 16,
            "logprobs": 20}  # fmt: skip
    data = json.dumps(body).encode()
    cancelled = strict.model.stats().cancelled
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(LONGEST_S)
        client.connect(("127.0.0.1", strict.port))
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: secret-1\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data) + data
        )
        wait_until(lambda: strict.service.open_talks == 1)
        wait_until(lambda: strict.idle)
    assert strict.model.stats().cancelled == cancelled + 16


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET /\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\x00\xff\xfe\r\n\r\n",
    ],
)
def test_what_is_no_http_is_400(strict: LiveServer, data: bytes) -> None:
    with strict.connect() as client:
        client.sendall(data)
        seen = read_to_end(client)
    assert seen.startswith(b"HTTP/1.1 400 ") or not seen
    assert strict.ask("/health").status == 200
