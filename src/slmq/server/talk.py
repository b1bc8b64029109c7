"""The answers to one request, side by side, as they are made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slmq.errors import ClosedError
from slmq.generation.aio import Bell
from slmq.generation.results import GenerationResult, StreamChunk, TokenLogprob

if TYPE_CHECKING:
    from slmq.server.service import Submitted
    from slmq.server.shelf import Book
    from slmq.server.twins import Reading
    from slmq.tokenizer import Tokenizer
    from slmq.tools.calls import ToolCall

__all__ = ["Heard", "Talk"]


@dataclass
class Heard:
    """What was made of one answer since it was last asked for.

    Attributes
    ----------
    index : int
        Of the answer.
    text, reasoning : str
    calls : list of ToolCall
        Those that are whole now.
    called : int
        How many there were before them.
    logprobs : list of TokenLogprob
        Of the tokens that make all this.
    prompt_tokens : int
    result : GenerationResult or None
        With the last piece.
    """

    index: int
    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    called: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_tokens: int = 0
    result: GenerationResult | None = None

    @property
    def speaks(self) -> bool:
        """Whether there is anything to tell a client."""
        return bool(self.text or self.reasoning or self.calls) or self.result is not None


class Talk:
    """A request that was submitted.

    Parameters
    ----------
    book : Book
        The model, which this holds until it is closed.
    submitted : Submitted
    sources : sequence of Reading
        Its answers, for this reader.
    scope : mapping
        Of the HTTP request.
    ping_s : float
        After how long without news `hear` returns.
    on_close : callable
        Called once, with this.

    Attributes
    ----------
    results : list
        Of the answers that are complete; None for others.
    created : int
        When it began, in seconds since 1970.
    request_id, path : str
        Of the HTTP request.
    key : int or None
        Number of the API key, if there are several.
    """

    def __init__(
        self,
        book: Book,
        submitted: Submitted,
        sources: Sequence[Reading],
        *,
        scope: Mapping[str, Any],
        ping_s: float,
        on_close: Callable[[Talk], None],
    ) -> None:
        assert book.loaded is not None
        self.book = book
        self.submitted = submitted
        self.asked = submitted.asked
        self.sources = list(sources)
        self.tokenizer: Tokenizer = book.loaded.model.tokenizer
        self.request_id: str = scope["slmq.id"]
        self.path: str = scope["path"]
        self.key: int | None = scope.get("slmq.key")
        self.id = self.request_id.removeprefix("req_")
        self.created = int(time.time())
        self.results: list[GenerationResult | None] = [None] * len(self.sources)
        self._began_s = time.perf_counter()
        self._failed = False
        self._ping_s = ping_s
        self._on_close = on_close
        self._closed = False
        self._ending: Exception | None = None
        self._held = [Heard(index) for index in range(len(self.sources))]
        self._bell = Bell(asyncio.get_running_loop())
        for source in self.sources:
            source.listen(self._bell.ring)

    @property
    def complete(self) -> bool:
        """Whether all has been heard."""
        return None not in self.results

    @property
    def outcome(self) -> str:
        """How it went, once it is over."""
        return "finished" if self.complete else "failed" if self._failed else "cancelled"

    @property
    def took_s(self) -> float:
        """Seconds since it was begun."""
        return time.perf_counter() - self._began_s

    @property
    def pays(self) -> bool:
        """Whether the cost of its answers is put down to it, once it is closed."""
        return all(getattr(source, "pays", True) for source in self.sources)

    @property
    def at_rest(self) -> bool:
        """Whether its answers cost nothing any more."""
        return all(source.at_rest for source in self.sources)

    @property
    def headers(self) -> dict[str, str]:
        """What is known before the answer: the model's name, the seed, when it should begin."""
        found = {
            "x-slmq-fingerprint": self.submitted.fingerprint,
            "x-slmq-expected-ms": f"{self.submitted.expected_s * 1e3:.0f}",
        }
        if self.submitted.seed is not None:
            found["x-slmq-seed"] = str(self.submitted.seed)
        return found

    async def hear(self) -> list[Heard]:
        """Wait for news; none of them if nothing came for a while.

        Raises
        ------
        Error
            What ended an answer; the others are cancelled.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._ping_s
        # No wait_for: in Python before 3.12 it forgets that it was cancelled if there is news.
        timer = loop.call_at(end_s, self._bell.news.set)
        try:
            while True:
                self._bell.news.clear()
                if self._ending is not None:
                    raise self._ending
                news = [heard for i in range(len(self.sources)) if (heard := self._listen(i))]
                if news or loop.time() >= end_s:
                    return news
                await self._bell.news.wait()
        finally:
            timer.cancel()

    async def finish(self) -> list[GenerationResult]:
        """Wait for all answers."""
        while not self.complete:
            await self.hear()
        return [result for result in self.results if result is not None]

    def end(self, error: Exception) -> None:
        """Let whoever listens raise this; for a server that ends."""
        self._ending = error
        self._bell.news.set()

    def close(self) -> None:
        """Cancel what is not complete, and let go of the model; harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        for source in self.sources:
            source.close()
        self._on_close(self)

    def _listen(self, index: int) -> Heard | None:
        """What an answer has to say; text that is held back keeps its log-probabilities back."""
        if self.results[index] is not None:
            return None
        stream, heard = self.sources[index], self._held[index]
        while heard.result is None:
            try:
                chunk = stream.poll()
            except StopIteration:
                raise ClosedError("the answer was cancelled: its model was closed") from None
            except Exception:
                self._failed = True
                raise
            if chunk is None:
                break
            self._add(heard, chunk)
        if not heard.speaks:
            return None
        if heard.result is not None and heard.result.finish_reason == "cancelled":
            raise ClosedError("the answer was cancelled: its model was closed")
        self.results[index] = heard.result
        self._held[index] = Heard(index, called=heard.called + len(heard.calls))
        return heard

    def _add(self, heard: Heard, chunk: StreamChunk) -> None:
        heard.text += chunk.text
        heard.reasoning += chunk.reasoning
        heard.calls += chunk.tool_calls
        heard.prompt_tokens = chunk.prompt_tokens
        heard.result = chunk.result
        if chunk.logprobs is not None:
            heard.logprobs.append(chunk.logprobs)
