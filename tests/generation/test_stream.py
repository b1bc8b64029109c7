"""Streams: cancelling them, and several callers at once; real engine, tiny random model."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import slmq
from slmq.generation.model import Model

PROMPT = [5, 17, 3, 60, 21, 9, 44]


@pytest.fixture
def model(tiny_model_path: Path) -> Iterator[Model]:
    with slmq.load(tiny_model_path, n_ctx=4096) as loaded:
        yield loaded


def long_prompt(model: Model) -> list[int]:
    """More than three chunks of the engine."""
    return [(7 * i + i // 50) % 60 + 1 for i in range(3 * model.engine.chunk + 10)]


def usable(model: Model) -> bool:
    return len(model.generate(PROMPT, max_tokens=3, ignore_eos=True).tokens) == 3


# ------------------------------------------------------------------ cancelling


def test_closing_cancels_and_keeps_what_was_said(model: Model) -> None:
    whole = model.generate(PROMPT, max_tokens=20, ignore_eos=True)
    stream = model.stream(PROMPT, max_tokens=20, ignore_eos=True)
    said = "".join(next(stream).text for _ in range(5))
    assert not stream.finished
    stream.close()
    stream.close()
    assert stream.finished
    assert stream.result is not None
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.tokens == whole.tokens[:5]
    assert stream.result.text == said
    assert list(stream) == []
    assert usable(model)


def test_leaving_the_block_closes(model: Model) -> None:
    with model.stream(PROMPT, ignore_eos=True) as stream:
        next(stream)
    assert stream.result is not None
    assert stream.result.finish_reason == "cancelled"
    assert usable(model)


def test_dropping_a_stream_frees_the_model_at_once(model: Model) -> None:
    gc.disable()  # it must not take the collector
    try:
        for chunk in model.stream(PROMPT, ignore_eos=True):
            if chunk.generated_tokens == 2:
                break
        del chunk
        assert usable(model)
    finally:
        gc.enable()


def test_an_unread_stream_holds_nothing(model: Model) -> None:
    unread = model.stream(PROMPT, ignore_eos=True)
    assert usable(model)
    unread.close()
    assert unread.result is not None
    assert unread.result.finish_reason == "cancelled"
    assert (unread.result.text, unread.result.tokens) == ("", [])


def test_whoever_stops_at_the_last_chunk_holds_nothing(model: Model) -> None:
    stream = model.stream(PROMPT, max_tokens=2, ignore_eos=True)
    assert next(stream).finish_reason is None
    assert next(stream).finish_reason == "length"
    assert usable(model)
    stream.close()
    assert stream.result is not None
    assert stream.result.finish_reason == "length"


def test_closing_within_the_prompt_stops_after_a_chunk(model: Model) -> None:
    prompt = long_prompt(model)
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        stream.close()

    stream = model.stream(prompt, progress=progress, max_tokens=5)
    chunks = list(stream)
    assert seen == [(model.engine.chunk, len(prompt))]
    assert [(c.token, c.finish_reason) for c in chunks] == [(None, "cancelled")]
    # What was read stays in the cache, and the answer is the same as without the cut.
    again = model.generate(prompt, max_tokens=5, logprobs=2, ignore_eos=True)
    assert again.cached_tokens == model.engine.chunk
    model.generate(PROMPT, max_tokens=1)
    assert model.generate(prompt, max_tokens=5, logprobs=2, ignore_eos=True).logprobs == (
        again.logprobs
    )


def test_progress_covers_the_prompt(model: Model) -> None:
    prompt = long_prompt(model)
    seen: list[int] = []
    model.generate(prompt, progress=lambda done, total: seen.append(done), max_tokens=1)
    chunk = model.engine.chunk
    assert seen == [chunk, 2 * chunk, 3 * chunk, len(prompt)]
    seen.clear()
    model.generate(prompt, progress=lambda done, total: seen.append(done), max_tokens=1)
    assert seen == [len(prompt)]


@pytest.mark.parametrize("where", ["prompt", "answer"])
def test_closing_from_another_thread(model: Model, where: str) -> None:
    reached, closed = threading.Event(), threading.Event()

    def progress(done: int, total: int) -> None:
        if where == "prompt":
            reached.set()
            assert closed.wait(30)

    stream = model.stream(long_prompt(model), progress=progress, ignore_eos=True)

    def close() -> None:
        assert reached.wait(30)
        stream.close()
        closed.set()

    other = threading.Thread(target=close)
    other.start()
    chunks = []
    for chunk in stream:
        chunks.append(chunk)
        if where == "answer":
            reached.set()
    other.join()
    assert stream.result is not None
    assert stream.result.finish_reason == "cancelled"
    assert usable(model)


def test_closing_at_any_moment_ends_the_reader(model: Model) -> None:
    for i in range(60):
        stream = model.stream(PROMPT, max_tokens=30, ignore_eos=True)
        closing = threading.Timer(i / 10_000, stream.close)
        closing.start()
        for _ in stream:
            pass
        closing.join()
        assert stream.finished
        assert stream.result is not None
        whole = stream.result.generated_tokens == 30
        assert stream.result.finish_reason == ("length" if whole else "cancelled")
    assert usable(model)


def test_two_readers_of_one_stream_are_told(model: Model) -> None:
    stream = model.stream(PROMPT, max_tokens=3, progress=lambda done, total: print(next(stream)))
    with pytest.raises(slmq.Error, match="reading this stream"):
        next(stream)
    assert usable(model)


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is not signal.default_int_handler,
    reason="this process does not turn SIGINT into KeyboardInterrupt",
)
@pytest.mark.parametrize("where", ["prompt", "answer"])
def test_an_interrupt_leaves_the_model_usable(model: Model, where: str) -> None:
    prompt = long_prompt(model)
    expected = model.generate(prompt, max_tokens=4, logprobs=1, ignore_eos=True)
    model.generate(PROMPT, max_tokens=1)

    def progress(done: int, total: int) -> None:
        if where == "prompt" and done > model.engine.chunk:
            signal.raise_signal(signal.SIGINT)

    stream = model.stream(prompt, progress=progress, max_tokens=10, ignore_eos=True)

    def read() -> None:
        for _ in stream:
            if where == "answer":
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        read()
    stream.close()
    assert stream.result is not None
    assert stream.result.finish_reason == "cancelled"
    after = model.generate(prompt, max_tokens=4, logprobs=1, ignore_eos=True)
    assert after.cached_tokens >= model.engine.chunk
    assert after.logprobs == expected.logprobs


def test_a_failure_passes_through_and_leaves_the_model_usable(model: Model) -> None:
    def progress(done: int, total: int) -> None:
        raise RuntimeError("no disk")

    stream = model.stream(PROMPT, progress=progress)
    with pytest.raises(RuntimeError, match="no disk"):
        next(stream)
    assert stream.finished
    assert usable(model)


# ------------------------------------------------------------------ several callers


def test_streams_of_one_thread_are_read_in_any_order(model: Model) -> None:
    args = {"max_tokens": 30, "ignore_eos": True, "logprobs": 1}
    prompts = [PROMPT, [9, *PROMPT], PROMPT[:3]]
    streams = [model.stream(prompt, **args) for prompt in prompts]
    chunks = [[next(stream)] for stream in streams]
    between = model.generate(PROMPT, max_tokens=4, ignore_eos=True)
    assert model.logits(PROMPT).shape == (len(PROMPT), model.n_vocab)
    for stream, read in zip(reversed(streams), reversed(chunks), strict=True):
        read.extend(stream)
    for prompt, read in zip(prompts, chunks, strict=True):
        alone = model.generate(prompt, **args)
        assert [chunk.token for chunk in read] == alone.tokens
        assert [chunk.logprobs for chunk in read] == alone.logprobs
    assert between.tokens == [chunk.token for chunk in chunks[0][:4]]


def test_an_answer_waits_for_a_reader_who_is_behind(model: Model) -> None:
    slow = model.stream(PROMPT, max_tokens=200, ignore_eos=True)
    next(slow)
    others = model.generate([3, *PROMPT], max_tokens=100, ignore_eos=True)
    assert others.generated_tokens == 100
    assert model.stats().generated_tokens == 100  # of finished answers: the slow one is none
    assert model.stats().running == 1
    assert sum(1 for _ in slow) == 199


def test_the_engine_is_one_threads_own(model: Model) -> None:
    stream = model.stream(PROMPT, max_tokens=50, ignore_eos=True)
    with model.exclusive() as engine:
        with pytest.raises(slmq.BusyError, match="has the engine for itself"):
            model.generate(PROMPT, max_tokens=3)
        with pytest.raises(slmq.BusyError), model.exclusive():
            pass
        with pytest.raises(slmq.BusyError):
            model.close()
        assert engine.feed(engine.sequence(), PROMPT).shape == (model.n_vocab,)
    assert sum(1 for _ in stream) == 50


def test_calls_of_two_threads_queue(model: Model) -> None:
    prompts = [[i + 1, *PROMPT] for i in range(4)]
    args = {"max_tokens": 10, "temperature": 1.0, "seed": 3, "ignore_eos": True}
    expected = [model.generate(prompt, **args).tokens for prompt in prompts]
    found: list[list[int] | None] = [None] * len(prompts)

    def work(i: int) -> None:
        with model.stream(prompts[i], **args) as stream:
            tokens = [chunk.token for chunk in stream if chunk.token is not None]
        found[i] = tokens

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == expected


def test_another_thread_does_not_wait_for_an_open_stream(model: Model) -> None:
    stream = model.stream(PROMPT, ignore_eos=True)
    next(stream)
    found: list[int] = []
    other = threading.Thread(
        target=lambda: found.extend(model.generate(PROMPT, max_tokens=2, ignore_eos=True).tokens)
    )
    other.start()
    other.join(60)
    assert len(found) == 2
    stream.close()


def test_a_stream_may_move_to_another_thread(model: Model) -> None:
    stream = model.stream(PROMPT, max_tokens=6, ignore_eos=True)
    tokens = [next(stream).token]
    rest = threading.Thread(target=lambda: tokens.extend(chunk.token for chunk in stream))
    rest.start()
    rest.join(60)
    assert tokens == model.generate(PROMPT, max_tokens=6, ignore_eos=True).tokens


def test_a_call_that_waits_while_the_model_closes_is_told(tiny_model_path: Path) -> None:
    model = slmq.load(tiny_model_path, n_ctx=64)
    stream = model.stream(PROMPT, ignore_eos=True)
    next(stream)
    late: list[BaseException | None] = []

    def call() -> None:
        try:
            model.generate(PROMPT, max_tokens=2)
        except ValueError as error:
            late.append(error)
        else:
            late.append(None)

    waiting = threading.Thread(target=call)
    waiting.start()
    waiting.join(0.05)
    model.close()
    waiting.join(60)
    # It may have had its turn between the stream and the closing, but it never hangs or crashes.
    assert len(late) == 1
    assert late[0] is None or "closed" in str(late[0])
