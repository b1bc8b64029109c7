"""What a caller holds of an answer: its chunks, as they are made."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from slmq.errors import BusyError, ClosedError
from slmq.generation.job import PromptRead
from slmq.generation.results import GenerationResult, StreamChunk

if TYPE_CHECKING:
    from typing_extensions import Self

    from slmq.generation.answer import Progress
    from slmq.generation.job import Job
    from slmq.generation.ledger import Ledger
    from slmq.generation.scheduler import Scheduler

__all__ = ["TokenStream"]

OnFinish = Callable[[GenerationResult], None]


class TokenStream:
    """Iterator over the chunks of an answer; made by `Model.stream`.

    The answer is made while you read, at most a few chunks ahead. Any number of streams may be open
    at once: they are computed together. `close` cancels this one, also while its prompt is read;
    leaving a ``with`` block closes, and so does dropping the stream. One thread reads at a time.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        job: Job,
        progress: Progress | None = None,
        on_finish: OnFinish | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._job = job
        self._progress = progress
        self._on_finish = on_finish
        self._result: GenerationResult | None = None
        self._spoken = 0
        self._ended = False
        self._inside = threading.Lock()  # held by the thread that reads

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamChunk:
        self._enter()
        try:
            chunk = self._take(wait=True)
        finally:
            self._inside.release()
        if chunk is None:
            raise StopIteration
        return chunk

    def poll(self) -> StreamChunk | None:
        """The next chunk if there is one already, else None; errors as when iterating.

        Raises StopIteration after the last chunk.
        """
        self._enter()
        try:
            return self._take(wait=False)
        finally:
            self._inside.release()

    def finish(self) -> GenerationResult:
        """Read to the end and return the whole answer; a failure cancels it.

        Raises
        ------
        ClosedError
            If it was cancelled: the stream or the model was closed.
        """
        try:
            for _ in self:
                pass
        except BaseException:
            self.close()
            raise
        return self.complete()

    def complete(self) -> GenerationResult:
        """The whole answer of a stream that was read to its end; errors as in `finish`."""
        if self._result is None or self._result.finish_reason == "cancelled":
            raise ClosedError("the answer was cancelled: its stream or its model was closed")
        return self._result

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Call a function, from any thread, whenever `poll` may have something new."""
        self._scheduler.listen(self._job, listener)

    def close(self) -> None:
        """Cancel the answer; harmless at any other time."""
        self._scheduler.cancel(self._job)
        if self._inside.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._inside.release()

    @property
    def result(self) -> GenerationResult | None:
        """The whole answer once its last chunk was read or it was closed; None before."""
        return self._result

    @property
    def expected_s(self) -> float:
        """Seconds until the first token, as expected when it was submitted."""
        return self._job.expected_s

    @property
    def ledger(self) -> Ledger:
        """What the answer has cost so far."""
        return self._job.answer.ledger

    @property
    def at_rest(self) -> bool:
        """Whether it costs nothing any more; a run that is under way may outlast its reader."""
        return self._job.over and self._job.sequence is None

    @property
    def finished(self) -> bool:
        """Whether the answer is complete, cancelled or failed."""
        return self._ended

    def __repr__(self) -> str:
        state = "open" if self._result is None else self._result.finish_reason
        return f"<slmq.TokenStream, {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A half-made stream, after an error in the constructor, has no job to cancel.
        if not getattr(self, "_ended", True):
            self._scheduler.drop(self._job)

    def _enter(self) -> None:
        if self._inside.acquire(blocking=False):
            return
        if self._job.cancelled:
            raise StopIteration
        raise BusyError("another thread is reading this stream; read it from one thread at a time")

    def _take(self, *, wait: bool) -> StreamChunk | None:
        """The next chunk; None if there is none yet."""
        if self._ended:
            raise StopIteration
        while isinstance(event := self._scheduler.next_event(self._job, wait=wait), PromptRead):
            self._report(event)
        if self._job.cancelled:
            # Closed by another thread, or by its own progress: the answer ends where it was read.
            self._end()
            return self._job.answer.cancelled_chunk(self._result)
        if isinstance(event, BaseException):
            self._ended = True
            try:
                raise event
            finally:
                del event  # its traceback knows this frame: in a circle, both would stay
        if event is None and wait:
            self._ended = True
            raise StopIteration
        if event is not None:
            self._spoken += 1
            if event.result is not None:
                self._conclude(event.result)
        return event

    def _report(self, read: PromptRead) -> None:
        assert self._progress is not None  # only then does a job report
        try:
            self._progress(read.done, read.total)
        except BaseException:
            self._scheduler.cancel(self._job)
            self._end()
            raise

    def _end(self) -> None:
        """The answer is over for its reader, who holds `_inside`."""
        if not self._ended:
            self._conclude(self._job.answer.result("cancelled", self._spoken))

    def _conclude(self, result: GenerationResult) -> None:
        self._ended = True
        self._result = result
        if self._on_finish is not None:
            self._on_finish(result)
