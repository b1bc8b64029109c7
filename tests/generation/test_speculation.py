"""Guesses never change an answer, and pay where it copies; lookup against a plain search."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from answers import Alone, open_tiny, request, said

from slmq.engine.sequence import common_length
from slmq.generation.scheduler import Scheduler
from slmq.generation.speculation import ALIKE, LONGEST, PLACES, Lookup, best_length
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


def search(ids: list[int]) -> tuple[int, int]:
    """The latest of the last places behind the last two tokens where most tokens were the same."""
    places = [end for end in range(2, len(ids)) if ids[end - 2 : end] == ids[-2:]]
    best = longest = 0
    for place in reversed(places[-PLACES:]):
        alike = 2
        while alike < min(place, ALIKE) and ids[place - alike - 1] == ids[-alike - 1]:
            alike += 1
        if alike > longest:
            best, longest = place, alike
    return best, longest


def test_lookup_finds_what_a_search_finds() -> None:
    """Where most of the last tokens stood before, for texts that grow by any number."""
    rng = random.Random(1)
    for _ in range(50):
        lookup, ids = Lookup(), [rng.randrange(3) for _ in range(rng.randrange(8))]
        lookup.chance = lambda alike: 1.0  # type: ignore[method-assign]
        for _ in range(60):
            ids += [rng.randrange(3) for _ in range(rng.randint(1, 4))]
            found = lookup.guess(ids, LONGEST, 1.0, 1e-9)
            place, _ = search(ids)
            whole = ids + ids[place:] * LONGEST
            assert found == (whole[place : place + LONGEST] if place else [])


def test_guessing_stops_and_begins_again() -> None:
    """What was wrong is not asked any more; what would have been right brings it back."""
    text = [t for i in range(100) for t in (7, 8, 100 + i)] + [1, 2, 3] * 60
    lookup, said, guessed = Lookup(), 3, list[tuple[int, int]]()
    while said < len(text):
        guess = lookup.guess(text[:said], 4, 1e-3, 1e-4)
        right = common_length(np.array(guess), np.array(text[said:]))
        guessed.append((said, len(guess)))
        if guess:
            lookup.told(len(guess), right)
        said += right + 1
    misses = [place for place, length in guessed if length and place < 300]
    assert 0 < len(misses) < 20
    assert max(misses) < 150
    assert [length for _, length in guessed[-20:-1]] == [4] * 19


def test_the_more_is_alike_the_longer_the_guess() -> None:
    """Each answer learns how far to trust two tokens that stood together before, or sixteen."""
    lookup = Lookup()
    ids = list(range(40))
    lengths = []
    for i in range(1, 20):
        ids.append(i)
        lengths.append(len(lookup.guess(ids, LONGEST, 3e-3, 1e-3)))
    assert lengths[0] == 0
    assert lengths == sorted(lengths)
    assert lengths[-1] > lengths[2] > 0
    for _ in range(100):
        lookup.told(1, 0)  # the last guess was from sixteen tokens
    assert lookup.chance(16) < 0.1 < lookup.chance(8)
    ids.append(20)
    assert lookup.guess(ids, LONGEST, 3e-3, 1e-3) == []


def test_a_guess_makes_way_for_a_better_one() -> None:
    lookup, ids = Lookup(), [1, 2, 3, 1, 2]
    assert lookup.guess(ids, 4, 1e-3, 1e-4, 0.9) == []
    assert lookup.guess(ids, 4, 1e-3, 1e-4, lookup.chance(2))[:1] == [3]


def test_best_length() -> None:
    assert best_length([0.95] * 12, 1e-3, 1e-4) == 12
    assert best_length([0.01] * 12, 1e-3, 5e-4) == 0
    assert best_length([0.9] * 12, 0.0, 1e-3) == 0  # a row costs as much as a run
    assert best_length([0.9, 0.9, 0.1, 0.9], 1e-3, 5e-4) == 2
