"""Requests that are the same share one computation: a client that asks again joins its first try.

Answers are functions of the request and its seed, so two that run at once would compute the same.
What the first has read is kept for those that join, as long as that is little; each reads at its
own pace, and the computation ends when the last one has left.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from slmq.generation.ledger import Ledger
    from slmq.generation.results import StreamChunk

__all__ = ["Begun", "Reading", "Twins"]

KEPT = 256  # chunks of an answer that one who joins later can still read


class Reading(Protocol):
    """An answer as it is made: a `TokenStream`, or one that several read."""

    @property
    def ledger(self) -> Ledger:
        """What it has cost."""

    @property
    def at_rest(self) -> bool:
        """Whether it costs nothing any more."""

    @property
    def expected_s(self) -> float:
        """Seconds to the first token, as expected in the beginning."""

    def poll(self) -> StreamChunk | None:
        """The next chunk, if it is there; StopIteration after the last, or what went wrong."""

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Call this whenever there may be something."""

    def close(self) -> None:
        """Read no more."""


class Begun(Protocol):
    """What a request has begun."""

    @property
    def streams(self) -> Sequence[Reading]:
        """Its answers."""


B = TypeVar("B", bound=Begun)


class Twins(Generic[B]):
    """Requests that are under way. All of it belongs to one event loop."""

    def __init__(self) -> None:
        self._open: dict[Hashable, _Entry[B]] = {}
        self.joined = 0

    async def begin(
        self, key: Hashable, start: Callable[[], Awaitable[B]]
    ) -> tuple[B, list[Reading]]:
        """Begin a request, or join one of the same key; None has no twin.

        Returns
        -------
        Begun
        list of Reading
            Its answers, for this reader.
        """
        entry = self._open.get(key) if key is not None else None
        if entry is None or not entry.joinable:
            on_empty = None if key is None else partial(self._forget, key)
            entry = _Entry(start(), on_empty)
            if key is not None:
                self._open[key] = entry
        else:
            self.joined += 1
        return await entry.join()

    def _forget(self, key: Hashable, entry: _Entry[B]) -> None:
        if self._open.get(key) is entry:
            del self._open[key]


class _Entry(Generic[B]):
    """A request with all that read its answers."""

    def __init__(
        self, start: Awaitable[B], on_empty: Callable[[_Entry[B]], None] | None = None
    ) -> None:
        self._on_empty = on_empty  # None if it is not shared
        self._answers: list[_Answer] | None = None
        self._waiting = 0
        # A task of its own: the first client may leave before the second has what it asked for.
        self._task: asyncio.Future[B] | None = asyncio.ensure_future(start)
        self._task.add_done_callback(lambda _: self._tidy())

    @property
    def joinable(self) -> bool:
        """Whether one more can read all from the beginning."""
        if self._task is None:
            return False
        if not self._task.done():
            return True
        if self._task.cancelled() or self._task.exception() is not None:
            return False
        return self._answers is not None and all(answer.whole for answer in self._answers)

    async def join(self) -> tuple[B, list[Reading]]:
        """Wait until it has begun."""
        assert self._task is not None  # nobody joins what is over
        self._waiting += 1
        try:
            begun = await asyncio.shield(self._task)
            if self._on_empty is None:
                self._answers = []
                return begun, list(begun.streams)
            if self._answers is None:
                self._answers = [_Answer(stream, self._tidy) for stream in begun.streams]
            return begun, [answer.reader() for answer in self._answers]
        finally:
            self._waiting -= 1
            self._tidy()

    def _tidy(self) -> None:
        """Once nobody is left, end what still runs."""
        task = self._task
        if task is None or not task.done() or self._waiting:
            return
        failed = task.cancelled() or task.exception() is not None
        if not failed and self._answers is None:  # everybody left before it had begun
            for stream in task.result().streams:
                stream.close()
        if failed or not any(answer.readers for answer in self._answers or ()):
            if self._on_empty is not None:
                self._on_empty(self)
            # Answers know this, and the traceback of a failure its callers: in a circle, all of
            # them would stay until a collection.
            self._task, self._answers = None, []


class _Answer:
    """One answer with several readers."""

    def __init__(self, stream: Reading, on_leave: Callable[[], None]) -> None:
        self.stream = stream
        self.readers: tuple[_Reader, ...] = ()
        self._chunks: deque[StreamChunk] = deque()
        self._first = 0  # number of the first chunk that is kept
        self._over = False
        self._fault: Exception | None = None
        self._on_leave = on_leave
        stream.listen(self._ring)

    @property
    def whole(self) -> bool:
        """Whether all of it can still be read, and it is not over."""
        return self._first == 0 and not self._over and self._fault is None

    def reader(self) -> _Reader:
        """One more."""
        found = _Reader(self)
        self.readers = (*self.readers, found)
        return found

    def take(self, at: int) -> StreamChunk | None:
        """Chunk number `at`, if it is there."""
        if at == self._first + len(self._chunks):
            if self._over:
                raise StopIteration
            if self._fault is not None:
                raise self._fault
            try:
                chunk = self.stream.poll()
            except StopIteration:  # each reader comes to it
                self._over = True
                raise
            except Exception as error:
                self._fault = error
                raise
            if chunk is None:
                return None
            self._chunks.append(chunk)
        found = self._chunks[at - self._first]
        while len(self._chunks) > KEPT and min(r.at for r in self.readers) > self._first:
            self._chunks.popleft()
            self._first += 1
        return found

    def leave(self, reader: _Reader) -> None:
        """One reads no more; with the last one it ends."""
        self.readers = tuple(one for one in self.readers if one is not reader)
        if not self.readers:
            self._over, self._fault = True, None
            self.stream.listen(None)
            self.stream.close()
        self._on_leave()

    def _ring(self) -> None:
        for reader in self.readers:  # from any thread: the tuple is never changed, only replaced
            reader.ring()


class _Reader:
    """A `Reading` of one of several readers."""

    def __init__(self, answer: _Answer) -> None:
        self.at = 0
        self.pays = False  # what it cost is put down to the last who leaves
        self._answer = answer
        self._listener: Callable[[], None] | None = None
        self._left = False

    @property
    def ledger(self) -> Ledger:
        return self._answer.stream.ledger

    @property
    def at_rest(self) -> bool:
        return self._answer.stream.at_rest

    @property
    def expected_s(self) -> float:
        return self._answer.stream.expected_s

    def ring(self) -> None:
        """There may be something."""
        if self._listener is not None:
            self._listener()

    def poll(self) -> StreamChunk | None:
        chunk = self._answer.take(self.at)
        self.at += chunk is not None
        return chunk

    def listen(self, listener: Callable[[], None] | None) -> None:
        self._listener = listener
        self.ring()

    def close(self) -> None:
        if not self._left:
            self._left = True
            self.pays = self._answer.readers == (self,)
            self._answer.leave(self)
