"""The health of a server, told at its door: beside a busy loop too, and never better than it is."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from live_server import LONGEST_S, LiveServer, wait_until

from slmq.server import door
from slmq.server.health import PATHS

PROBE = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
LAST_PROBE = PROBE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")


def said(server: LiveServer, *parts: bytes) -> bytes:
    """All that the server says to these bytes, which come one after the other."""
    with server.connect() as client:
        for part in parts:
            client.sendall(part)
            time.sleep(0.05 if len(parts) > 1 else 0)
        found = b""
        while data := client.recv(1 << 16):
            found += data
    return found


@contextmanager
def busy_loop(server: LiveServer, seconds: float) -> Iterator[None]:
    """The event loop does something else meanwhile."""
    with server.connect():
        wait_until(lambda: bool(server.wire.server_state.connections))  # who says nothing goes on
        (connection, *_) = server.wire.server_state.connections
        loop: asyncio.AbstractEventLoop = connection.loop
    began, ended = threading.Event(), threading.Event()

    def hold() -> None:
        began.set()
        time.sleep(seconds)
        ended.set()

    loop.call_soon_threadsafe(hold)
    assert began.wait(LONGEST_S)
    yield
    assert ended.wait(LONGEST_S)


def test_probes_do_not_wait_for_the_loop(server: LiveServer) -> None:
    with busy_loop(server, 3.0):
        began_s = time.monotonic()
        for path in PATHS * 5:
            answered = server.ask(path)
            assert answered.status == 200
            assert answered.body == {"status": "ok"}
        assert time.monotonic() - began_s < 2.0


def test_a_loop_that_hangs_is_not_well(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with busy_loop(server, 2.0):
        monkeypatch.setattr(door, "SILENT_S", 0.8)
        time.sleep(1.0)
        answered = server.ask("/livez")
        assert answered.status == 503
        assert "event loop" in answered.body["error"]["message"]
        monkeypatch.undo()
    wait_until(lambda: server.ask("/livez").status == 200)


def test_a_server_that_takes_nothing_is_not_ready(server: LiveServer) -> None:
    server.service.draining = True
    try:
        wait_until(lambda: server.ask("/readyz").status == 503)
        assert server.ask("/health").headers["retry-after"] == "5"
        assert server.ask("/livez").status == 200
    finally:
        server.service.draining = False
    wait_until(lambda: server.ask("/readyz").status == 200)


@pytest.mark.parametrize(
    "parts",
    [
        (PROBE[:9], LAST_PROBE[9:]),
        (PROBE + LAST_PROBE,),
        (LAST_PROBE.replace(b"GET", b"HEAD"),),
        (PROBE.replace(b"1.1", b"1.0"),),
        (LAST_PROBE.replace(b"/health", b"/health?verbose=1"),),
        (LAST_PROBE.replace(b"\r\n\r\n", b"\r\ncontent-length: 2\r\n\r\n{}"),),
    ],
    ids=["pieces", "two at once", "head", "1.0", "query", "body"],
)
def test_the_loop_answers_the_same(server: LiveServer, parts: tuple[bytes, ...]) -> None:
    found = said(server, *parts)
    assert found.startswith(b"HTTP/1.1 200 ")
    head, _, body = found.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    assert b"\ndate: " in head
    if not parts[0].startswith(b"HEAD"):
        assert body.endswith(b'{"status":"ok"}')
    else:
        assert not body


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"host: evil.example.org", 403),
        (b"host: localhost\r\norigin: http://evil.example.org", 403),
        (b"host: localhost\r\nsec-fetch-site: cross-site", 403),
        (b"host: localhost\r\nhost: localhost", 400),
        (b"accept: */*", 400),
        (b"host : localhost", 400),
    ],
)
def test_probes_are_guarded(server: LiveServer, headers: bytes, status: int) -> None:
    found = said(server, b"GET /health HTTP/1.1\r\n" + headers + b"\r\nconnection: close\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 %d " % status)


def test_who_comes_and_goes_leaves_nothing(server: LiveServer) -> None:
    for _ in range(200):
        server.connect().close()
    silent = [server.connect() for _ in range(50)]
    wait_until(lambda: len(server.wire.server_state.connections) == 50)  # the loop minds them
    for client in silent:
        client.close()
    wait_until(lambda: not server.wire.server_state.connections)
    assert said(server, PROBE).startswith(b"HTTP/1.1 200 ")


def test_a_closed_door_lets_nobody_in(server: LiveServer) -> None:
    """Who is in, and has said nothing yet, is let go."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        admitted: list[socket.socket] = []
        guard = server.wire.config.app
        opened = door.Door([listener], server.service.health, guard, admitted.append)
        with socket.create_connection(listener.getsockname(), timeout=LONGEST_S) as client:
            time.sleep(0.1)
            opened.close()
            opened.close()
            assert client.recv(1) == b""
        assert not admitted


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_deaf_server_does_not_go_on(server: LiveServer) -> None:
    def admit(client: socket.socket) -> None:
        client.close()
        raise RuntimeError("a fault of ours")

    def deaf() -> bool:
        try:
            opened.beat()
        except RuntimeError:
            return True
        return False

    with socket.create_server(("127.0.0.1", 0)) as listener:
        opened = door.Door([listener], server.service.health, server.wire.config.app, admit)
        assert not deaf()
        with socket.create_connection(listener.getsockname(), timeout=LONGEST_S) as client:
            client.sendall(b"GET /")
            wait_until(deaf)
        opened.close()
