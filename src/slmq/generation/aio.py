"""Answers for coroutines: an event loop is woken when there is something, and no thread waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from slmq.generation.results import GenerationResult, StreamChunk
from slmq.generation.stream import TokenStream

if TYPE_CHECKING:
    from typing_extensions import Self

    from slmq.generation.scheduler import Scheduler

__all__ = ["AsyncTokenStream", "Bell", "finish"]


class AsyncTokenStream:
    """Asynchronous iterator over the chunks of an answer; made by `Model.astream`.

    Belongs to the event loop that runs when it is made. One task reads at a time.
    """

    def __init__(self, scheduler: Scheduler, stream: TokenStream) -> None:
        if not scheduler.drives:
            raise ValueError("a scheduler with drive=False cannot wake an event loop")
        self._stream = stream
        self._bell = Bell(asyncio.get_running_loop())
        stream.listen(self._bell.ring)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamChunk:
        try:
            while True:
                self._bell.news.clear()
                try:
                    chunk = self._stream.poll()
                except StopIteration:
                    raise StopAsyncIteration from None
                if chunk is not None:
                    return chunk
                await self._bell.news.wait()
        except asyncio.CancelledError:
            self.close()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the answer; harmless at any other time."""
        self._stream.close()

    async def aclose(self) -> None:
        """As `close`, for `contextlib.aclosing`."""
        self.close()

    @property
    def result(self) -> GenerationResult | None:
        """The whole answer once its last chunk was read or it was closed; None before."""
        return self._stream.result


async def finish(scheduler: Scheduler, start: Callable[[], TokenStream]) -> GenerationResult:
    """Submit a request and wait for its whole answer."""
    stream = start()
    async with AsyncTokenStream(scheduler, stream) as chunks:
        async for _ in chunks:
            pass
    return stream.complete()


class Bell:
    """Wakes a loop from any thread. It knows no stream: a dropped one must not live on in it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.news = asyncio.Event()
        self._loop = loop
        self._rung = False  # and not heard yet

    def ring(self) -> None:
        """There is something new."""
        if self._rung:
            return
        self._rung = True
        with suppress(RuntimeError):  # the loop is closed, and with it everybody who could read
            self._loop.call_soon_threadsafe(self._heard)

    def _heard(self) -> None:
        self._rung = False  # first: what comes from here on rings again
        self.news.set()
