"""The models of a server: loaded when they are asked for, within one budget of memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq.disk import readable_bytes
from slmq.errors import BusyError, ModelNotFoundError
from slmq.generation.fingerprint import fingerprint

if TYPE_CHECKING:
    from slmq.generation.model import Model

__all__ = ["Book", "Loaded", "Shelf"]

log = logging.getLogger("slmq.server")

WAIT_S = 20.0  # for others to let go of theirs
LATEST = ":latest"  # what ollama's clients put behind names


@dataclass(frozen=True)
class Loaded:
    """A model that is ready.

    Attributes
    ----------
    model : Model
    suggested : mapping
        Sampling parameters of requests that set none.
    options : mapping
        Options by which it was loaded, as far as answers depend on them.
    """

    model: Model
    suggested: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """Name of what the model computes; made when it is first asked for."""
        return fingerprint(self.model)


@dataclass
class Book:
    """A model that can be asked for.

    Attributes
    ----------
    name : str
    load : callable
        Loads it; called by a thread that may wait.
    path : Path
    disk_bytes : int
    loaded : Loaded or None
    users : int
        Requests that use it now.
    used : int
        When it was last asked for, as a count.
    """

    name: str
    load: Callable[[], Loaded]
    path: Path
    disk_bytes: int
    loaded: Loaded | None = None
    users: int = 0
    used: int = 0

    @property
    def memory_bytes(self) -> int:
        """What it holds, weights and cache; before it is loaded what its weights will, roughly."""
        if self.loaded is None:
            return self.disk_bytes
        engine = self.loaded.model.engine
        return engine.info.weight_bytes + engine.plan.cache.limit * engine.page_bytes


class Shelf:
    """Models by name; the least recently used go when another needs their memory.

    Parameters
    ----------
    books : sequence of Book
        The first is what requests without a name get. There may be none.
    budget_bytes : int, optional
        Memory of all that are loaded; None sets no limit.
    pool : Executor
        Where models are loaded.
    aliases : mapping of str to str
        Further names of models.
    """

    def __init__(
        self,
        books: Sequence[Book],
        *,
        budget_bytes: int | None = None,
        pool: Executor,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self._books = {book.name: book for book in books}
        self._first = books[0] if books else None
        self._aliases = dict(aliases or {})
        self._budget = budget_bytes
        self._pool = pool
        self._count = 0
        self._loading = asyncio.Lock()  # one model at a time
        self._freed = asyncio.Event()

    @property
    def books(self) -> list[Book]:
        """All of them, in the order in which they were given."""
        return list(self._books.values())

    def find(self, name: Any) -> Book:
        """The model of a name.

        Raises
        ------
        TypeError, ModelNotFoundError
        """
        if self._first is None:
            raise ModelNotFoundError("no model is served here that writes text")
        if name is None or name == "":
            return self._first
        if not isinstance(name, str):
            raise TypeError(f"model: expected a name, got {name!r:.80}")
        name = self._aliases.get(name, name)
        found = self._books.get(name) or self._books.get(name.removesuffix(LATEST))
        if found is None:
            names = ", ".join(map(repr, self._books))
            raise ModelNotFoundError(f"the model {name!r:.80} is not served here, only {names}")
        return found

    @asynccontextmanager
    async def use(self, name: Any) -> AsyncIterator[Book]:
        """A model that stays loaded within the block."""
        book = self.find(name)
        await self.take(book)
        try:
            yield book
        finally:
            self.give_back(book)

    async def take(self, book: Book) -> Loaded:
        """Load a model if need be; it stays until `give_back`.

        Raises
        ------
        BusyError
            The others that are in use leave no room for it.
        """
        self._count += 1
        book.used = self._count
        book.users += 1
        try:
            while book.loaded is None:
                async with self._loading:
                    if book.loaded is None:
                        await self._make_room(book)
                        loop = asyncio.get_running_loop()
                        book.loaded = await loop.run_in_executor(self._pool, _ready, book)
        except BaseException:
            self.give_back(book)
            raise
        return book.loaded

    def give_back(self, book: Book) -> None:
        """A request that used a model is over."""
        book.users -= 1
        if book.users == 0:
            self._freed.set()

    def close(self) -> None:
        """Close all models."""
        for book in self.books:
            if book.loaded is not None:
                book.loaded.model.close()

    async def _make_room(self, wanted: Book) -> None:
        """Close models that nobody uses, the least recently used first, until there is room."""
        if self._budget is None:
            return
        while True:
            loaded = [book for book in self.books if book.loaded is not None]
            if not loaded:
                return
            held = sum(book.memory_bytes for book in loaded)
            if held + wanted.memory_bytes <= self._budget:
                return
            idle = [book for book in loaded if book.users == 0]
            if idle:
                await self._put_away(min(idle, key=lambda book: book.used))
                continue
            self._freed.clear()
            try:
                await asyncio.wait_for(self._freed.wait(), WAIT_S)
            except asyncio.TimeoutError:
                raise BusyError(
                    f"the model {wanted.name!r} needs {readable_bytes(wanted.memory_bytes)}, and "
                    f"others that are in use hold {readable_bytes(held)} of "
                    f"{readable_bytes(self._budget)}; try again later",
                    retry_after_s=WAIT_S,
                ) from None

    async def _put_away(self, book: Book) -> None:
        assert book.loaded is not None
        model, book.loaded = book.loaded.model, None
        log.info("%s makes room", book.name)
        await asyncio.get_running_loop().run_in_executor(self._pool, model.close)


def _ready(book: Book) -> Loaded:
    """Load a model and name it, before it has anything else to do."""
    loaded = book.load()
    log.info("%s is %s", book.name, loaded.fingerprint)
    return loaded
