"""What all endpoints share: the models, the limits, the counts, and how a request is begun."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from slmq.batch.requests import Asked, read_request
from slmq.errors import ClosedError
from slmq.generation.params import SamplingParams
from slmq.generation.prompts import prompt_ids, speech_of
from slmq.server.faults import RefusedError
from slmq.server.limits import Limits
from slmq.server.metrics import Metrics
from slmq.server.talk import Talk

if TYPE_CHECKING:
    from slmq.generation.stream import TokenStream
    from slmq.server.shelf import Book, Loaded, Shelf

__all__ = ["Service"]

POOL = 2  # threads that render, tokenize and load


class Service:
    """A server without its endpoints.

    Parameters
    ----------
    shelf : Shelf
    limits : Limits
    pool : ThreadPoolExecutor

    Attributes
    ----------
    draining : bool
        Whether it is about to end and takes no more requests.
    """

    def __init__(self, shelf: Shelf, limits: Limits, pool: ThreadPoolExecutor) -> None:
        self.shelf = shelf
        self.limits = limits
        self.pool = pool
        self.metrics = Metrics()
        self.draining = False
        self._talks: set[Talk] = set()

    async def begin(
        self, url: str, body: Mapping[str, Any], scope: Mapping[str, Any], *, whole: bool
    ) -> Talk:
        """Check a request in OpenAI's words and submit it.

        Parameters
        ----------
        url : str
            Of the endpoint of OpenAI's whose body it is.
        body : mapping
        scope : mapping
            Of the HTTP request.
        whole : bool
            Whether only complete answers are of interest.
        """
        self.require_open()
        book = self.shelf.find(body.get("model"))
        loaded = await self.shelf.take(book)
        try:
            # Schemas, templates and tokenizers may take long.
            asked, streams = await self.run(partial(self._submit, loaded, url, body, whole=whole))
        except BaseException:
            self.shelf.give_back(book)
            raise
        talk = Talk(
            book,
            asked,
            streams,
            request_id=scope["slmq.id"],
            ping_s=self.limits.ping_s,
            on_close=self._ended,
        )
        self._talks.add(talk)
        return talk

    async def prompt_tokens(self, url: str, body: Mapping[str, Any]) -> int:
        """How many tokens the prompt of a request has."""

        def count(loaded: Loaded) -> int:
            asked = read_request(url, body, None, loaded.suggested)
            wish = SamplingParams.from_kwargs(asked.params).wish
            engine, (prompt, *_) = loaded.model.engine, asked.prompts
            speech = speech_of(engine, prompt, wish, asked.template)
            return len(prompt_ids(engine, prompt if speech is None else speech))

        async with self.shelf.use(body.get("model")) as book:
            assert book.loaded is not None
            found: int = await self.run(count, book.loaded)
            return found

    def require_open(self) -> None:
        """Raise RefusedError if the server is about to end."""
        if self.draining:
            raise RefusedError(503, "the server is about to end", headers={"retry-after": "5"})

    async def run(self, function: Any, *args: Any) -> Any:
        """Call something slow in a thread, so that the others are heard meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *args)

    def end_answers(self) -> None:
        """End what is still being answered, with an error that clients can tell from an end."""
        for talk in list(self._talks):
            talk.end(ClosedError("the server is about to end; the answer is not complete"))

    @property
    def open_talks(self) -> int:
        """Requests that are being answered."""
        return len(self._talks)

    def _submit(
        self, loaded: Loaded, url: str, body: Mapping[str, Any], *, whole: bool
    ) -> tuple[Asked, list[TokenStream]]:
        """Read a request, and queue every answer that it asks for, or none."""
        asked = read_request(url, body, None, loaded.suggested)
        streams: list[TokenStream] = []
        try:
            for prompt, params in asked.answers():
                streams.append(
                    loaded.model.submit(
                        prompt,
                        params,
                        chat_template_kwargs=asked.template,
                        deadline_s=self.limits.answer_s,
                        whole=whole,
                    )
                )
        except BaseException:
            for stream in streams:
                stream.close()
            raise
        return asked, streams

    def _ended(self, talk: Talk) -> None:
        self._talks.discard(talk)
        self.metrics.count(talk)
        book: Book = talk.book
        self.shelf.give_back(book)
