"""Connections: uvicorn's, with an end for clients that are too slow, and for the server itself."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from slmq.server.door import Door
from slmq.server.faults import RefusedError, fault_body
from slmq.server.replies import as_json

if TYPE_CHECKING:
    import socket

    from slmq.server.guard import Guard
    from slmq.server.health import Health
    from slmq.server.limits import Limits

__all__ = ["Wire", "wire_for"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
KEEP_ALIVE_S = 30
TICKS = 5  # ten a second, between two looks how the server is
LAST_S = 5.0  # for answers that were ended to be sent


class Wire(uvicorn.Server):  # type: ignore[misc,unused-ignore]
    """A server that drains at the first signal, and ends at the second.

    Parameters
    ----------
    config : uvicorn.Config
    guard : Guard
        The application.
    health : Health
    drain_s : float
        How long running answers may go on.
    on_drain : callable
        Called when the first signal comes.
    on_end : callable
        Called when the time to drain is over.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        guard: Guard,
        health: Health,
        drain_s: float,
        on_drain: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self.should_exit = self.force_exit = False
        self._guard = guard
        self._health = health
        self._door: Door | None = None
        self._arriving: set[asyncio.Task[None]] = set()
        self._drain_s = drain_s
        self._on_drain = on_drain
        self._on_end = on_end

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals within the block; whoever got one ends in peace, with exit code 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Let clients in."""
        loop = asyncio.get_running_loop()

        def admit(client: socket.socket) -> None:
            loop.call_soon_threadsafe(self._admit, client)

        self._door = Door(sockets or [], self._health, self._guard, admit)
        await super().startup(sockets=[])

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if self._door is not None and counter % TICKS == 0:
            self._door.beat()
        end: bool = await super().on_tick(counter)
        return end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new, and wait for what is running."""
        self._on_drain()
        if self._door is not None:
            self._door.close()
        await asyncio.sleep(0)  # for those whom the door has let in
        await asyncio.gather(*self._arriving)
        timer = asyncio.get_running_loop().call_later(self._drain_s, self._on_end)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()
            if self.force_exit:
                self._on_end()

    def _admit(self, client: socket.socket) -> None:
        task = asyncio.ensure_future(self._connect(client))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    async def _connect(self, client: socket.socket) -> None:
        config = self.config
        make = partial(
            config.http_protocol_class,
            config=config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        try:
            await asyncio.get_running_loop().connect_accepted_socket(make, client)
        except OSError:  # it has left
            client.close()


def wire_for(
    guard: Guard,
    limits: Limits,
    health: Health,
    *,
    on_drain: Callable[[], None],
    on_end: Callable[[], None],
) -> Wire:
    """A server that runs an application."""

    class Connection(Patient):
        head_s, write_s = limits.head_s, limits.write_s

    config = uvicorn.Config(
        guard,
        http=Connection,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(limits.drain_s + LAST_S),
        limit_concurrency=limits.connections,
    )
    return Wire(
        config,
        guard=guard,
        health=health,
        drain_s=limits.drain_s,
        on_drain=on_drain,
        on_end=on_end,
    )


class Patient(H11Protocol):  # type: ignore[misc,unused-ignore]
    """A connection whose client has so long to ask, and so long to read."""

    head_s: float
    write_s: float

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        self._heads, self._writes = _Timer(), _Timer()
        super().connection_made(transport)
        self._heads.start(self.loop, self.head_s, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has left."""
        super().connection_lost(exc)
        self.cycle = None  # it knows this: in a circle, both would stay, and the body that came
        self._heads.stop()
        self._writes.stop()

    def data_received(self, data: bytes) -> None:
        """Something has come: part of a head, or of a body, whose time the application minds."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._heads.stop()
        elif not self._heads.running:
            self._heads.start(self.loop, self.head_s, self._give_up)

    def pause_writing(self) -> None:
        """More is to be written than the client has read."""
        super().pause_writing()
        self._writes.start(self.loop, self.write_s, self._give_up)

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        self._writes.stop()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing has come for a while."""
        if self.transport.get_write_buffer_size():
            self._give_up()
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        body = as_json(fault_body("/", RefusedError(400, msg)))
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()

    def _give_up(self) -> None:
        self.transport.abort()


class _Timer:
    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        return self._handle is not None

    def start(self, loop: Any, seconds: float, function: Callable[[], None]) -> None:
        self.stop()
        self._handle = loop.call_later(seconds, function)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
