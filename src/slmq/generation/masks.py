"""What answers under a constraint may say next is found out while a run computes their logits.

A token that was drawn tells the mask of the place after it, whose logits the next run computes. So
a thread that holds no lock computes masks beside the run, one after the other; what it has not done
by the end of the run is waited for.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread

from slmq.generation.constraints import Matcher

__all__ = ["Masks"]

Asked = SimpleQueue[tuple[list[Matcher], SimpleQueue[None]] | None]


class Masks:
    """The thread that computes masks. It lives from the first one until `rest`."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._asked = Asked()
        weakref.finalize(self, self._asked.put, None).atexit = False

    @contextmanager
    def computing(self, matchers: Iterable[Matcher | None]) -> Iterator[None]:
        """Within the block, the masks that are due are computed; None has no mask."""
        due = [matcher for matcher in matchers if matcher is not None and matcher.due]
        if not due or not self._begun():
            yield
            return
        done = SimpleQueue[None]()
        self._asked.put((due, done))
        try:
            yield
        finally:
            done.get()

    def rest(self) -> None:
        """Let the thread end; the next mask begins another one."""
        if self._thread is not None:
            self._asked.put(None)
            self._thread = None

    def _begun(self) -> bool:
        """Whether there is a thread; where none can be begun, masks wait until they are asked."""
        if self._thread is None:
            thread = Thread(target=_compute, args=(self._asked,), name="slmq-masks", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
        return True


def _compute(asked: Asked) -> None:
    while (work := asked.get()) is not None:
        matchers, done = work
        for matcher in matchers:
            matcher.prepare()
        done.put(None)
        del work, matchers, matcher, done  # who waits for more holds nothing
