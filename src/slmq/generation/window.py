"""Any number of answers, of which only so many are under way at a time.

Whoever takes the results sets the pace: a request is submitted when another's result was taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING

from slmq.errors import BusyError
from slmq.generation.results import GenerationResult
from slmq.generation.stream import TokenStream

if TYPE_CHECKING:
    from slmq.generation.scheduler import Scheduler

__all__ = ["IN_FLIGHT", "Outcome", "Start", "in_flight"]

IN_FLIGHT = 64
LONGEST_NAP_S = 1.0

Start = Callable[[], TokenStream]  # submits a request whose answer is wanted whole
Outcome = GenerationResult | Exception


def in_flight(
    scheduler: Scheduler, starts: Iterable[Start], *, ordered: bool, most: int = IN_FLIGHT
) -> Generator[tuple[int, Outcome], None, None]:
    """Submit requests and yield their numbers and results, in order or as they finish.

    An exception takes the place of a result, also one that `start` raises. While the queue of the
    scheduler is full, this waits. Closing the iterator or dropping it cancels what is under way.

    Parameters
    ----------
    scheduler : Scheduler
    starts : iterable of callable
        Taken one by one, as there is room.
    ordered : bool
    most : int
        Requests that are under way, finished ones that wait for their turn included.
    """
    window = _Window(scheduler, enumerate(starts), ordered=ordered, most=most)
    try:
        while window.fill():
            yield window.take()
    finally:
        # A dropped stream cancels without a lock: a collector may have come here from inside one.
        window.open.clear()


class _Window:
    def __init__(
        self,
        scheduler: Scheduler,
        starts: Iterator[tuple[int, Start]],
        *,
        ordered: bool,
        most: int,
    ) -> None:
        self.open: dict[int, TokenStream | Exception] = {}  # by age
        self._scheduler = scheduler
        self._starts = starts
        self._most = most
        self._refused: tuple[int, Start] | None = None
        self._ready: SimpleQueue[int] | None = None if ordered else SimpleQueue()

    def fill(self) -> bool:
        """Submit what there is room for; False when all is done."""
        while len(self.open) < self._most:
            entry = self._refused or next(self._starts, None)
            if entry is None:
                break
            self._refused = None
            try:
                self._submit(*entry)
            except BusyError as busy:
                if busy.retry_after_s is None:
                    raise
                self._refused = entry
                if self.open:
                    break
                time.sleep(min(busy.retry_after_s, LONGEST_NAP_S))
        return bool(self.open)

    def take(self) -> tuple[int, Outcome]:
        """The next result; waits for it."""
        index = next(iter(self.open)) if self._ready is None else self._finished(self._ready)
        found = self.open[index]
        if isinstance(found, TokenStream):
            try:
                outcome: Outcome = found.finish()
            except BusyError:
                raise  # this thread must not wait, whatever it waits for
            except Exception as error:
                outcome = error
        else:
            outcome = found
        del self.open[index]
        return index, outcome

    def _submit(self, index: int, start: Start) -> None:
        try:
            stream = start()
        except BusyError:
            raise
        except Exception as error:
            self.open[index] = error
            if self._ready is not None:
                self._ready.put(index)
            return
        self.open[index] = stream
        if self._ready is not None:
            stream.listen(partial(self._ready.put, index))

    def _finished(self, ready: SimpleQueue[int]) -> int:
        """The number of a request whose result is there; a listener may have told twice."""
        while True:
            if ready.empty() and not self._scheduler.attend():
                continue
            index = ready.get()
            if index in self.open:
                return index
