"""Attention over texts from end to end: windows, biases by distance, any lengths in one run."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from kernel_cases import ISAS, SCALAR, normal, pack, same_bits
from test_attention import KV_TYPES, assert_attention, problem

from slmq import _native

F32 = npt.NDArray[np.float32]


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize("t", [1, 15, 17, 64, 65, 513, 700])
def test_lengths(t: int, kv: str) -> None:
    assert_attention(*problem(t, t, 2, 1, 20), kv=kv, causal=False)


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize("window", [1, 15, 16, 64, 65, 512, 600])
def test_windows(window: int, kv: str) -> None:
    """A window reaches so far on both sides; one that reaches everything changes nothing."""
    q, k, v = problem(600, 600, 2, 2, 12)
    got = assert_attention(q, k, v, kv=kv, window=window, causal=False)
    whole = SCALAR.attention(q, k, v, float(np.float32(12**-0.5)), 0, kv, 0.0, False)
    assert same_bits(got, whole) == (window == 600)


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize("t", [1, 2, 16, 70, 520])
def test_biases_by_distance(t: int, kv: str) -> None:
    q, k, v = problem(t, t, 4, 2, 12)
    bias = normal(4, 2 * t - 1, seed=5, scale=2)
    got = assert_attention(q, k, v, kv=kv, causal=False, bias=bias)
    assert t == 1 or not same_bits(got, assert_attention(q, k, v, kv=kv, causal=False))
    # In a causal model, too.
    assert_attention(q, k, v, kv=kv, bias=bias, window=9)


def test_a_bias_of_zero_changes_no_bit() -> None:
    q, k, v = problem(70, 70, 2, 2, 16)
    none = np.zeros((2, 139), np.float32)
    for kv in KV_TYPES:
        plain = SCALAR.attention(q, k, v, 0.25, 0, kv, 0.0, False)
        assert same_bits(SCALAR.attention(q, k, v, 0.25, 0, kv, 0.0, False, none), plain)


def text_plan(
    isa: str, threads: int, *, window: int = 0, bias: bool = False, positions: int = 300
) -> Any:
    """Two layers that attend, over embeddings with types and learned positions: float32[m, 32]."""
    r = _native.Recording(threads, 640, 640, 64, "f32", isa)
    tables = [
        pack(normal(rows, 32, seed=seed), "f32") for seed, rows in ((1, 64), (2, positions), (3, 2))
    ]
    x = r.embed(tables[0], 1.0, tables[1], tables[2])
    table = normal(2 * (2 * (positions - 40) - 1), seed=6) if bias else None
    for _ in range(2):
        x = r.attention(*[(x, 0, 32)] * 3, -1, 2, 2, 16, 0, 0.5, window, 0.0, False, table)
    return r.finish(r.select((x, 0, 32)), 32)


def texts_of(lengths: list[int]) -> list[npt.NDArray[np.int32]]:
    rng = np.random.default_rng(8)
    return [rng.integers(0, 64, n).astype(np.int32) for n in lengths]


def run_texts(plan: Any, texts: list[npt.NDArray[np.int32]], types: Any = None) -> list[F32]:
    """Hidden states of texts that share a run."""
    cache = plan.make_cache()
    tokens = np.concatenate(texts)
    segments = [(cache.sequence(), len(text)) for text in texts]
    plan.run(tokens, segments, np.arange(len(tokens), dtype=np.int32), types=types)
    return np.split(plan.logits(), np.cumsum([len(text) for text in texts])[:-1])


@pytest.mark.parametrize(
    "options", [{}, {"window": 9}, {"bias": True}, {"bias": True, "window": 70}]
)
def test_a_text_has_the_same_bits_alone_among_others_and_everywhere(options: Any) -> None:
    texts = texts_of([1, 2, 130, 65, 1, 7, 64, 260])
    want = run_texts(text_plan("scalar", 1, **options), texts)
    for isa in ISAS:
        for threads in (1, 2, 3):
            plan = text_plan(isa, threads, **options)
            order = np.random.default_rng(threads).permutation(len(texts))
            got = run_texts(plan, [texts[i] for i in order])
            for place, i in enumerate(order):
                assert same_bits(got[place], want[i]), (isa, threads)
    plan = text_plan("scalar", 2, **options)
    for text, states in zip(texts, want, strict=True):
        assert same_bits(run_texts(plan, [text])[0], states)


@pytest.mark.parametrize("options", [{}, {"window": 9}, {"bias": True}])
def test_texts_that_need_the_cache_change_no_others(options: Any) -> None:
    """Beside a text of more than one part all go through the cache."""
    texts = texts_of([1, 65, 513, 40])
    for isa in ISAS:
        plan = text_plan(isa, 2, positions=553, **options)
        together = run_texts(plan, texts)
        for text, states in zip(texts, together, strict=True):
            assert same_bits(run_texts(plan, [text])[0], states), isa


def test_a_token_sees_what_is_behind_it() -> None:
    first, second = texts_of([40, 40])
    second[:39] = first[:39]
    plan = text_plan("scalar", 1)
    one, other = run_texts(plan, [first, second])
    assert (np.abs(one - other).max(axis=1) > 0).all()


def test_types_are_added() -> None:
    (text,) = texts_of([20])
    plan = text_plan("scalar", 2)
    types = np.zeros(20, np.int32)
    (plain,) = run_texts(plan, [text])
    assert same_bits(run_texts(plan, [text], types)[0], plain)
    types[10:] = 1
    assert not same_bits(run_texts(plan, [text], types)[0], plain)


def test_sequences_serve_again_and_stay_empty() -> None:
    plan = text_plan("scalar", 1)
    sequence = plan.make_cache().sequence()
    for text in texts_of([70, 3, 200]):
        ids = np.arange(len(text), dtype=np.int32)
        plan.run(text, [(sequence, len(text))], ids)
        assert sequence.length == 0
        assert same_bits(plan.logits(), run_texts(plan, [text])[0])


POOLS = {
    "mean": lambda x: x.mean(axis=0),
    "max": lambda x: x.max(axis=0),
    "mean_sqrt_len": lambda x: x.sum(axis=0) / np.sqrt(len(x)),
    "weighted_mean": lambda x: np.average(x, axis=0, weights=np.arange(1, len(x) + 1)),
}


@pytest.mark.parametrize("pool", POOLS)
def test_pooling(pool: str) -> None:
    """Against float64, and the same bits for every instruction set and number of threads."""
    texts = texts_of([1, 2, 33, 64])
    tokens = np.concatenate(texts)
    spans = np.array([len(text) for text in texts], np.int32)
    firsts = (np.cumsum(spans) - spans).astype(np.int32)
    found = []
    for isa in ISAS:
        for threads in (1, 3):
            r = _native.Recording(threads, 128, 8, 64, "f32", isa)
            x = r.embed(pack(normal(64, 40), "f32"))
            plan = r.finish(r.select((x, 0, 40), pool), 40)
            sequence = plan.make_cache().sequence
            segments = [(sequence(), len(text)) for text in texts]
            plan.run(tokens, segments, firsts, spans=spans)
            found.append(plan.logits())
            plan.run_outputs(firsts[2:3], spans=spans[2:3])
            assert same_bits(plan.logits()[0], found[-1][2])
    assert all(same_bits(one, found[0]) for one in found)
    table = normal(64, 40).astype(np.float64)
    for text, row in zip(texts, found[0], strict=True):
        np.testing.assert_allclose(row, POOLS[pool](table[text]), rtol=0, atol=3e-6)


def small_recording() -> Any:
    r = _native.Recording(1, 32, 4, 64, "f32")
    return r, r.embed(pack(normal(64, 32), "f32"))


def test_refusals() -> None:
    r, x = small_recording()
    same = [(x, 0, 32)] * 3
    with pytest.raises(ValueError, match="attention bias: expected 2 heads of an odd number"):
        r.attention(*same, -1, 2, 2, 16, 0, 1.0, 0, 0.0, False, np.zeros(8, np.float32))
    with pytest.raises(ValueError, match="attention bias: expected finite values"):
        r.attention(*same, -1, 1, 1, 32, 0, 1.0, 0, 0.0, False, np.full(3, np.nan, np.float32))
    with pytest.raises(ValueError, match="attention bias: expected no softcap beside it"):
        r.attention(*same, -1, 1, 1, 32, 0, 1.0, 0, 2.0, False, np.zeros(3, np.float32))
    r.attention(*same, -1, 1, 1, 32, 0, 1.0, 0, 0.0, False)
    with pytest.raises(ValueError, match="expected all layers to be causal, or none"):
        r.attention(*same, -1, 1, 1, 32, 0, 1.0)
    with pytest.raises(ValueError, match=r"pool: expected 'row', 'mean'.* got 'cls'"):
        r.select((x, 0, 32), "cls")
    with pytest.raises(ValueError, match="finish: expected logits of at least 33 columns"):
        r.finish(r.select((x, 0, 32)), 33)


def test_bad_runs() -> None:
    r, x = small_recording()
    plan = r.finish(r.select((x, 0, 32), "mean"), 32)
    tokens, first = np.zeros(8, np.int32), np.zeros(1, np.int32)

    def run(**more: Any) -> None:
        plan.run(tokens, [(plan.make_cache().sequence(), 8)], first, **more)

    for spans in ([0], [9]):
        with pytest.raises(ValueError, match="expected spans within the tokens"):
            run(spans=np.array(spans, np.int32))
    with pytest.raises(ValueError, match="expected as many spans as outputs, 1, got 2"):
        run(spans=np.ones(2, np.int32))
    with pytest.raises(ValueError, match="expected types of tokens below 0, got 0"):
        run(types=np.zeros(8, np.int32))
    other = text_plan("scalar", 1)
    with pytest.raises(ValueError, match="expected no spans: this plan does not pool rows"):
        other.run(tokens, [(other.make_cache().sequence(), 8)], first, spans=first + 1)
    with pytest.raises(ValueError, match="expected types of tokens below 2, got 2"):
        other.run(tokens, [(other.make_cache().sequence(), 8)], first, types=tokens + 2)
    with pytest.raises(ValueError, match="expected a type for each of 8 tokens, got 3"):
        other.run(tokens, [(other.make_cache().sequence(), 8)], first, types=tokens[:3])
    many = np.zeros(301, np.int32)
    with pytest.raises(ValueError, match="expected at most 300 positions"):
        other.run(many, [(other.make_cache().sequence(), 301)], first)
    biased = text_plan("scalar", 1, bias=True)
    with pytest.raises(ValueError, match="expected at most 260 positions"):
        biased.run(many[:261], [(biased.make_cache().sequence(), 261)], first)
