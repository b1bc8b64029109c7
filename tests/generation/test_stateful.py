"""A model with a state beside its cache: every answer has the bits that it has alone."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from answers import N_CTX, Alone, open_tiny, random_request, request, said
from stateful_files import lfm2_folder, lfm2_moe_folder, qwen3_5_folder

import slmq
from slmq.engine.engine import Engine
from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.generation.answer import Request
from slmq.generation.draft import Draft
from slmq.generation.results import GenerationResult
from slmq.generation.scheduler import Scheduler
from slmq.generation.stream import TokenStream

COPIED = [5, 17, 3, 60, 21, 9, 44] * 20


FOLDERS = {"lfm2": lfm2_folder, "lfm2_moe": lfm2_moe_folder, "qwen3_5": qwen3_5_folder}


@pytest.fixture(scope="module", params=FOLDERS.values(), ids=FOLDERS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = request.param(tmp_path_factory.mktemp("stateful") / "tiny")
    return folder


@pytest.fixture(scope="module")
def alone(path: Path) -> Alone:
    return Alone(open_tiny(path))


def finished(scheduler: Scheduler, asked: list[Request]) -> list[GenerationResult]:
    return [TokenStream(scheduler, scheduler.submit(one)).finish() for one in asked]


def together(scheduler: Scheduler, asked: list[Request]) -> list[GenerationResult]:
    streams = [TokenStream(scheduler, scheduler.submit(one)) for one in asked]
    return [stream.finish() for stream in streams]


def expected(alone: Alone, asked: list[Request]) -> list[tuple[object, ...]]:
    return [said(result) for one in asked if (result := alone(one)[-1].result)]


def drafted(engine: Engine, path: Path) -> Scheduler:
    """A scheduler whose small model always guesses, as if it cost nothing."""
    small = open_engine(path, LoadOptions(n_ctx=N_CTX, n_threads=1), name="small")
    small.limit_cache(60 * small.page_bytes)
    draft = Draft(small, engine)
    scheduler = Scheduler(engine, drive=False, draft=draft)
    draft._cost._terms[:] = [1e-7, 1e-9, 0.0, 0.0]
    draft._cost.learn = lambda work, seconds: None  # type: ignore[method-assign]
    return free_rows(scheduler)


def free_rows(scheduler: Scheduler) -> Scheduler:
    """As if further rows were free: guesses as long as they may be."""
    scheduler._cost._terms[:] = [1e-2, 1e-7, 0.0, 0.0]
    scheduler._cost.learn = lambda work, seconds: None  # type: ignore[method-assign]
    return scheduler


@pytest.mark.parametrize("pages", [None, 14])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_as_alone(path: Path, alone: Alone, pages: int | None, threads: int) -> None:
    """Neighbours, shared prefixes, chunks of any size, and answers that step aside."""
    rng = random.Random(3)
    stems = [[rng.randrange(256) for _ in range(n)] for n in (40, 130, 200)]
    asked = [replace(random_request(rng, stems), follow=False) for _ in range(30)]
    asked += [request(stems[2], max_tokens=90), request([*stems[1], 7], max_tokens=90)]
    engine = open_tiny(path, threads=threads, pages=pages)
    scheduler = Scheduler(engine, drive=False, most_running=8)
    for _ in range(2):  # the second time much is found in the store
        results = together(scheduler, asked)
        assert [said(result) for result in results] == expected(alone, asked)
    assert sum(result.cached_tokens for result in results) > 300
    cache = engine.plan.cache
    if pages is not None:
        assert scheduler.stats().preemptions > 0
        assert cache.pages_in_use <= pages
    with scheduler.exclusive():
        scheduler._pages.store.clear()
    assert cache.pages_in_use == 0
    scheduler.close()


@pytest.mark.parametrize("drafting", [False, True])
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "logit_bias": {60: 9.0}, "seed": 9}])
def test_guesses_that_are_taken_back(
    path: Path, alone: Alone, params: dict[str, object], drafting: bool
) -> None:
    """Behind wrong guesses the state goes back to where it was before the run."""
    asked = [request(COPIED[i:], max_tokens=60, logprobs=2, **params) for i in range(3)]
    engine = open_tiny(path)
    scheduler = drafted(engine, path) if drafting else free_rows(Scheduler(engine, drive=False))
    results = together(scheduler, asked)
    assert [said(result) for result in results] == expected(alone, asked)
    stats = scheduler.stats()
    assert stats.drafted_tokens > 0
    if drafting:
        assert stats.accepted_tokens > 20
    scheduler.close()


def test_what_a_prompt_takes_over(path: Path, alone: Alone) -> None:
    """All of what it continues; of what it shares in part, up to the last page end."""
    engine = open_tiny(path)
    scheduler = Scheduler(engine, drive=False, speculate=False)
    prompt = COPIED[:100]
    (first,) = finished(scheduler, [request(prompt, max_tokens=5)])
    fed = [*prompt, *first.tokens[:-1]]  # nobody has fed the last token
    turns = [request([*fed, 9, 8, 7], max_tokens=3), request([*prompt[:90], 1, 2], max_tokens=3)]
    results = finished(scheduler, turns)
    assert [said(result) for result in results] == expected(alone, turns)
    assert [result.cached_tokens for result in results] == [len(fed), 64]
    scheduler.close()


def test_labels(path: Path) -> None:
    """Texts and labels that share what they begin with: forks of one sequence."""
    texts = ["a short one", "another, which is much longer than the first " * 3, "b"]
    with slmq.load(path, n_ctx=512) as model:
        labels = ["good", "bad", "so so"]
        found = [model.label(text, labels).probabilities for text in texts]
        again = [one.probabilities for one in model.label(texts[::-1], labels)]
    assert found == again[::-1]
    assert found[0] != found[1]


def test_a_cache_too_small_for_one_state(path: Path) -> None:
    with pytest.raises(ValueError, match=r"one page of 64 positions of 'tiny' and its state"):
        open_tiny(path, pages=1)
