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
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from slmq.errors import BusyError, ModelNotFoundError
from slmq.generation.fingerprint import fingerprint, with_adapter
from slmq.machine.disk import readable_bytes

if TYPE_CHECKING:
    from slmq.embedding.encoder import Encoder
    from slmq.generation.model import Model

__all__ = ["Book", "EncoderBook", "Loaded", "LoadedAdapter", "LoadedEncoder", "Shelf"]

log = logging.getLogger("slmq.server")

WAIT_S = 20.0  # for others to let go of theirs
LATEST = ":latest"  # what ollama's clients put behind names


class Held(Protocol):
    """What a book holds while it is loaded."""

    @property
    def memory_bytes(self) -> int:
        """Memory that it takes."""

    @property
    def fingerprint(self) -> str:
        """Name of what it computes."""

    def close(self) -> None:
        """Free its memory."""


H = TypeVar("H", bound=Held)


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

    @property
    def memory_bytes(self) -> int:
        """What weights and cache may take."""
        engine = self.model.engine
        return engine.info.weight_bytes + engine.plan.cache.limit * engine.page_bytes

    def close(self) -> None:
        """Close the model."""
        self.model.close()


@dataclass(frozen=True)
class LoadedAdapter(Loaded):
    """A model and an adapter that it has loaded.

    Attributes
    ----------
    plain : str
        The name of what the model computes without the adapter.
    called : str
        The model's name for the adapter, which `suggested` asks for.
    digest : str
        Of all that the adapter adds.
    """

    plain: str = ""
    called: str = ""
    digest: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """Name of what the model computes with the adapter."""
        return with_adapter(self.plain, self.digest)

    @property
    def memory_bytes(self) -> int:
        """What the adapter takes, beside the model."""
        return self.model.adapter_bytes(self.called)

    def close(self) -> None:
        """Forget the adapter; the model stays."""
        self.model.unload_adapter(self.called)


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder that is ready."""

    encoder: Encoder

    @property
    def fingerprint(self) -> str:
        """What it is, in a few words."""
        return repr(self.encoder)

    @property
    def memory_bytes(self) -> int:
        """What its weights take."""
        return self.encoder.weight_bytes

    def close(self) -> None:
        """Close the encoder."""
        self.encoder.close()


@dataclass
class Entry(Generic[H]):
    """Something that can be asked for.

    Attributes
    ----------
    name : str
    load : callable
        Loads it; called by a thread that may wait.
    path : Path
    disk_bytes : int
    loaded : Loaded or LoadedEncoder or None
    users : int
        Requests that use it now.
    used : int
        When it was last asked for, as a count.
    base : Book or None
        For an adapter, its model, which stays loaded while the adapter is used.
    removed : bool
        Whether it can be asked for no more, and goes when nobody uses it.
    """

    name: str
    load: Callable[[], H]
    path: Path
    disk_bytes: int
    loaded: H | None = None
    users: int = 0
    used: int = 0
    base: Book | None = None
    removed: bool = False

    @property
    def memory_bytes(self) -> int:
        """What it holds; before it is loaded what its weights will, roughly."""
        return self.disk_bytes if self.loaded is None else self.loaded.memory_bytes


class Book(Entry[Loaded]):
    """A model that writes text, or one with an adapter."""


class EncoderBook(Entry[LoadedEncoder]):
    """A model that makes vectors, or ranks."""


E = TypeVar("E", bound=Entry[Any])


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
    encoders : sequence of EncoderBook
        The first is what requests for vectors get that name none.
    """

    def __init__(
        self,
        books: Sequence[Book],
        *,
        budget_bytes: int | None = None,
        pool: Executor,
        aliases: Mapping[str, str] | None = None,
        encoders: Sequence[EncoderBook] = (),
    ) -> None:
        self._books = {book.name: book for book in books}
        self._encoders = {book.name: book for book in encoders}
        self._first = books[0] if books else None
        self._aliases = dict(aliases or {})
        self._budget = budget_bytes
        self._pool = pool
        self._count = 0
        self._loading = asyncio.Lock()  # one model at a time
        self._freed = asyncio.Event()

    @property
    def books(self) -> list[Book]:
        """Those that write text, in the order in which they were given."""
        return list(self._books.values())

    @property
    def encoders(self) -> list[EncoderBook]:
        """Those that make vectors, in the order in which they were given."""
        return list(self._encoders.values())

    def add(self, book: Book) -> None:
        """Let a model be asked for.

        Raises
        ------
        ValueError
            If its name is taken.
        """
        if book.name in {*self._books, *self._encoders, *self._aliases}:
            raise ValueError(f"the name {book.name!r:.80} is taken")
        self._books[book.name] = book

    def remove(self, book: Book) -> None:
        """Let an adapter be asked for no more; requests that use it end with it."""
        del self._books[book.name]
        book.removed = True
        _drop_removed(book)

    def find_encoder(self, name: Any) -> EncoderBook:
        """The encoder of a name.

        Raises
        ------
        TypeError, ModelNotFoundError
        """
        if not self._encoders:
            raise ModelNotFoundError("no encoder is served here; `slmq serve --encoder` adds one")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"model: expected a name, got {name!r:.80}")
        found = self._encoders.get(name or next(iter(self._encoders)))
        if found is None:
            names = ", ".join(map(repr, self._encoders))
            raise ModelNotFoundError(f"the encoder {name!r:.80} is not served here, only {names}")
        return found

    def get(self, name: str) -> Book | None:
        """The model that is called exactly this."""
        return self._books.get(name)

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
        async with self.used(self.find(name)) as book:
            yield book

    @asynccontextmanager
    async def used(self, book: E) -> AsyncIterator[E]:
        """A model or an encoder that stays loaded within the block."""
        await self.take(book)
        try:
            yield book
        finally:
            self.give_back(book)

    async def take(self, book: Entry[H]) -> H:
        """Load a model if need be; it stays until `give_back`.

        Raises
        ------
        BusyError
            The others that are in use leave no room for it.
        """
        if book.base is not None:
            await self.take(book.base)
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

    def give_back(self, book: Entry[Any]) -> None:
        """A request that used a model is over."""
        book.users -= 1
        if book.users == 0:
            self._freed.set()
            _drop_removed(book)
        if book.base is not None:
            self.give_back(book.base)

    def close(self) -> None:
        """Close all models."""
        for book in self._all:
            if book.loaded is not None and book.base is None:
                book.loaded.close()

    @property
    def _all(self) -> list[Entry[Any]]:
        return [*self._books.values(), *self._encoders.values()]

    async def _make_room(self, wanted: Entry[Any]) -> None:
        """Close models that nobody uses, the least recently used first, until there is room."""
        if self._budget is None:
            return
        while True:
            loaded = [book for book in self._all if book.loaded is not None]
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

    async def _put_away(self, book: Entry[Any]) -> None:
        for other in self._all:
            if other.base is book:
                other.loaded = None  # an adapter goes with its model
        held, book.loaded = book.loaded, None
        assert held is not None
        log.info("%s makes room", book.name)
        await asyncio.get_running_loop().run_in_executor(self._pool, held.close)


def _drop_removed(book: Entry[Any]) -> None:
    if book.removed and book.users == 0 and book.loaded is not None:
        book.loaded.close()
        book.loaded = None


def _ready(book: Entry[H]) -> H:
    """Load a model and name it, before it has anything else to do."""
    loaded = book.load()
    log.info("%s is %s", book.name, loaded.fingerprint)
    return loaded
