"""What all endpoints share: the models, the limits, the counts, and how a request is begun."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from slmq.batch.requests import Asked, RequestError, ignored_fields, read_request
from slmq.errors import ClosedError, DeadlineError
from slmq.generation.mapping import sample_seeds
from slmq.generation.params import SamplingParams
from slmq.generation.prompts import prompt_ids, speech_of
from slmq.server.faults import RefusedError
from slmq.server.health import Health
from slmq.server.limits import Limits
from slmq.server.metrics import Metrics
from slmq.server.receipts import Receipts
from slmq.server.requestlog import RequestLog
from slmq.server.talk import Talk
from slmq.server.twins import Twins
from slmq.server.wishes import Wishes, read_wishes

if TYPE_CHECKING:
    from slmq.generation.stream import TokenStream
    from slmq.server.routing import Routing
    from slmq.server.shelf import Book, Loaded, Shelf

__all__ = ["Service", "Submitted"]

POOL = 2  # threads that render, tokenize and load
REST_S = 0.05  # between two looks whether a run that nobody waits for has ended


@dataclass(frozen=True)
class Submitted:
    """A request that is queued.

    Attributes
    ----------
    url : str
    body : mapping
    wishes : Wishes
    loaded : Loaded
    asked : Asked
    fingerprint : str
        Name of what the model computes.
    seed : int or None
        Of the first answer, if any is drawn.
    streams : list of TokenStream
        One for each of `asked.answers()`.
    """

    url: str
    body: Mapping[str, Any]
    wishes: Wishes
    loaded: Loaded
    asked: Asked
    fingerprint: str
    seed: int | None
    streams: list[TokenStream]

    @property
    def expected_s(self) -> float:
        """Seconds until the first token."""
        return min((stream.expected_s for stream in self.streams), default=0.0)


class Service:
    """A server without its endpoints.

    Parameters
    ----------
    shelf : Shelf
    limits : Limits
    pool : ThreadPoolExecutor
    log : RequestLog, optional
        Where requests are written down.

    Attributes
    ----------
    health : Health
    routing : Routing or None
        What answers requests for the model "auto".
    draining : bool
        Whether it is about to end and takes no more requests.
    """

    def __init__(
        self, shelf: Shelf, limits: Limits, pool: ThreadPoolExecutor, log: RequestLog | None = None
    ) -> None:
        self.shelf = shelf
        self.limits = limits
        self.pool = pool
        self.log = log or RequestLog(None)
        self.metrics = Metrics()
        self.receipts = Receipts()
        self.twins = Twins[Submitted]()
        self.health = Health(self)
        self.routing: Routing | None = None
        self.draining = False
        self._talks: set[Talk] = set()

    async def begin(
        self, url: str, body: Mapping[str, Any], scope: Mapping[str, Any], *, whole: bool
    ) -> Talk:
        """Check a request in OpenAI's words and submit it, unless the same one runs already.

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
        wishes, rest = read_wishes(scope, body)
        _refuse_adapter(rest)
        book = self.shelf.find(rest.get("model"))
        loaded = await self.shelf.take(book)
        try:
            start = partial(self._start, book, url, rest, wishes, whole=whole)
            key = _twin_key(book, loaded, url, rest, wishes, whole=whole)
            submitted, sources = await self.twins.begin(key, start)
        except BaseException:
            self.shelf.give_back(book)
            raise
        talk = Talk(
            book,
            submitted,
            sources,
            scope=scope,
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

    async def _start(
        self, book: Book, url: str, body: Mapping[str, Any], wishes: Wishes, *, whole: bool
    ) -> Submitted:
        async with self.shelf.used(book) as held:
            assert held.loaded is not None
            # Schemas, templates and tokenizers may take long.
            work = partial(self._submit, held.loaded, url, body, wishes, whole=whole)
            found: Submitted = await self.run(work)
            return found

    def _submit(
        self, loaded: Loaded, url: str, body: Mapping[str, Any], wishes: Wishes, *, whole: bool
    ) -> Submitted:
        """Read a request, and queue every answer that it asks for, or none."""
        asked, seed = _seeded(read_request(url, body, None, loaded.suggested))
        limits = [s for s in (wishes.deadline_s, self.limits.answer_s) if s is not None]
        found = Submitted(url, body, wishes, loaded, asked, loaded.fingerprint, seed, [])
        try:
            for prompt, params in asked.answers():
                stream = loaded.model.submit(
                    prompt,
                    params,
                    chat_template_kwargs=asked.template,
                    deadline_s=min(limits, default=None),
                    salt=wishes.salt,
                    whole=whole,
                )
                found.streams.append(stream)
            _require_in_time(found)
        except BaseException:
            for stream in found.streams:
                stream.close()
            found.streams.clear()  # the traceback holds `found` until it is collected
            raise
        return found

    def _ended(self, talk: Talk) -> None:
        self._talks.discard(talk)
        self.metrics.count(talk)
        if talk.complete:
            self.receipts.add(talk)
        self._write_down(talk)

    def _write_down(self, talk: Talk) -> None:
        """Log a request and let its model go, once the last run for it has ended."""
        if talk.pays and not talk.at_rest:
            asyncio.get_running_loop().call_later(REST_S, self._write_down, talk)
            return
        if talk.pays:
            self.metrics.spend(talk)
        self.log.write(talk)
        self.shelf.give_back(talk.book)


def _refuse_adapter(body: Mapping[str, Any]) -> None:
    if body.get("adapter") is not None:
        raise RequestError("adapter: adapters are models here; name it as the model", "adapter")


def _seeded(asked: Asked) -> tuple[Asked, int | None]:
    """A request that draws gets a seed, so that it can be asked again."""
    params = SamplingParams.from_kwargs(asked.params)
    if params.temperature == 0 or params.seed is not None:
        return asked, params.seed
    seed = next(sample_seeds(None))
    return replace(asked, params={**asked.params, "seed": seed}), seed


def _twin_key(
    book: Book,
    loaded: Loaded,
    url: str,
    body: Mapping[str, Any],
    wishes: Wishes,
    *,
    whole: bool,
) -> Hashable:
    """What requests have in common that compute the same; None if this one draws by itself."""
    given = {**loaded.suggested, **{k: v for k, v in body.items() if v is not None}}
    drawn = given.get("temperature", SamplingParams().temperature) != 0
    if drawn and given.get("seed") is None and wishes.twin is None:
        return None
    without = ignored_fields(body)
    same = {name: value for name, value in body.items() if name not in without}
    return book.name, loaded.fingerprint, url, json.dumps(same, sort_keys=True), wishes, whole


def _require_in_time(submitted: Submitted) -> None:
    """Refuse what could only come too late, before it takes the time of others."""
    limit_s, expected_s = submitted.wishes.deadline_s, submitted.expected_s
    if limit_s is not None and expected_s > limit_s:
        raise DeadlineError(
            f"the first token is expected after {expected_s:.2f} s, and the answer was wanted "
            f"within {limit_s:g} s"
        )
