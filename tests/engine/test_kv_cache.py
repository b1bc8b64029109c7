"""Pages of the cache: their limit, sharing and copying, and runs that are cancelled."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
from answers import open_tiny

import slmq._native as _native
from slmq.engine.engine import Engine
from slmq.engine.sequence import TokenSequence
from slmq.errors import CacheFullError


@pytest.fixture(params=[1, 2])
def engine(tiny_model_path: Path, request: pytest.FixtureRequest) -> Engine:
    return open_tiny(tiny_model_path, threads=request.param, chunk=512)


def fed(engine: Engine, count: int, first: int = 1) -> TokenSequence:
    sequence = engine.sequence()
    engine.feed(sequence, [(first + 7 * i) % 250 for i in range(count)])
    return sequence


def test_pages_needed_is_what_a_run_takes(engine: Engine) -> None:
    """Random lengths, forks, truncations and runs that stop early: counted before and after."""
    rng = random.Random(3)
    cache = engine.plan.cache
    sequences = [fed(engine, 70)]
    for _ in range(400):
        sequence = rng.choice(sequences)
        length = len(sequence.tokens)
        what = rng.choice(["run", "run", "stop", "fork", "truncate", "close"])
        if what in ("run", "stop") and length < 400:
            count = rng.choice([1, 5, 63, 64, 65])
            before, needed = cache.pages_in_use, sequence.pages_needed(count)
            if what == "run":
                engine.feed(sequence, [3] * count, logits="none")
            else:
                ids = np.full(count, 3, np.int32)
                engine.plan.native.run(ids, [(sequence.native, count)], np.empty(0, np.int32), 4)
            assert cache.pages_in_use == before + needed
            assert sequence.pages_needed(0 if what == "run" else count) == 0
        elif what == "fork" and len(sequences) < 12:
            before = cache.pages_in_use
            sequences.append(sequence.fork(rng.randint(0, length)))
            assert cache.pages_in_use == before
        elif what == "truncate":
            sequence.truncate(rng.randint(0, length))
        elif what == "close" and len(sequences) > 1:
            sequences.remove(sequence)
            sequence.close()
    for sequence in sequences:
        sequence.close()
    assert cache.pages_in_use == 0


def test_the_limit_is_checked_before_anything_changes(engine: Engine) -> None:
    one, two = fed(engine, 60), fed(engine, 60, 9)
    engine.limit_cache(3 * engine.page_bytes)
    expected = engine.feed(one.fork(), [4] * 3).copy()
    with pytest.raises(CacheFullError, match=r"may hold 3 pages .* are in use and 5 more"):
        engine.run([(one, [4] * 70, 1), (two, [4] * 150, 1)])
    assert (len(one.tokens), len(two.tokens), engine.plan.cache.pages_in_use) == (60, 60, 2)
    assert (engine.feed(one, [4] * 3) == expected).all()
    engine.limit_cache(engine.page_bytes)  # below what is in use: that stays
    assert engine.plan.cache.pages_in_use == 2
    engine.feed(two, [4])  # and its last page goes on to be filled
    with pytest.raises(CacheFullError, match="may hold 1 pages"):
        engine.feed(engine.sequence(), [1])
    with pytest.raises(ValueError, match="one page"):
        engine.limit_cache(1)
    with pytest.raises(ValueError, match="at least 1 page"):
        engine.plan.cache.limit = 0


def test_trim_gives_back_slabs_that_nobody_uses(engine: Engine) -> None:
    cache = engine.plan.cache
    sequences = [fed(engine, 500, i) for i in range(20)]
    kept = sequences.pop(7)
    expected = engine.feed(kept.fork(), [5]).copy()
    full = cache.allocated_bytes
    for sequence in sequences:
        sequence.close()
    assert cache.allocated_bytes == full
    assert cache.trim() == full - cache.allocated_bytes
    assert cache.allocated_bytes < full / 4
    assert cache.trim() == 0
    assert (engine.feed(kept.fork(), [5]) == expected).all()
    again = [
        fed(engine, 500, i) for i in range(7)
    ]  # slabs are taken again, and hold what they must
    assert (engine.feed(again[3], [6]) == engine.feed(fed(engine, 500, 3), [6])).all()
    assert (engine.feed(kept, [5]) == expected).all()


@pytest.mark.parametrize("length", [64, 70, 128])
def test_a_fork_after_a_run_that_stopped_early(engine: Engine, length: int) -> None:
    """Pages behind the partial one are taken already: it is the partial one that must be copied."""
    ids = np.array([8] * 150, np.int32)
    expected = engine.feed(fed(engine, length), ids).copy()
    sequence = fed(engine, length)
    engine.plan.native.run(ids, [(sequence.native, 150)], np.empty(0, np.int32), 4)
    fork = sequence.fork()
    other = engine.feed(fork, [9] * 150).copy()
    assert (engine.feed(sequence, ids) == expected).all()
    assert (engine.feed(fed(engine, length), [9] * 150) == other).all()


def test_a_cancelled_run_leaves_everything_as_it_was(engine: Engine) -> None:
    """The flag set before the run, and at any moment within it."""
    ids = [(3 * i) % 250 for i in range(300)]
    expected = engine.feed(fed(engine, 70), ids).copy()
    sequence = fed(engine, 70)
    flag = _native.CancelFlag()
    assert not flag.is_set
    flag.set()
    assert engine.run([(sequence, ids, 1)], cancel=flag) is None
    assert len(sequence.tokens) == sequence.native.length == 70
    with pytest.raises(ValueError, match=r"run_outputs|run\(\)"):
        engine.plan.native.run_outputs(np.zeros(1, np.int32))
    cancelled = 0
    for i in range(40):
        flag = _native.CancelFlag()
        fork = sequence.fork()
        timer = threading.Timer(i * 1e-4, flag.set)
        timer.start()
        blocks = engine.run([(fork, ids, 1)], cancel=flag)
        timer.join()
        if blocks is None:
            cancelled += 1
            assert len(fork.tokens) == fork.native.length == 70
            again = engine.run([(fork, ids, 1)])
            assert again is not None
            blocks = again
        assert (np.concatenate(list(blocks))[0] == expected).all()
        fork.close()
    assert cancelled > 0
    assert (engine.feed(sequence, ids) == expected).all()


def test_a_fork_is_checked(engine: Engine) -> None:
    sequence = fed(engine, 10)
    for length in (-1, 11):
        with pytest.raises(ValueError, match=rf"fork: expected 0..10, got {length}"):
            sequence.fork(length)
    with pytest.raises(ValueError, match="pages_needed: expected 0 or more"):
        sequence.pages_needed(-1)
    sequence.close()
    with pytest.raises(ValueError, match="closed"):
        sequence.fork()
