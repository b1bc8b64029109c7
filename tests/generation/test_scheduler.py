"""Chaos: answers that are made together are those that each request gets alone.

Requests arrive, are cancelled, dropped, read slowly or not at all, and share pages that do not
suffice; what comes of those that are read to their end is compared with ``==``. Real engine, tiny
random model.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from answers import N_CTX, Alone, open_tiny, random_request, said

from slmq.engine.engine import Engine
from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.errors import DeadlineError
from slmq.generation.answer import Request
from slmq.generation.draft import Draft
from slmq.generation.job import Job
from slmq.generation.results import StreamChunk
from slmq.generation.scheduler import Scheduler
from slmq.generation.stream import TokenStream

POOL = 300


def any_draft(rng: random.Random, path: Path, engine: Engine) -> Draft:
    """A draft model that is right now and then, asked any number of times, often short of pages."""
    small = open_engine(path, LoadOptions(n_ctx=N_CTX, n_threads=1, format="int4"))
    small.limit_cache(rng.choice([2, 5, 40]) * small.page_bytes)
    draft = Draft(small, engine)

    def length(job: Job, step_s: float, row_s: float, side_by_side: int, most: int) -> int:
        return max(0, rng.randint(-2, min(most, 5)))

    draft.length = length  # type: ignore[method-assign]
    return draft


class Reader:
    """A caller: what it has read, and what it has yet to do to its stream."""

    def __init__(self, rng: random.Random, scheduler: Scheduler, asked: Request) -> None:
        self.asked = asked
        self.chunks: list[StreamChunk] = []
        self.seen: list[int] = []
        self.leaves_after = rng.choice([None, None, None, 0, 1, 4, 10])
        self.how = rng.choice(["close", "drop"])
        self.slowness = rng.choice([0.0, 0.0, 0.5, 0.95])
        follow = asked.follow and self.how == "close"
        self.asked = asked = asked if follow else replace(asked, follow=False)
        progress = (lambda done, total: self.seen.append(done)) if follow else None
        self.stream: TokenStream | None = TokenStream(scheduler, scheduler.submit(asked), progress)

    def check(self, whole: list[StreamChunk]) -> None:
        """What was read is how the answer alone begins; all of it if it was read to its end."""
        told = [(c.text, c.token, c.logprobs, c.finish_reason) for c in self.chunks]
        alone = [(c.text, c.token, c.logprobs, c.finish_reason) for c in whole]
        assert self.seen == sorted(set(self.seen))
        if self.chunks and self.chunks[-1].finish_reason not in (None, "cancelled"):
            assert told == alone
            result, expected = self.chunks[-1].result, whole[-1].result
            assert result is not None
            assert expected is not None
            assert said(result) == said(expected)
            assert not self.asked.follow or self.seen[-1] == len(self.asked.prompt)
        else:
            assert told == alone[: len(told)]


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    rng = random.Random(16)
    stems = [[rng.randrange(256) for _ in range(n)] for n in (10, 64, 130, 300)]
    stems.append([5, 17, 3, 60, 21] * 20)
    return [random_request(rng, stems) for _ in range(POOL)]


@pytest.fixture(scope="module")
def alone(tiny_model_path: Path) -> Iterator[Alone]:
    engine = open_tiny(tiny_model_path)
    yield Alone(engine)
    engine.close()


def by_original(requests: list[Request]) -> dict[int, Request]:
    return {id(asked.prompt): asked for asked in requests}


@pytest.mark.parametrize("seed", range(8))
def test_step_by_step(
    tiny_model_path: Path, requests: list[Request], alone: Alone, seed: int
) -> None:
    """150 requests in one thread, which decides when a run is made."""
    rng = random.Random(seed)
    pages = [None, 40, 12, 9][seed % 4]
    engine = open_tiny(tiny_model_path, threads=1 + seed % 3, pages=pages)
    scheduler = Scheduler(
        engine,
        drive=False,
        most_running=rng.choice([2, 8, 64]),
        speculate=seed % 3 != 0,
        draft=any_draft(rng, tiny_model_path, engine) if seed % 2 else None,
    )
    originals = by_original(requests)
    readers: list[Reader] = []
    done, left = 0, 150
    for _ in range(60_000):
        if left and len(readers) < 24 and rng.random() < 0.3:
            readers.append(Reader(rng, scheduler, rng.choice(requests)))
            left -= 1
        scheduler.step()
        for reader in list(readers):
            if rng.random() < reader.slowness:
                continue
            if act(reader):
                readers.remove(reader)
                reader.check(alone(originals[id(reader.asked.prompt)]))
                done += 1
        if done == 150:
            break
    assert done == 150
    scheduler.step()
    stats = scheduler.stats()
    assert (stats.waiting, stats.running) == (0, 0)
    assert stats.submitted == 150 == stats.finished + stats.cancelled + stats.failed
    scheduler._pages.store.clear()
    assert engine.plan.cache.pages_in_use == 0
    scheduler.close()


def act(reader: Reader) -> bool:
    """Read what there is, or leave; True when this reader is done."""
    stream = reader.stream
    assert stream is not None
    if reader.leaves_after is not None and len(reader.chunks) >= reader.leaves_after:
        if reader.how == "close":
            stream.close()
        reader.stream = None
        return True
    try:
        chunk = stream.poll()
    except StopIteration:
        return True
    if chunk is not None:
        reader.chunks.append(chunk)
    return False


@pytest.mark.parametrize("seed", range(8))
def test_driven(tiny_model_path: Path, requests: list[Request], alone: Alone, seed: int) -> None:
    """Threads that read, each its own streams, some of them two at a time."""
    pages = [None, 40, 12, 9][seed % 4]
    engine = open_tiny(tiny_model_path, threads=1 + seed % 3, pages=pages)
    scheduler = Scheduler(
        engine,
        most_running=[64, 3, 8][seed % 3],
        speculate=seed % 4 != 1,
        draft=any_draft(random.Random(seed), tiny_model_path, engine) if seed % 2 == 0 else None,
    )
    originals = by_original(requests)
    faults: list[BaseException] = []
    wholes = {key: alone(asked) for key, asked in originals.items()}

    def work(which: int) -> None:
        rng = random.Random(1000 * seed + which)
        try:
            for _ in range(15):
                pair = [Reader(rng, scheduler, rng.choice(requests)) for _ in range(2)]
                while pair:
                    reader = rng.choice(pair)
                    if read(rng, reader):
                        pair.remove(reader)
                        reader.check(wholes[id(reader.asked.prompt)])
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not faults, faults[0]
    assert not any(thread.is_alive() for thread in threads)
    scheduler.close()


def read(rng: random.Random, reader: Reader) -> bool:
    """As `act`, but waits for what comes."""
    if reader.leaves_after is not None or rng.random() < 0.2:
        return act(reader)
    assert reader.stream is not None
    try:
        reader.chunks.append(next(reader.stream))
    except StopIteration:
        return True
    return False


def test_deadlines_among_others(
    tiny_model_path: Path, requests: list[Request], alone: Alone
) -> None:
    """Whoever has too little time is told; what was said until then, and others, stay the same."""
    engine = open_tiny(tiny_model_path, pages=12)
    scheduler = Scheduler(engine)
    for i, asked in enumerate(requests[:60]):
        hurried = replace(asked, follow=False, deadline_s=1e-9 if i % 3 == 0 else 60.0)
        stream = TokenStream(scheduler, scheduler.submit(hurried))
        if i % 3 == 0:
            with pytest.raises(DeadlineError, match="it has 0 tokens"):
                next(stream)
            continue
        result = list(stream)[-1].result
        expected = alone(asked)[-1].result
        assert result is not None
        assert expected is not None
        assert said(result) == said(expected)
    assert scheduler.stats().failed == 20
    scheduler.close()
