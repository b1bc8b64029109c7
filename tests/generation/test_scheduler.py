"""Chaos: answers that are made together are those that each request gets alone.

Requests arrive, are cancelled, dropped, read slowly or not at all, and share pages that do not
suffice; what comes of those that are read to their end is compared with ``==``. Real engine, tiny
random model.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from answers import N_CTX, Alone, open_tiny, random_request, said
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
EXAMPLES = int(os.environ.get("SLMQ_CHAOS_EXAMPLES", "50"))  # of 24 to 40 requests each


def any_draft(rng: random.Random, path: Path, engine: Engine) -> Draft:
    """A draft model that is right now and then, asked any number of times, often short of pages."""
    small = open_engine(path, LoadOptions(n_ctx=N_CTX, n_threads=1, format="int4"))
    small.limit_cache(rng.choice([2, 5, 40]) * small.page_bytes)
    draft = Draft(small, engine)

    def length(job: Job, step_s: float, row_s: float, side_by_side: int, most: int) -> int:
        return max(0, rng.randint(-2, min(most, 5)))

    draft.length = length  # type: ignore[method-assign]
    return draft


class Manner(NamedTuple):
    """How a caller behaves.

    Attributes
    ----------
    leaves_after : int or None
        So many chunks; None: reads to the end.
    how : str
        "close" the stream, or "drop" it.
    reads_every : int
        So many of its turns.
    """

    leaves_after: int | None
    how: str
    reads_every: int

    @classmethod
    def any(cls, rng: random.Random) -> Manner:
        """One of them."""
        leaves_after = rng.choice([None, None, None, 0, 1, 4, 10])
        return cls(leaves_after, rng.choice(["close", "drop"]), 1)


class Reader:
    """A caller: what it has read, and what it has yet to do to its stream."""

    def __init__(self, manner: Manner, scheduler: Scheduler, asked: Request) -> None:
        self.manner = manner
        self.chunks: list[StreamChunk] = []
        self.seen: list[int] = []
        self.turns = 0
        follow = asked.follow and manner.how == "close"
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


PAGES = st.sampled_from([None, 40, 12, 9])
# Which request comes, how many runs later than the one before it, and how its caller behaves.
ARRIVAL = st.tuples(
    st.integers(0, POOL - 1),
    st.integers(0, 4),
    st.booleans(),
    st.builds(
        Manner,
        leaves_after=st.sampled_from([None, None, None, 0, 1, 4, 10]),
        how=st.sampled_from(["close", "drop"]),
        reads_every=st.sampled_from([1, 1, 2, 20]),
    ),
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    arrivals=st.lists(ARRIVAL, min_size=24, max_size=40),
    pages=PAGES,
    threads=st.integers(1, 3),
    most_running=st.sampled_from([2, 8, 64]),
    speculate=st.booleans(),
    drafting=st.none() | st.integers(0, 1000),
)
def test_step_by_step(
    tiny_model_path: Path,
    requests: list[Request],
    alone: Alone,
    arrivals: list[tuple[int, int, bool, Manner]],
    pages: int | None,
    threads: int,
    most_running: int,
    speculate: bool,
    drafting: int | None,
) -> None:
    """Any arrivals in one thread, which decides when a run is made; 1,200 requests and more."""
    engine = open_tiny(tiny_model_path, threads=threads, pages=pages)
    draft = None
    if drafting is not None:
        draft = any_draft(random.Random(drafting), tiny_model_path, engine)
    scheduler = Scheduler(
        engine, drive=False, most_running=most_running, speculate=speculate, draft=draft
    )
    readers: dict[Reader, Request] = {}
    for which, runs, hurried, manner in arrivals:
        asked = requests[which]
        late = replace(asked, deadline_s=1e-9) if hurried and which % 4 == 0 else asked
        readers[Reader(manner, scheduler, late)] = asked
        for _ in range(runs):
            run_and_read(scheduler, readers, alone)
    for _ in range(60_000):
        if not readers:
            break
        run_and_read(scheduler, readers, alone)
    assert not readers
    scheduler.step()
    stats = scheduler.stats()
    assert (stats.waiting, stats.running) == (0, 0)
    assert stats.submitted == len(arrivals) == stats.finished + stats.cancelled + stats.failed
    scheduler._pages.store.clear()
    assert engine.plan.cache.pages_in_use == 0
    scheduler.close()


def run_and_read(scheduler: Scheduler, readers: dict[Reader, Request], alone: Alone) -> None:
    """One run; whoever is done afterwards is checked and goes."""
    scheduler.step()
    for reader, asked in list(readers.items()):
        reader.turns += 1
        if reader.turns % reader.manner.reads_every == 0 and act(reader):
            del readers[reader]
            reader.check(alone(asked))


def act(reader: Reader) -> bool:
    """Read what there is, or leave; True when this reader is done."""
    stream = reader.stream
    assert stream is not None
    leaves_after = reader.manner.leaves_after
    if leaves_after is not None and len(reader.chunks) >= leaves_after:
        if reader.manner.how == "close":
            stream.close()
        reader.stream = None
        return True
    try:
        chunk = stream.poll()
    except StopIteration:
        return True
    except DeadlineError:
        assert reader.asked.deadline_s is not None
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
                pair = [Reader(Manner.any(rng), scheduler, rng.choice(requests)) for _ in range(2)]
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
    if reader.manner.leaves_after is not None or rng.random() < 0.2:
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
