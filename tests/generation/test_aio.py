"""Answers for coroutines; real engine, tiny model."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import slmq
from slmq.errors import ClosedError
from slmq.generation.model import Model
from slmq.generation.scheduler import Scheduler

PARAMS: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True, "temperature": 1.1, "seed": 4}
PROMPTS = [[5 + i, 17, 3, 60 - i] for i in range(24)]


@pytest.fixture
def model(tiny_model_path: Path) -> Iterator[Model]:
    with slmq.load(tiny_model_path, n_ctx=4096) as loaded:
        yield loaded


async def wait_until_idle(model: Model) -> None:
    for _ in range(2000):
        if model.stats().running + model.stats().waiting == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"still at work: {model.stats()}")


def test_many_answers_without_a_thread_each(model: Model) -> None:
    async def ask() -> tuple[list[slmq.GenerationResult], int]:
        tasks = [asyncio.create_task(model.agenerate(p, **PARAMS)) for p in PROMPTS]
        await asyncio.sleep(0)
        threads = threading.active_count()
        return await asyncio.gather(*tasks), threads

    before = threading.active_count()
    found, threads = asyncio.run(ask())
    assert threads <= before + 1  # the scheduler's
    for prompt, result in zip(PROMPTS, found, strict=True):
        wanted = model.generate(prompt, **PARAMS)
        assert (result.text, result.tokens) == (wanted.text, wanted.tokens)


def test_streams_give_the_chunks_of_streams(model: Model) -> None:
    async def read(prompt: list[int]) -> tuple[list[str], list[int | None], Any]:
        texts, tokens = [], []
        async with model.astream(prompt, **PARAMS) as stream:
            async for chunk in stream:
                texts.append(chunk.text)
                tokens.append(chunk.token)
                await asyncio.sleep(0)
        return texts, tokens, stream.result

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(read(prompt) for prompt in PROMPTS))

    for prompt, (texts, tokens, result) in zip(PROMPTS, asyncio.run(all_of_them()), strict=True):
        chunks = list(model.stream(prompt, **PARAMS))
        assert texts == [chunk.text for chunk in chunks]
        assert tokens == [chunk.token for chunk in chunks]
        assert result.tokens == tokens


def test_a_slow_reader_gets_everything(model: Model) -> None:
    """More chunks than may wait: the answer pauses and goes on."""

    async def read() -> list[int | None]:
        tokens = []
        async for chunk in model.astream([5, 6], **PARAMS):
            tokens.append(chunk.token)
            if len(tokens) == 1:
                await asyncio.sleep(0.2)
        return tokens

    assert asyncio.run(read()) == model.generate([5, 6], **PARAMS).tokens


@pytest.mark.parametrize("kind", ["generate", "stream"])
def test_cancelling_the_task_cancels_the_answer(model: Model, kind: str) -> None:
    endless: dict[str, Any] = {"max_tokens": 4000, "ignore_eos": True}

    async def stream() -> None:
        async for _ in model.astream([5, 6], **endless):
            pass

    async def cancel() -> None:
        coroutine = model.agenerate([5, 6], **endless) if kind == "generate" else stream()
        task = asyncio.create_task(coroutine)
        other = asyncio.create_task(model.agenerate([7, 8], **PARAMS))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await other).tokens == model.generate([7, 8], **PARAMS).tokens
        await wait_until_idle(model)

    asyncio.run(cancel())
    assert model.stats().cancelled == 1


def test_a_timeout_cancels_the_answer(model: Model) -> None:
    async def ask() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(model.agenerate([5], max_tokens=4000, ignore_eos=True), 0.1)
        await wait_until_idle(model)

    asyncio.run(ask())
    assert model.stats().cancelled == 1


def test_leaving_or_dropping_a_stream_cancels(model: Model) -> None:
    async def leave() -> None:
        async with model.astream([5], max_tokens=4000, ignore_eos=True) as stream:
            await stream.__anext__()
        assert stream.result is not None
        assert stream.result.finish_reason == "cancelled"
        dropped = model.astream([6], max_tokens=4000, ignore_eos=True)
        await dropped.__anext__()
        gc.disable()  # it must not take the collector
        try:
            del dropped
            await model.agenerate([7], max_tokens=1)
            await wait_until_idle(model)
        finally:
            gc.enable()

    asyncio.run(leave())
    assert model.stats().cancelled == 2


def test_errors_come_from_the_await(model: Model) -> None:
    async def ask() -> None:
        with pytest.raises(ValueError, match="empty prompt"):
            await model.agenerate("")
        with pytest.raises(ValueError, match="empty prompt"):
            model.astream("")

    asyncio.run(ask())


def test_a_model_closed_under_coroutines(model: Model) -> None:
    async def ask() -> tuple[Any, Any]:
        stream = model.astream([9], max_tokens=4000, ignore_eos=True)

        async def read() -> None:
            async for _ in stream:
                pass

        answer = asyncio.create_task(model.agenerate([5], max_tokens=4000, ignore_eos=True))
        reader = asyncio.create_task(read())
        await asyncio.sleep(0.1)
        await asyncio.to_thread(model.close)
        await reader
        return (await asyncio.gather(answer, return_exceptions=True))[0], stream.result

    error, result = asyncio.run(ask())
    assert isinstance(error, ClosedError)
    # Its reader may have been between two chunks: then there is no last one, but a result always.
    assert result.finish_reason == "cancelled"


def test_a_loop_that_is_gone_disturbs_nobody(model: Model) -> None:
    async def begin() -> Any:
        return model.astream([5], max_tokens=4000, ignore_eos=True)

    left = asyncio.run(begin())
    assert model.generate([6], **PARAMS).finish_reason == "length"
    left.close()
    assert model.generate([6], max_tokens=1).finish_reason == "length"


def test_a_scheduler_that_nobody_drives_is_refused(model: Model) -> None:
    stepped = Model(model.engine, Scheduler(model.engine, drive=False))

    async def ask() -> None:
        with pytest.raises(ValueError, match="drive=False"):
            await stepped.agenerate([5])

    asyncio.run(ask())
