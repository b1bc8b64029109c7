"""Adapters as models: each is one to its clients, and their requests run in one step with others.

An operator names them at the start, or names a folder from which clients may load more, in the
words of vLLM (``/v1/load_lora_adapter``). Nothing else on the disk can be named.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq.batch.requests import RequestError
from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.server.exchange import flag, only
from slmq.server.faults import RefusedError
from slmq.server.guard import body_of
from slmq.server.replies import Reply
from slmq.server.routing import AUTO
from slmq.server.shelf import Book, LoadedAdapter

if TYPE_CHECKING:
    from starlette.requests import Request

    from slmq.server.service import Service

__all__ = ["Adapters", "adapter_book"]

MOST = 1024  # adapters of a server
NAME, PATH, BASE, AGAIN = "lora_name", "lora_path", "base_model_name", "load_inplace"
FILES = ("adapter_model.safetensors", "adapters.safetensors")


def adapter_book(name: str, path: Path, base: Book) -> Book:
    """An adapter of a model that can be asked for like one.

    Parameters
    ----------
    name : str
        What clients call it.
    path : Path
    base : Book
        Its model.
    """
    found = [path] if path.is_file() else [path / file for file in FILES]
    size = sum(file.stat().st_size for file in found if file.is_file())
    return Book(name, partial(_load, name, path, base), path, size, base=base)


def _load(name: str, path: Path, base: Book) -> LoadedAdapter:
    assert base.loaded is not None
    held = base.loaded
    model, count, called = held.model, 1, name
    while called in model.adapters:  # one that was removed, or replaced, and still answers
        count += 1
        called = f"{name}.{count}"
    model.load_adapter(path, called)
    return LoadedAdapter(
        model,
        {**held.suggested, "adapter": called},
        held.options,
        plain=held.fingerprint,
        called=called,
        digest=model.adapters[called],
    )


class Adapters:
    """Endpoints.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def load(self, request: Request) -> Reply:
        """POST /v1/load_lora_adapter: an adapter in the operator's folder becomes a model."""
        folder = self._folder()
        given = only(body_of(request.scope), (NAME, PATH, BASE, AGAIN))
        name, shelf = _text(given, NAME), self._service.shelf
        base = shelf.find(given.get(BASE))
        if base.base is not None:
            raise RequestError(f"{BASE}: {base.name!r:.80} is an adapter itself", BASE)
        replaced = self._replaced(name, again=flag(given, AGAIN, default=False))
        if sum(book.base is not None for book in shelf.books) >= MOST:
            raise RefusedError(429, f"{MOST} adapters are served already; unload some")
        path = await self._service.run(_within, folder, _text(given, PATH))
        book = adapter_book(name, path, base)
        try:
            async with shelf.used(book):  # it is loaded before anybody hears of it
                if replaced is not None and replaced is shelf.get(name):
                    shelf.remove(replaced)
                self._add(book)
        except (CheckpointError, UnsupportedModelError) as error:
            raise RequestError(str(error), PATH) from None
        return Reply(f"{name} is served")

    async def unload(self, request: Request) -> Reply:
        """POST /v1/unload_lora_adapter: requests that use it end with it, others do not find it."""
        self._folder()
        name = _text(only(body_of(request.scope), (NAME,)), NAME)
        book = self._service.shelf.find(name)
        if book.base is None:
            raise RequestError(f"{NAME}: {name!r:.80} is a model, not an adapter", NAME)
        self._service.shelf.remove(book)
        return Reply(f"{name} is served no more")

    def _folder(self) -> Path:
        folder = self._service.limits.adapters
        if folder is None:
            raise RefusedError(
                403, "adapters are not loaded for clients here; slmq serve --adapter-dir allows it"
            )
        return folder

    def _replaced(self, name: str, *, again: bool) -> Book | None:
        """The adapter of this name whose place a new one may take."""
        found = self._service.shelf.get(name)
        if found is None:
            return None
        if not again or found.base is None:
            raise RequestError(
                f"{NAME}: {name!r:.80} is served already; {AGAIN} replaces an adapter", NAME
            )
        return found

    def _add(self, book: Book) -> None:
        try:
            if book.name == AUTO:
                raise ValueError(f"the name {AUTO!r} is taken")
            self._service.shelf.add(book)
        except ValueError as error:
            book.removed = True  # nobody will ask for it: it goes when this request is over
            raise RequestError(f"{NAME}: {error}", NAME) from None


def _text(given: dict[str, Any], name: str) -> str:
    found = given.get(name)
    if not isinstance(found, str) or not found or len(found) > 1000:
        raise RequestError(f"{name}: expected a text of 1 to 1000 characters", name)
    return found


def _within(folder: Path, path: str) -> Path:
    """A path in a folder, wherever links lead."""
    try:
        found = (folder / path).resolve(strict=True)
    except (OSError, ValueError):
        found = None
    # What is elsewhere and what is not there look alike: nobody learns what else this disk has.
    if found is None or not found.is_relative_to(folder.resolve()):
        raise RequestError(f"{PATH}: there is no {path!r:.80} in the folder of adapters", PATH)
    return found
