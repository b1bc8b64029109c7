"""Who uses the engine next: one answer at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from slmq.errors import Error


class Turn:
    """Lets one answer at a time use the engine.

    Another thread waits its turn. A thread that still has a stream open would wait for itself
    for ever, so it gets an error instead.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._closed = False

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Wait for the turn and have it within the block, which any thread may leave.

        Raises slmq.Error if this thread has a stream open, ValueError if the model is closed.
        """
        if self._mine():
            raise Error(
                "this thread has a stream of this model open; read it to its end or close() it "
                "before the next call"
            )
        with self._lock:
            self._owner = threading.get_ident()
            try:
                if self._closed:
                    raise ValueError("the model is closed")
                yield
            finally:
                self._owner = None

    @contextmanager
    def borrow(self) -> Iterator[None]:
        """For short work between steps: like `hold`, or within the turn that this thread has."""
        if self._mine():
            yield
        else:
            with self.hold():
                yield

    def touch(self) -> None:
        """The turn belongs to the thread that now reads the stream."""
        self._owner = threading.get_ident()

    def close(self) -> None:
        """Nobody may enter any more; called by the one who has the turn."""
        self._closed = True

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def _mine(self) -> bool:
        return self._lock.locked() and self._owner == threading.get_ident()
