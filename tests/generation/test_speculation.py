"""Guesses never change an answer, and pay where it copies; lookup against a plain search."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from answers import Alone, open_tiny, request, said

from slmq.generation.scheduler import Scheduler
from slmq.generation.speculation import LONGEST, NGRAM, Lookup, best_length
from slmq.generation.stream import TokenStream

COPIED = [5, 17, 3, 60, 21, 9, 44] * 12


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 1.0, "seed": 7},
        {"temperature": 1.0, "seed": 8, "top_p": 0.5, "repetition_penalty": 1.2},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"stop": ["ab", 17]},
        # A bias that makes it say the same over and over: guesses are right, at any temperature.
        {"temperature": 1.0, "seed": 9, "logit_bias": {60: 60.0}},
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_with_and_without(
    tiny_model_path: Path, params: dict[str, object], threads: int
) -> None:
    engine = open_tiny(tiny_model_path, threads=threads)
    asked = [request(COPIED[i:], max_tokens=120, logprobs=2, **params) for i in range(3)]
    alone = Alone(engine)
    expected = [alone(one)[-1].result for one in asked]
    for speculate in (False, True):
        scheduler = Scheduler(engine, drive=False, speculate=speculate)
        # As if further rows were free: guesses as long as they may be.
        scheduler._cost._terms[:] = [1e-2, 1e-7, 0.0, 0.0]
        scheduler._cost.learn = lambda work, seconds: None  # type: ignore[method-assign]
        streams = [TokenStream(scheduler, scheduler.submit(one)) for one in asked]
        results = [list(stream)[-1].result for stream in streams]
        assert [said(r) for r in results if r] == [said(r) for r in expected if r]
        assert len(results) == 3
        stats = scheduler.stats()
        if not speculate:
            assert stats.drafted_tokens == 0
        assert stats.accepted_tokens <= stats.drafted_tokens
        if speculate and "logit_bias" in params:
            assert stats.accepted_tokens > stats.generated_tokens / 2
            assert stats.runs < stats.generated_tokens / 3
        with scheduler.exclusive():
            scheduler._pages.store.clear()
    assert engine.plan.cache.pages_in_use == 0


def test_lookup_finds_what_a_search_finds() -> None:
    """The latest place where the last three tokens stood, for texts that grow by any number."""
    rng = random.Random(1)
    for _ in range(50):
        lookup, ids = Lookup(), [rng.randrange(3) for _ in range(rng.randrange(8))]
        for _ in range(60):
            ids += [rng.randrange(3) for _ in range(rng.randint(1, 4))]
            found = lookup.guess(ids, LONGEST)
            places = [
                end for end in range(NGRAM, len(ids)) if ids[end - NGRAM : end] == ids[-NGRAM:]
            ]
            whole = ids + ids[places[-1] :] * LONGEST if places else []
            assert found == (whole[places[-1] : places[-1] + LONGEST] if places else [])
            assert lookup.guess(ids, LONGEST) == []  # nothing has been said since


def test_guessing_pauses_and_begins_again() -> None:
    """Misses bring pauses that grow; what would have been guessed meanwhile brings it back."""
    lookup, ids = Lookup(), [1, 2, 3] * 4
    asked = 0
    for _ in range(200):
        ids.append(ids[-3])
        guess = lookup.guess(ids, 4)
        if guess:
            asked += 1
            lookup.told(len(guess), 0)
    assert 2 < asked < 20
    lookup = Lookup()
    lookup.rate = 0.01
    for _ in range(40):
        ids.append(ids[-3])
        lookup.guess(ids, best_length(lookup.rate, 1e-3, 5e-4, 0))
    assert lookup.rate > 0.95
    assert best_length(lookup.rate, 1e-3, 1e-4, 12) == 12
    assert best_length(0.01, 1e-3, 5e-4, 12) == 0
    assert best_length(0.9, 0.0, 1e-3, 12) == 0  # a row costs as much as a run
