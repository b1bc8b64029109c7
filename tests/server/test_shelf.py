"""Several models within one budget: loaded when asked for, the least recently used make room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from live_server import live_server

import slmq
from slmq.cli.serve import aliases_of
from slmq.errors import BusyError, CheckpointError, ModelNotFoundError
from slmq.generation.model import Model
from slmq.server import shelf as shelf_module
from slmq.server.shelf import Book, Loaded, Shelf

NAMES = ("a", "b", "c")
LOAD = {"n_ctx": 256, "kv_bytes": 1 << 20}


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def books_of(path: Path, log: list[str]) -> list[Book]:
    def loader(name: str) -> Callable[[], Loaded]:
        def load() -> Loaded:
            log.append(name)
            return Loaded(slmq.load(path, **LOAD))

        return load

    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return [Book(name, loader(name), path, size) for name in NAMES]


@pytest.fixture
def size(tiny_model_path: Path, pool: ThreadPoolExecutor) -> int:
    """What a loaded model holds."""

    async def measure() -> int:
        shelf = Shelf(books_of(tiny_model_path, []), pool=pool)
        async with shelf.use("a") as book:
            found = book.memory_bytes
        shelf.close()
        return found

    return asyncio.run(measure())


def test_models_come_and_go(tiny_model_path: Path, pool: ThreadPoolExecutor, size: int) -> None:
    log: list[str] = []

    async def run() -> None:
        shelf = Shelf(books_of(tiny_model_path, log), budget_bytes=2 * size + 1, pool=pool)
        for name in ("a", "b", None, "c", "a", "b"):
            async with shelf.use(name) as book:
                assert book.loaded is not None
                assert book.loaded.model.generate([5, 6], max_tokens=2).tokens
            loaded = [book for book in shelf.books if book.loaded is not None]
            assert sum(book.memory_bytes for book in loaded) <= 2 * size + 1
        shelf.close()

    asyncio.run(run())
    # c takes the place of b, which was used before a; then b that of c.
    assert log == ["a", "b", "c", "b"]


def test_many_who_want_a_model_load_it_once(
    tiny_model_path: Path, pool: ThreadPoolExecutor
) -> None:
    log: list[str] = []

    async def run() -> None:
        shelf = Shelf(books_of(tiny_model_path, log), pool=pool)

        async def use(name: str) -> None:
            async with shelf.use(name) as book:
                assert book.loaded is not None
                await asyncio.sleep(0)

        await asyncio.gather(*(use(NAMES[i % 2]) for i in range(20)))
        assert all(book.users == 0 for book in shelf.books)
        shelf.close()

    asyncio.run(run())
    assert sorted(log) == ["a", "b"]


def test_a_model_in_use_stays(
    tiny_model_path: Path, pool: ThreadPoolExecutor, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        shelf = Shelf(books_of(tiny_model_path, []), budget_bytes=size + 1, pool=pool)
        async with shelf.use("a") as book:
            monkeypatch.setattr(shelf_module, "WAIT_S", 0.01)
            with pytest.raises(BusyError, match="in use") as caught:
                async with shelf.use("b"):
                    pass
            assert caught.value.retry_after_s == 0.01
            monkeypatch.setattr(shelf_module, "WAIT_S", 30)
            waiting = asyncio.create_task(shelf.take(shelf.find("b")))
            await asyncio.sleep(0)
            assert book.loaded is not None
        await waiting  # it was given back, so there is room
        assert book.loaded is None
        shelf.close()

    asyncio.run(run())


def test_a_model_that_cannot_be_loaded_is_an_error_of_its_request(
    tiny_model_path: Path, pool: ThreadPoolExecutor
) -> None:
    def broken() -> Loaded:
        raise CheckpointError("cut short")

    async def run() -> None:
        books = [*books_of(tiny_model_path, []), Book("broken", broken, Path("x"), 0)]
        shelf = Shelf(books, pool=pool)
        with pytest.raises(CheckpointError):
            await shelf.take(shelf.find("broken"))
        with pytest.raises(ModelNotFoundError, match="'a', 'b', 'c'"):
            shelf.find("d")
        async with shelf.use("b:latest") as book:
            assert book.name == "b"
        assert all(book.users == 0 for book in shelf.books)
        shelf.close()

    asyncio.run(run())


def test_aliases_are_names_of_models(model: Model) -> None:
    found = aliases_of(["gpt-4o", "large=two"], ["one", "two"])
    assert found == {"gpt-4o": "one", "large": "two"}
    for wrong in (["one"], ["=one"], ["a", "a=two"], ["a=three"]):
        with pytest.raises(ValueError, match="--alias"):
            aliases_of(wrong, ["one", "two"])
    with live_server({"tiny": model}, aliases={"gpt-4o": "tiny"}) as server:
        asked = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}
        answered = server.ask("/v1/chat/completions", {**asked, "max_tokens": 2})
        assert answered.body["model"] == "tiny"
        assert server.ask("/v1/models/gpt-4o").body["id"] == "tiny"
