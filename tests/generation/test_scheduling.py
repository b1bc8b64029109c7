"""Who takes part in a run, who waits, who is refused; and whose fault stays whose."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from answers import N_CTX, Alone, open_tiny, request, said

from slmq.engine.engine import Engine
from slmq.errors import BusyError, CacheFullError, ClosedError, DeadlineError
from slmq.generation.answer import Request
from slmq.generation.model import Model
from slmq.generation.planning import LEAST_PROMPT_ROWS, READING_STEPS
from slmq.generation.scheduler import Scheduler
from slmq.generation.stream import TokenStream

Runs = list[dict[int, int]]  # rows of each sequence, by its identity


@pytest.fixture
def engine(tiny_model_path: Path) -> Iterator[Engine]:
    engine = open_tiny(tiny_model_path, chunk=64)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def alone(tiny_model_path: Path) -> Alone:
    return Alone(open_tiny(tiny_model_path))


def watched(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """What every run of an engine takes up, from now on."""
    runs: Runs = []
    real = engine.run

    def run(batch, **rest):  # type: ignore[no-untyped-def]
        runs.append({id(sequence): len(tokens) for sequence, tokens, _ in batch})
        return real(batch, **rest)

    monkeypatch.setattr(engine, "run", run)
    return runs


def opened(scheduler: Scheduler, asked: Request) -> TokenStream:
    return TokenStream(scheduler, scheduler.submit(asked))


def text_of(length: int, first: int = 0) -> list[int]:
    return [(first + 5 * i + i // 40) % 250 for i in range(length)]


def drain(*streams: TokenStream) -> None:
    for stream in streams:
        while not stream.finished and stream.poll() is not None:
            pass


# ------------------------------------------------------------------ runs


def test_a_prompt_beside_decoding(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets what the budget leaves, and at least 16 rows even when that is nothing."""
    scheduler = Scheduler(engine, drive=False, speculate=False)
    decoding = [opened(scheduler, request(text_of(5, i), max_tokens=200)) for i in range(4)]
    for _ in range(3):
        scheduler.step()
    for budget_s in (0.0, 1e9):
        scheduler._step_s = budget_s
        runs = watched(engine, monkeypatch)
        newcomer = opened(scheduler, request(text_of(250, 7 + int(budget_s > 0)), max_tokens=1))
        while newcomer.poll() is None:
            scheduler.step()
            drain(*decoding)
        rows = [max(run.values()) for run in runs]
        assert all(len(run) == 5 for run in runs)
        assert sum(rows) == 250 - newcomer.result.cached_tokens if newcomer.result else False
        most = LEAST_PROMPT_ROWS if budget_s == 0 else engine.chunk - len(decoding)
        assert all(n == most for n in rows[:-1])
    # In between it is the budget that decides.
    scheduler._cost._terms[:] = [4e-3, 1e-3, 0.0, 0.0]
    monkeypatch.setattr(scheduler._cost, "learn", lambda work, seconds: None)
    scheduler._step_s = 40e-3 / READING_STEPS
    runs = watched(engine, monkeypatch)
    newcomer = opened(scheduler, request(text_of(250, 9), max_tokens=1))
    while newcomer.poll() is None:
        scheduler.step()
        drain(*decoding)
    assert {max(run.values()) for run in runs[:-1]} == {40 - 4 - len(decoding)}
    scheduler.close()


@pytest.mark.parametrize(
    ("whole", "batch", "rows"),
    [
        (False, False, 16),  # the readers of four streams wait: the least that a prompt gets
        (True, False, 40),  # what is worth reading the weights for: 10 ms of every 80
        (True, True, 60),  # nobody waits at all: a chunk of 64, four of whose rows decode
    ],
)
def test_a_prompt_beside_answers_that_nobody_reads_yet(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, whole: bool, batch: bool, rows: int
) -> None:
    scheduler = Scheduler(engine, drive=False, speculate=False, step_ms=5.0)
    monkeypatch.setattr(scheduler._cost, "learn", lambda work, seconds: None)
    scheduler._cost._terms[:] = [10e-3, 1.5e-3, 0.0, 1e-3]
    decoding = [
        opened(scheduler, replace(request(text_of(5, i), max_tokens=99), whole=whole, batch=batch))
        for i in range(4)
    ]
    for _ in range(3):
        scheduler.step()
        drain(*decoding)
    runs = watched(engine, monkeypatch)
    newcomer = opened(scheduler, replace(request(text_of(250, 9), max_tokens=1), batch=batch))
    while newcomer.poll() is None:
        scheduler.step()
        drain(*decoding)
    assert {max(run.values()) for run in runs[:-1]} == {rows}
    scheduler.close()


def test_alone_a_prompt_takes_whole_chunks(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(engine, drive=False, step_ms=0.0)
    runs = watched(engine, monkeypatch)
    list(opened(scheduler, request(text_of(250), max_tokens=1)))
    assert [sum(run.values()) for run in runs] == [64, 64, 64, 58]
    scheduler.close()


def test_a_shared_prefix_is_computed_once(
    engine: Engine, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(engine, drive=False, speculate=False)
    runs = watched(engine, monkeypatch)
    asked = [request([*text_of(230), 7, i], max_tokens=3) for i in range(20)]
    streams = [opened(scheduler, one) for one in asked]
    results = [list(stream)[-1].result for stream in streams]
    assert [said(r) for r in results if r] == [
        said(r) for one in asked if (r := alone(one)[-1].result)
    ]
    prompts = sum(sum(run.values()) for run in runs) - 20 * 2
    assert prompts == 232 + 19  # the last token of each is its own
    other = opened(scheduler, replace(asked[0], salt="other"))
    assert list(other)[-1].result
    assert other.result is not None
    assert other.result.cached_tokens == 0
    scheduler.close()


def test_batches_go_last(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the queue, in a prompt, for a place and in decoding; never to a standstill."""
    scheduler = Scheduler(engine, drive=False, speculate=False, most_running=4)
    slow = [
        opened(scheduler, replace(request(text_of(100, i), max_tokens=9), batch=True))
        for i in range(6)
    ]
    scheduler.step()
    jobs = [stream._job for stream in slow]
    assert sum(job.sequence is not None for job in jobs) == 4
    quick = [opened(scheduler, request(text_of(40, 50 + i), max_tokens=9)) for i in range(3)]
    scheduler.step()  # they take the places of three batches and all of the next run
    assert all(stream._job.cached > 0 for stream in quick[:2])
    assert sum(job.sequence is not None for job in jobs) == 1
    scheduler._step_s = 0.0
    while any(stream.result is None for stream in quick):
        scheduler.step()
        drain(*quick)
    assert all(stream._job.answer.finish_reason is None for stream in slow)
    for stream in slow:
        list(stream)
    assert all(stream.result is not None for stream in slow)
    scheduler.close()


def test_batches_that_decode_take_turns(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside an answer that somebody waits for, with no time left: one row in every run."""
    scheduler = Scheduler(engine, drive=False, speculate=False)
    slow = [
        opened(scheduler, replace(request(text_of(3, i), max_tokens=50), batch=True))
        for i in range(4)
    ]
    for _ in range(2):
        scheduler.step()
    quick = opened(scheduler, request(text_of(3, 90), max_tokens=100))
    scheduler.step()
    scheduler._step_s = 0.0
    runs = watched(engine, monkeypatch)
    for _ in range(8):
        scheduler.step()
        drain(quick, *slow)
    assert [len(run) for run in runs] == [2] * 8
    counts = [sum(id(s._job.sequence) in run for run in runs) for s in (quick, *slow)]
    assert counts == [8, 2, 2, 2, 2]
    scheduler.close()


# ------------------------------------------------------------------ waiting


def test_a_large_request_is_not_passed_for_ever(tiny_model_path: Path) -> None:
    """Small ones that would fit keep coming; it begins as soon as those before it are done."""
    engine = open_tiny(tiny_model_path, pages=9)
    scheduler = Scheduler(engine, drive=False, speculate=False)
    small = [opened(scheduler, request(text_of(60, i), max_tokens=40)) for i in range(3)]
    for _ in range(4):
        scheduler.step()
    large = opened(scheduler, request(text_of(400, 99), max_tokens=20))
    steps = 0
    while large._job.began_s is None:
        steps += 1
        assert steps < 200
        scheduler.step()
        drain(*small)
        small.append(opened(scheduler, request(text_of(60, steps % 90), max_tokens=40)))
    assert scheduler.stats().preemptions == 0
    scheduler.close()


def test_whoever_is_behind_gives_its_place(engine: Engine, alone: Alone) -> None:
    """More streams than places, all read by one thread, the last one first."""
    for drive in (False, True):
        scheduler = Scheduler(engine, drive=drive, most_running=3)
        asked = [request(text_of(9, i), max_tokens=40, logprobs=1) for i in range(12)]
        streams = [opened(scheduler, one) for one in asked]
        for one, stream in reversed(list(zip(asked, streams, strict=True))):
            result = list(stream)[-1].result
            assert result is not None
            expected = alone(one)[-1].result
            assert expected is not None
            assert said(result) == said(expected)
        with scheduler.exclusive():
            scheduler._pages.store.clear()
        if drive:
            scheduler.close()


def test_the_queue_has_an_end(engine: Engine) -> None:
    scheduler = Scheduler(engine, drive=False, most_running=1, most_waiting=3)
    streams = [opened(scheduler, request([1, i], max_tokens=30)) for i in range(3)]
    with pytest.raises(BusyError, match="3 requests wait already") as caught:
        opened(scheduler, request([1, 2], max_tokens=5))
    assert caught.value.retry_after_s is not None
    assert 0 < caught.value.retry_after_s < 10
    assert scheduler.stats().submitted == 3
    for stream in streams:
        list(stream)
    assert list(opened(scheduler, request([1, 2], max_tokens=5)))
    scheduler.close()


def test_what_can_never_fit_is_refused_at_once(tiny_model_path: Path) -> None:
    engine = open_tiny(tiny_model_path, pages=4)
    scheduler = Scheduler(engine, drive=False)
    with pytest.raises(CacheFullError, match=r"150 tokens .* 50, but .* hold 192 positions"):
        scheduler.submit(request(text_of(150), max_tokens=50))
    assert scheduler.stats().submitted == 0
    assert len(list(opened(scheduler, request(text_of(150), max_tokens=42)))) == 42
    scheduler.close()


def test_a_cache_that_the_engine_s_own_users_fill(tiny_model_path: Path) -> None:
    """An answer that has no pages ends with an error, and others can be made once there are."""
    engine = open_tiny(tiny_model_path, pages=6)
    scheduler = Scheduler(engine)
    with scheduler.exclusive():
        held = engine.sequence()
        engine.feed(held, text_of(260))
    with pytest.raises(CacheFullError, match=r"may hold 6 pages .* fill it"):
        list(opened(scheduler, request(text_of(100, 3), max_tokens=100)))
    held.close()
    assert len(list(opened(scheduler, request(text_of(100, 3), max_tokens=100)))) == 100
    scheduler.close()


def test_deadlines(engine: Engine) -> None:
    scheduler = Scheduler(engine)
    asked = replace(request([1, 2], max_tokens=400), deadline_s=0.05)
    stream = opened(scheduler, asked)
    with scheduler.exclusive():
        time.sleep(0.1)
    with pytest.raises(DeadlineError, match=r"after 0.05 s; it has \d+ tokens"):
        list(stream)
    assert stream.finished
    with scheduler.exclusive(), pytest.raises(BusyError, match="for itself"):
        next(opened(scheduler, request([1], max_tokens=1)))
    for wrong in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="deadline_s: expected a positive number"):
            replace(asked, deadline_s=wrong)
    with pytest.raises(TypeError, match="deadline_s: expected a number of seconds or None"):
        replace(asked, deadline_s="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="salt: expected something hashable, got list"):
        replace(asked, salt=[1])  # type: ignore[arg-type]
    scheduler.close()


# ------------------------------------------------------------------ faults


def test_a_listener_that_raises_ends_its_answer_alone(engine: Engine, alone: Alone) -> None:
    scheduler = Scheduler(engine)
    asked = request(text_of(9), max_tokens=60)
    other, doomed = opened(scheduler, asked), opened(scheduler, request([3], max_tokens=300))

    def closed_loop() -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the event loop is closed")

    doomed.listen(closed_loop)
    result = list(other)[-1].result
    expected = alone(asked)[-1].result
    assert result is not None
    assert expected is not None
    assert said(result) == said(expected)
    stats = scheduler.stats()
    assert (stats.finished, stats.cancelled, stats.failed) == (1, 1, 0)
    scheduler.close()


def test_a_run_that_fails_for_lack_of_memory(
    engine: Engine, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one steps aside, what is kept goes back to the system; nobody's answer changes."""
    scheduler = Scheduler(engine, drive=False)
    list(opened(scheduler, request(text_of(200, 30), max_tokens=2)))
    asked = [request(text_of(70, i), max_tokens=8, logprobs=0) for i in range(3)]
    streams = [opened(scheduler, one) for one in asked]
    real, calls = engine.run, 0

    def run(batch, **rest):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 4:
            raise MemoryError("std::bad_alloc")
        return real(batch, **rest)

    monkeypatch.setattr(engine, "run", run)
    for one, stream in zip(asked, streams, strict=True):
        result = list(stream)[-1].result
        expected = alone(one)[-1].result
        assert result is not None
        assert expected is not None
        assert said(result) == said(expected)
    assert scheduler.stats().preemptions == 1
    calls = 3
    with pytest.raises(MemoryError, match="bad_alloc"):
        list(opened(scheduler, asked[0]))
    assert engine.plan.cache.pages_in_use == 0
    assert len(list(opened(scheduler, asked[0]))) == 8
    scheduler.close()


def test_the_engine_is_given_in_turn(tiny_model_path: Path) -> None:
    """Whoever asks for the engine beside streams without end gets it after the run under way."""
    engine = open_tiny(tiny_model_path)
    scheduler = Scheduler(engine, speculate=False)
    stop = threading.Event()

    def talk(which: int) -> None:
        while not stop.is_set():
            with opened(scheduler, request([which, 1], max_tokens=400)) as stream:
                for _ in stream:
                    if stop.is_set():
                        break

    threads = [threading.Thread(target=talk, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    runs = []
    for _ in range(50):
        before = scheduler.stats().runs
        with scheduler.exclusive():
            runs.append(scheduler.stats().runs - before)
    stop.set()
    for thread in threads:
        thread.join(60)
    # Where a busy system takes the processor away before this thread has asked, it is more.
    assert statistics.median(runs) <= 2
    scheduler.close()


def test_exclusive_makes_room(tiny_model_path: Path) -> None:
    """Whoever has the engine for itself can fill a context, though answers held the pages."""
    engine = open_tiny(tiny_model_path, pages=9)
    with Model(engine, Scheduler(engine)) as model:
        asked = text_of(300, 3)
        whole = model.generate(asked, max_tokens=60, ignore_eos=True, logprobs=1)
        stream = model.stream(asked, max_tokens=60, ignore_eos=True, logprobs=1)
        next(stream)
        assert model.logits(text_of(N_CTX, 5)).shape[0] == N_CTX
        list(stream)
        assert stream.result is not None
        assert said(stream.result) == said(whole)


def test_closing_under_answers(tiny_model_path: Path) -> None:
    engine = open_tiny(tiny_model_path)
    model = Model(engine, Scheduler(engine))
    streams = [model.stream([i, 2], max_tokens=400, ignore_eos=True) for i in range(5)]
    said_by_then = [next(stream).token for stream in streams]
    model.close()
    for stream, token in zip(streams, said_by_then, strict=True):
        assert stream.finished
        assert stream.result is not None
        assert stream.result.finish_reason == "cancelled"
        assert stream.result.tokens == [token]
        assert list(stream) == []
    for use in (lambda: model.generate([1]), lambda: engine.plan, engine.sequence):
        with pytest.raises(ClosedError, match="is closed"):
            use()
    with pytest.raises(ClosedError, match="is closed"):
        model.exclusive().__enter__()
    assert model.stats().running == 0
    model.close()


def test_what_is_told_of_an_answer(engine: Engine) -> None:
    """One token suffices to tell how fast its prompt was read; a cut answer tells what was read."""
    scheduler = Scheduler(engine, drive=False)
    only = next(opened(scheduler, request(text_of(100), max_tokens=1)))
    assert only.prompt_tps > 0
    assert only.result is not None
    assert only.result.prompt_tps > 0
    stream = opened(scheduler, request(text_of(100), max_tokens=30))
    next(stream)
    for _ in range(5):
        scheduler.step()
    scheduler.cancel(stream._job)
    last = next(stream)
    assert (last.finish_reason, last.generated_tokens) == ("cancelled", 1)
    scheduler.close()


def test_polling_goes_past_progress(engine: Engine) -> None:
    """The last report of a prompt and the only chunk come together; one poll gives the chunk."""
    scheduler = Scheduler(engine, drive=False)
    seen: list[int] = []
    job = scheduler.submit(replace(request(text_of(9), max_tokens=1), follow=True))
    stream = TokenStream(scheduler, job, lambda done, total: seen.append(done))
    assert stream.poll() is None
    scheduler.step()
    chunk = stream.poll()
    assert chunk is not None
    assert chunk.result is not None
    assert seen == [9]
    scheduler.close()
