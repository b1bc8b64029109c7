"""Who comes in: connections are accepted by a thread that answers /health and the like itself.

The event loop answers them too, but there they stand behind everybody: 150 requests that come at
once take it 150 ms, and each step of 100 streams 15 ms. A probe that waits so long takes the server
for dead. So this thread looks at the first bytes of each connection: a plain request for the health
of the server is answered with what the loop has found last, and how long ago that may be is part of
it; all other connections go on to the loop, untouched.
"""

from __future__ import annotations

import errno
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING

from slmq.server.faults import RefusedError, fault_body, status_of
from slmq.server.health import PATHS
from slmq.server.replies import as_json

if TYPE_CHECKING:
    from slmq.server.guard import Guard
    from slmq.server.health import Health

__all__ = ["Door"]

SILENT_S = 10.0  # without a beat of the loop, which waits for nobody
PATIENCE_S = 1.0  # for the first bytes; the loop minds those who take longer
REST_S = 0.05  # when there are no descriptors left
MOST_HEAD = 4096
AT_ONCE = 64  # connections that are let in before others are looked at
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
PROBE = re.compile(
    rb"(GET|HEAD) ("
    + b"|".join(re.escape(path.encode()) for path in PATHS)
    + rb") HTTP/1\.[01]\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n)+)\r\n"
)
# What makes a request more than a probe: a page that asks, a body, another protocol.
NOT_PLAIN = (
    b"content-length", b"expect", b"origin", b"sec-fetch-site", b"transfer-encoding", b"upgrade",
)  # fmt: skip


class Door:
    """A thread that accepts connections, until it is closed.

    Parameters
    ----------
    listeners : sequence of socket
        Which listen already; they stay the caller's.
    health : Health
    guard : Guard
        Knows the names of the server.
    admit : callable
        Called, from the thread, with every connection that is not answered here.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        health: Health,
        guard: Guard,
        admit: Callable[[socket.socket], object],
    ) -> None:
        self._health = health
        self._guard = guard
        self._admit = admit
        self._answers: dict[bytes, bytes] = {}
        self._beat_s = 0.0
        self._closed = False
        self._waiting: dict[socket.socket, float] = {}  # those of whom nothing came, and until when
        self._selector = selectors.DefaultSelector()
        self._inside, self._outside = socket.socketpair()
        self._selector.register(self._inside, selectors.EVENT_READ)
        for listener in listeners:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, self._let_in)
        self._renew()
        self._thread = threading.Thread(target=self._run, name="slmq-door", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Look how the server is; called by the event loop, again and again."""
        if not self._thread.is_alive():  # better no server than one that is deaf
            raise RuntimeError("the thread that lets clients in has ended")
        self._renew()

    def close(self) -> None:
        """Let nobody in any more, and wait for the thread; harmless when repeated."""
        if not self._closed:
            self._closed = True
            self._outside.send(b"\0")
            self._thread.join()
            for client in self._waiting:
                client.close()
            for end in (self._inside, self._outside, self._selector):
                end.close()

    def _renew(self) -> None:
        self._answers = {path.encode(): self._answer(path) for path in PATHS}
        self._beat_s = time.monotonic()

    def _answer(self, path: str) -> bytes:
        try:
            return _response(200, self._health.check(path))
        except Exception as error:  # whatever it is, the server goes on and says so
            status, headers = status_of(error)
            return _response(status, fault_body(path, error), headers)

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closed:
            first = next(iter(self._waiting.values()), None)
            late_s = None if first is None else max(0.0, first - time.monotonic())
            for key, _ in self._selector.select(late_s):
                if key.data is not None:
                    key.data(key.fileobj)
            now_s = time.monotonic()
            for client in [c for c, until_s in self._waiting.items() if until_s <= now_s]:
                self._forget(client)
                self._admit(client)

    def _let_in(self, listener: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in EXHAUSTED:
                    time.sleep(REST_S)
                return  # one that has left again
            client.setblocking(False)
            if not self._look(client):
                self._selector.register(client, selectors.EVENT_READ, self._look_again)
                self._waiting[client] = time.monotonic() + PATIENCE_S

    def _forget(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        del self._waiting[client]

    def _look_again(self, client: socket.socket) -> None:
        self._forget(client)
        if not self._look(client):
            self._admit(client)

    def _look(self, client: socket.socket) -> bool:
        """Answer a connection or hand it on; False if nothing has come yet."""
        try:
            head = client.recv(MOST_HEAD, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            client.close()
            return True
        answer = self._answer_to(head)
        if answer is None:
            self._admit(client)
            return True
        with client, suppress(OSError):  # it may have left
            client.recv(len(head))
            client.send(answer)
            client.shutdown(socket.SHUT_WR)
        return True

    def _answer_to(self, head: bytes) -> bytes | None:
        """The response to a whole request for health that is nothing else, else None."""
        found = PROBE.fullmatch(head)
        if found is None:
            return None
        method, path, lines = found.groups()
        pairs = [line.partition(b":") for line in lines.splitlines()]
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        if len(headers) < len(pairs) or not headers.keys().isdisjoint(NOT_PLAIN):
            return None
        host = headers.get(b"host")
        if host is None or not self._guard.knows(host.decode("latin-1")):
            return None
        silent_s = time.monotonic() - self._beat_s
        answer = self._answers[path]
        if silent_s > SILENT_S:
            error = RefusedError(503, f"the event loop has not moved for {silent_s:.0f} s")
            answer = _response(503, fault_body(path.decode(), error))
        return answer if method == b"GET" else answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def _response(status: int, body: object, more: dict[str, str] | None = None) -> bytes:
    data = as_json(body)
    headers = {
        "date": formatdate(usegmt=True),
        "content-type": "application/json",
        "content-length": str(len(data)),
        "connection": "close",
        **(more or {}),
    }
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data
