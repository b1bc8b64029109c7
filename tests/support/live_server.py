"""A server in a thread of the test, at a free port of this machine; and plain requests to it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slmq.embedding.encoder import Encoder
from slmq.embedding.routing.router import Router
from slmq.generation.model import Model
from slmq.server.adapters import adapter_book
from slmq.server.app import build_app
from slmq.server.files import Files
from slmq.server.limits import Limits
from slmq.server.requestlog import RequestLog
from slmq.server.routing import Routing
from slmq.server.run import BACKLOG, open_socket
from slmq.server.service import Service
from slmq.server.shelf import Book, EncoderBook, Loaded, LoadedEncoder, Shelf
from slmq.server.wire import Wire, wire_for

LONGEST_S = 60.0


@dataclass
class Answered:
    """A response."""

    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.data)

    @property
    def events(self) -> list[Any]:
        """What the ``data:`` lines hold, but for the last one, which must say that it is."""
        found = [x[6:] for x in self.data.decode("ascii").split("\n") if x.startswith("data: ")]
        assert found.pop() == "[DONE]"
        return [json.loads(text) for text in found]

    @property
    def named_events(self) -> list[tuple[str, Any]]:
        """Names and contents of events that have names."""
        blocks = [block for block in self.data.decode("ascii").split("\n\n") if block]
        pairs = [block.split("\n") for block in blocks if not block.startswith(":")]
        return [(a.removeprefix("event: "), json.loads(b.removeprefix("data: "))) for a, b in pairs]


@dataclass
class LiveServer:
    """A server that runs.

    Attributes
    ----------
    port : int
    service : Service
    wire : Wire
    models : list of Model
        Those that were given, by the order of their names.
    """

    port: int
    service: Service
    wire: Wire
    models: list[Model] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def model(self) -> Model:
        return self.models[0]

    def ask(
        self,
        path: str,
        body: Any = None,
        *,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answered:
        """Send a request and read the whole response; bytes go as they are."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=LONGEST_S)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            sent = {"content-type": "application/json"} if data is not None else {}
            method = method or ("GET" if data is None else "POST")
            connection.request(method, path, data, {**sent, **(headers or {})})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answered(response.status, found, response.read())
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        """A plain connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=LONGEST_S)

    def send(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> socket.socket:
        """A connection on which a request was sent and nothing read."""
        data = json.dumps(body).encode()
        found = self.connect()
        sent = {
            "host": "localhost",
            "content-type": "application/json",
            "content-length": str(len(data)),
            **(headers or {}),
        }
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
        found.sendall("\r\n".join([*lines, "", ""]).encode() + data)
        return found

    @property
    def idle(self) -> bool:
        """Whether no model has anything to do, and no request is open."""
        stats = [model.stats() for model in self.models]
        return not any(s.running + s.waiting for s in stats) and not self.service.open_talks


def wait_until(condition: Callable[[], bool], seconds: float = LONGEST_S) -> None:
    """Wait for something that another thread brings about."""
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s, "it does not come about"
        time.sleep(0.005)


def in_line(model: Model) -> tuple[int, int]:
    """Answers that run and that wait, as the scheduler counts them: it decides who is refused."""
    stats = model.stats()
    return stats.running, stats.waiting


@contextmanager
def live_server(
    models: Mapping[str, Model],
    limits: Limits | None = None,
    suggested: Mapping[str, Any] | None = None,
    log_path: Path | None = None,
    aliases: Mapping[str, str] | None = None,
    encoders: Mapping[str, Encoder] | None = None,
    router: Router | None = None,
    adapters: Mapping[str, Path] | None = None,
) -> Iterator[LiveServer]:
    """A server of loaded models, and of adapters of the first; the models stay the caller's."""
    limits = limits or Limits()
    log = RequestLog(log_path)
    with ThreadPoolExecutor(2) as pool, TemporaryDirectory() as folder, closing(log):
        books = [
            Book(name, _given(model, suggested), Path(name), 0, Loaded(model, suggested or {}))
            for name, model in models.items()
        ]
        books += [adapter_book(n, path, books[0]) for n, path in (adapters or {}).items()]
        listed = [
            EncoderBook(name, partial(LoadedEncoder, encoder), Path(name), 0)
            for name, encoder in (encoders or {}).items()
        ]
        found, _ = open_socket("127.0.0.1", 0)
        found.listen(BACKLOG)
        port = found.getsockname()[1]
        ready: list[LiveServer] = []
        began = threading.Event()

        async def run() -> None:
            shelf = Shelf(books, pool=pool, aliases=aliases, encoders=listed)
            service = Service(shelf, limits, pool, log)
            if router is not None:
                service.routing = Routing(service, router)
            files = Files(service, Path(folder))
            app = build_app(service, files)
            wire = wire_for(
                app, limits, service.health, on_drain=lambda: None, on_end=service.end_answers
            )
            ready.append(LiveServer(port, service, wire, list(models.values())))
            began.set()
            await wire.serve([found])
            files.close()

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        assert began.wait(LONGEST_S)
        try:
            wait_until(lambda: ready[0].wire.started)
            yield ready[0]
        finally:
            ready[0].wire.should_exit = True
            ready[0].wire.force_exit = True
            thread.join(LONGEST_S)
            assert not thread.is_alive()


def _given(model: Model, suggested: Mapping[str, Any] | None) -> Callable[[], Loaded]:
    return lambda: Loaded(model, suggested or {})
