"""One answer at a time: the prompt cache, the queue before it, and the stream of its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmq.generation.answer import Answer

import threading
from inspect import GEN_CLOSED, getgeneratorstate
from types import TracebackType
from typing import TYPE_CHECKING

from slmq.errors import Error
from slmq.generation.results import GenerationResult, StreamChunk

if TYPE_CHECKING:
    from typing_extensions import Self


__all__ = [
    "TokenStream",
]


class TokenStream:
    """Iterator over the chunks of an answer that is made while you read.

    The model is busy from the first chunk until the stream ends or is closed: other threads wait.
    `close` cancels at once, or, while another thread is inside the stream, before its next token
    or prompt chunk. Leaving a ``with`` block closes, and so does dropping the stream.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._steps = answer.steps()
        self._inside = threading.Lock()  # held by the thread that runs the steps

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamChunk:
        if not self._inside.acquire(blocking=False):
            if self._answer.cancelled:
                raise StopIteration
            raise Error("another thread is reading this stream")
        try:
            if self._answer.running:
                self._answer.turn.touch()
            return next(self._steps)
        finally:
            self._inside.release()

    def close(self) -> None:
        """Cancel the answer, also while its prompt is read; harmless at any other time."""
        self._answer.cancelled = True
        if not self._inside.acquire(blocking=False):
            return  # whoever is inside sees `cancelled` at the next step
        try:
            self._steps.close()
            self._answer.conclude("cancelled")
        finally:
            self._inside.release()

    @property
    def result(self) -> GenerationResult | None:
        """The whole answer once the stream has ended or was closed; None before."""
        return self._answer.result

    @property
    def finished(self) -> bool:
        """Whether the answer is complete, cancelled or failed: the model is free again."""
        return self._answer.result is not None or getgeneratorstate(self._steps) == GEN_CLOSED

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
