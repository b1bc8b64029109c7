"""A draft model never changes an answer, whatever it says; it guesses as the answer is drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from answers import N_CTX, Alone, open_tiny, request, said
from byte_tokenizer import byte_tokenizer

import slmq
from slmq.engine.engine import Engine
from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.errors import TokenizerError
from slmq.generation.answer import Request
from slmq.generation.draft import Draft
from slmq.generation.results import GenerationResult
from slmq.generation.scheduler import Scheduler
from slmq.generation.speculation import Trust, best_length
from slmq.generation.stream import TokenStream

PROMPTS = [[(11 * i + 7 * j * j) % 250 for j in range(5 + 40 * i)] for i in range(4)]
PARAMS: list[dict[str, object]] = [
    {},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 0.8, "seed": 8, "top_p": 0.9, "top_k": 50, "min_p": 0.01},
    {"temperature": 1.0, "seed": 9, "logit_bias": {7: 2.0, 9: float("-inf")}},
    {"temperature": 1.0, "seed": 10, "repetition_penalty": 1.2, "frequency_penalty": 0.5},
    {"stop": ["ab", 17]},
]


@pytest.fixture
def engine(tiny_model_path: Path) -> Iterator[Engine]:
    engine = open_tiny(tiny_model_path)
    yield engine
    engine.close()


def drafted(engine: Engine, path: Path, *, format: str | None = None, pages: int = 40) -> Scheduler:
    """A scheduler with a draft model that always guesses, as if it cost nothing."""
    small = open_engine(path, LoadOptions(n_ctx=N_CTX, n_threads=1, format=format), name="small")  # type: ignore[arg-type]
    small.limit_cache(pages * small.page_bytes)
    draft = Draft(small, engine)
    scheduler = Scheduler(engine, drive=False, draft=draft)
    for cost, terms in (
        (scheduler._cost, [1e-2, 1e-7, 0.0, 0.0]),
        (draft._cost, [1e-7, 1e-9, 0.0, 0.0]),
    ):
        cost._terms[:] = terms
        cost.learn = lambda work, seconds: None  # type: ignore[method-assign]
    return scheduler


def answers(scheduler: Scheduler, asked: list[Request]) -> list[GenerationResult]:
    streams = [TokenStream(scheduler, scheduler.submit(one)) for one in asked]
    results = [list(stream)[-1].result for stream in streams]
    assert all(results)
    return [result for result in results if result is not None]


@pytest.mark.parametrize("format", [None, "int4"])
@pytest.mark.parametrize("params", PARAMS)
def test_the_same_with_and_without(
    tiny_model_path: Path,
    engine: Engine,
    params: dict[str, object],
    format: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guesses of the model itself are right (but for penalties); of another, they do not show."""
    asked = [request(prompt, max_tokens=60, logprobs=2, **params) for prompt in PROMPTS]
    alone = Alone(engine)
    expected = [alone(one)[-1].result for one in asked]
    if format is None:
        monkeypatch.setattr("slmq.generation.speculation.PLACES", 0)  # nobody looks back
    scheduler = drafted(engine, tiny_model_path, format=format)
    results = answers(scheduler, asked)
    assert [said(r) for r in results] == [said(r) for r in expected if r]
    given = sum(r.drafted_tokens for r in results)
    right = sum(r.accepted_tokens for r in results)
    assert given > 0
    if format is None and "repetition_penalty" not in params:
        assert right == given
        assert right > 0.7 * sum(len(r.tokens) for r in results)
    else:
        assert 0 < right < given
    stats = scheduler.stats()
    assert (stats.drafted_tokens, stats.accepted_tokens) == (given, right)
    assert scheduler._draft is not None
    scheduler._draft.guess([], 0.0)
    assert not scheduler._draft._held
    kept = scheduler._draft._engine.plan.cache
    assert kept.pages_in_use > 0
    scheduler._draft.release()
    assert kept.pages_in_use == 0
    with scheduler.exclusive():
        scheduler._pages.store.clear()
    assert engine.plan.cache.pages_in_use == 0


def test_few_pages_for_guesses(tiny_model_path: Path, engine: Engine) -> None:
    """Where the small model's cache is full, who has no room goes without."""
    asked = [request(prompt, max_tokens=50, temperature=1.0, seed=3) for prompt in PROMPTS * 2]
    alone = Alone(engine)
    for pages in (1, 2, 4):
        scheduler = drafted(engine, tiny_model_path, pages=pages)
        results = answers(scheduler, asked)
        assert [said(r) for r in results] == [
            said(r) for one in asked if (r := alone(one)[-1].result)
        ]
        assert sum(r.drafted_tokens for r in results) > 0
        assert scheduler._draft is not None
        cache = scheduler._draft._engine.plan.cache
        assert cache.pages_in_use <= cache.limit == pages


def test_what_is_kept_is_not_read_again(tiny_model_path: Path, engine: Engine) -> None:
    """The second turn of a chat reads only what is new, in the small model, too."""
    scheduler = drafted(engine, tiny_model_path)
    (first,) = answers(scheduler, [request(PROMPTS[3], max_tokens=20)])
    draft = scheduler._draft
    assert draft is not None
    fed: list[int] = []
    real = draft._engine.run

    def run(batch, **rest):  # type: ignore[no-untyped-def]
        fed.extend(len(rows[1]) for rows in batch)
        return real(batch, **rest)

    draft._engine.run = run  # type: ignore[method-assign]
    (second,) = answers(scheduler, [request([*PROMPTS[3], *first.tokens, 3, 4], max_tokens=20)])
    assert second.accepted_tokens > 10
    assert max(fed) <= 5  # what was said last, which nobody had fed, and what is new


def test_a_long_prompt_is_read_in_pieces(tiny_model_path: Path, engine: Engine) -> None:
    """While others decode, the small model reads no longer than a run may take; nor for nothing."""
    scheduler = drafted(engine, tiny_model_path)
    draft = scheduler._draft
    assert draft is not None
    draft._cost._terms[:] = [0.0, 1e-3, 0.0, 0.0]
    scheduler._step_s = 30e-3
    rows: list[int] = []
    real = draft._engine.run

    def run(batch, **rest):  # type: ignore[no-untyped-def]
        rows.append(sum(len(part[1]) for part in batch))
        return real(batch, **rest)

    draft._engine.run = run  # type: ignore[method-assign]
    long = [(3 * i) % 250 for i in range(200)]
    (short_answer,) = answers(scheduler, [request(long, max_tokens=3)])
    assert short_answer.drafted_tokens == 0
    assert rows == []
    (long_answer,) = answers(scheduler, [request(long, max_tokens=200)])
    assert long_answer.accepted_tokens > 50
    assert max(rows) == 30
    assert rows[:7] == [30] * 6 + [200 + 7 - 6 * 30]


def test_a_full_system_only_ends_guesses(
    tiny_model_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = drafted(engine, tiny_model_path)
    asked = request(PROMPTS[1], max_tokens=20)
    expected = Alone(engine)(asked)[-1].result
    assert expected is not None
    assert scheduler._draft is not None
    monkeypatch.setattr(
        scheduler._draft._engine, "run", lambda batch: (_ for _ in ()).throw(MemoryError())
    )
    (result,) = answers(scheduler, [asked])
    assert said(result) == said(expected)
    assert result.drafted_tokens == 0


def test_small_vocabulary_of_either(tiny_model_path: Path, engine: Engine) -> None:
    """Rows that pad an embedding may be missing in one of the two, and be said by the other."""
    alone = Alone(engine)
    asked = [request(p, max_tokens=30, temperature=5.0, seed=i) for i, p in enumerate(PROMPTS)]
    expected = [said(r) for one in asked if (r := alone(one)[-1].result)]
    for width, right in ((120, False), (engine.n_vocab + 9, True)):
        scheduler = drafted(engine, tiny_model_path)
        draft = scheduler._draft
        assert draft is not None
        if width < engine.n_vocab:
            draft._engine.n_vocab = width
        else:
            draft._n_vocab, draft._engine.n_vocab = engine.n_vocab, engine.n_vocab
        results = answers(scheduler, asked)
        assert [said(r) for r in results] == expected
        assert (sum(r.accepted_tokens for r in results) > 60) is right


def test_trust_grows_shrinks_and_comes_back() -> None:
    trust = Trust()
    assert trust.length(1e-2, 1e-4, 1e-4, 12) > 4
    assert trust.length(1e-2, 1e-4, 2e-2, 12) == 0  # the small model is as slow as the large one
    for _ in range(20):
        count = trust.length(1e-2, 1e-4, 1e-4, 12)
        if count:
            trust.told(count, count)
    assert trust.rate > 0.9
    asked = 0
    for _ in range(300):
        count = trust.length(1e-2, 1e-3, 1e-3, 12)
        if count:
            asked += 1
            trust.told(count, 0)
    assert 2 < asked < 30
    for _ in range(300):
        count = trust.length(1e-2, 1e-3, 1e-3, 12)
        if count:
            trust.told(count, count)
    assert trust.rate > 0.9
    assert best_length([0.9] * 12, 1e-2, 1e-4) > best_length([0.9] * 12, 1e-2, 1e-4, 2e-3) > 0


def test_guesses_take_no_draw(tiny_model_path: Path, engine: Engine) -> None:
    """A guess is what the draw of that place would give, and leaves the sampler as it was."""
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(6, engine.n_vocab)).astype(np.float32)
    one, other = (
        slmq.generation.sampling.make_sampler(  # type: ignore[attr-defined]
            request([1], temperature=1.0, seed=4).params, engine.n_vocab
        )
        for _ in range(2)
    )
    guesses = [one.guess(row, ahead) for ahead, row in enumerate(rows)]
    assert one.draws == 0
    assert guesses == [other.sample(row) for row in rows]
    assert one.guess(np.full(engine.n_vocab, np.nan, np.float32), 0) is None
    assert one.draws == 0


# --- loading ----------------------------------------------------------------------------------


def with_other_tokenizer(source: Path, target: Path) -> Path:
    """The same weights, but two tokens have changed places."""
    shutil.copytree(source, target)
    found = json.loads(byte_tokenizer().to_str())
    words = found["model"]["vocab"]
    a, b = sorted(words, key=words.get)[40:42]
    words[a], words[b] = words[b], words[a]
    (target / "tokenizer.json").write_text(json.dumps(found), "utf-8")
    return target


def test_load_with_a_draft(tiny_model_path: Path, tmp_path: Path) -> None:
    asked = {"max_tokens": 40, "ignore_eos": True, "temperature": 1.0, "seed": 5}
    with slmq.load(tiny_model_path, n_ctx=256) as m:
        expected = [m.generate(prompt, **asked) for prompt in PROMPTS[:2]]  # type: ignore[arg-type]
    for draft in (tiny_model_path, str(tiny_model_path)):
        with slmq.load(tiny_model_path, n_ctx=256, draft=draft, kv_bytes="1MB") as m:
            m._scheduler._cost._terms[:] = [1.0, 1e-7, 0.0, 0.0]
            found = [m.generate(prompt, **asked) for prompt in PROMPTS[:2]]  # type: ignore[arg-type]
            assert [said(r) for r in found] == [said(r) for r in expected]
            caches = m.engine.plan.cache, m._scheduler._draft._engine.plan.cache  # type: ignore[union-attr]
            pages = 1_000_000 // (2 * m.engine.page_bytes)
            assert [cache.limit for cache in caches] == [pages, pages]
        with pytest.raises(slmq.ClosedError):
            m.generate("x")
    both = 2 * open_tiny(tiny_model_path).page_bytes
    with pytest.raises(
        ValueError, match=rf"kv_bytes: expected at least {both}, a page of .* draft"
    ):
        slmq.load(tiny_model_path, draft=tiny_model_path, kv_bytes=both - 1)


def test_another_tokenizer_is_refused(tiny_model_path: Path, tmp_path: Path) -> None:
    other = with_other_tokenizer(tiny_model_path, tmp_path / "other")
    with pytest.raises(
        TokenizerError,
        match=r"draft: expected a model with the tokenizer of 'tiny-llama', but 'other' has "
        r"another \(2 of \d+ tokens differ: .* smaller model of the same family",
    ):
        slmq.load(tiny_model_path, draft=other)
    with pytest.raises(slmq.ModelNotFoundError, match="no-such-model"):
        slmq.load(tiny_model_path, draft="no-such-model", local_files_only=True)
    with pytest.raises(TypeError, match="draft: expected the name or path of a model, got int 3"):
        slmq.load("nothing is looked for", draft=3)  # type: ignore[arg-type]
