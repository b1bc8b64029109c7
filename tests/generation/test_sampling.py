"""Sampling: parameters, random numbers, filters against a sorting oracle, log-probabilities."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from slmq.errors import CheckpointError
from slmq.generation._sampling import Sampler, philox4x64, random_word
from slmq.generation.sampling import SamplingParams, make_sampler
from slmq.machine.runtime import isa

Floats = NDArray[np.float32]
SIZES = [1, 2, 15, 16, 17, 63, 64, 65, 127, 129, 1000]


def softmax(x: Floats, scale: float) -> Floats:
    """Stand-in for the native softmax: float64 inside, so its rounding hardly depends on n."""
    y = np.exp((x - x.max()).astype(np.float64) * scale)
    return (y / y.sum()).astype(np.float32)


def rational(x: Floats, scale: float) -> Floats:
    """A falling function of only + - * /, so the same bits on every machine."""
    y = np.float64(1) / (np.float64(1) - x.astype(np.float64) * scale)
    total = np.float64(0)
    for one in y:
        total += one
    return (y / total).astype(np.float32)


def sampler(n: int, **params: object) -> Sampler:
    return make_sampler(SamplingParams.from_kwargs(params), n, softmax=softmax)


def some_logits(n: int, seed: int = 0) -> Floats:
    return (np.random.default_rng(seed).standard_normal(n) * 3).astype(np.float32)


# ------------------------------------------------------------------ random numbers


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # from the file kat_vectors of Random123
        (
            "0 0 0 0",
            "0 0",
            "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b",
        ),
        (
            " ".join(["ffffffffffffffff"] * 4),
            " ".join(["ffffffffffffffff"] * 2),
            "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
        ),
        (
            "243f6a8885a308d3 13198a2e03707344 a4093822299f31d0 082efa98ec4e6c89",
            "452821e638d01377 be5466cf34e90c6c",
            "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
        ),
    ],
)
def test_philox_gives_the_published_numbers(counter: str, key: str, expected: str) -> None:
    assert philox4x64(words(counter), words(key)) == words(expected)


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**63, 2**64 - 1])
def test_draws_are_the_raw_output_of_numpy_philox(seed: int) -> None:
    raw = np.random.Philox(key=seed).random_raw(50)
    assert [random_word(seed, i) for i in range(50)] == raw.tolist()


def test_a_draw_consumes_one_number_whatever_the_filters() -> None:
    n = 100
    for params in ({}, {"top_k": 1}, {"top_p": 0.1}, {"min_p": 1.0}):
        one = sampler(n, temperature=1.0, seed=3, **params)
        for i in range(5):
            assert one.draws == i
            one.sample(some_logits(n))
    greedy = sampler(n)
    greedy.sample(some_logits(n))
    assert greedy.draws == 0


def test_a_draw_depends_on_seed_and_index_alone() -> None:
    rows = [some_logits(300, seed) for seed in range(20)]
    first = sampler(300, temperature=1.0, seed=9)
    tokens = [first.sample(row) for row in rows]
    other = sampler(300, temperature=1.0, seed=9)
    for _ in range(10):
        other.sample(rows[0])
    assert [other.sample(row) for row in rows[10:]] == tokens[10:]
    assert [sampler(300, temperature=1.0, seed=8).sample(row) for row in rows] != tokens


def test_no_seed_takes_a_fresh_one() -> None:
    seeds = {sampler(3, temperature=1.0).seed for _ in range(4)}
    assert len(seeds) == 4
    assert sampler(3, seed=2**64 - 1).seed == 2**64 - 1


# ------------------------------------------------------------------ greedy


@pytest.mark.parametrize("n", SIZES)
def test_greedy_is_the_first_greatest(n: int) -> None:
    for seed in range(20):
        logits = np.round(some_logits(n, seed))  # rounding makes ties
        assert sampler(n).sample(logits) == int(np.argmax(logits))


def test_greedy_takes_both_zeros_as_equal() -> None:
    logits = np.array([-1, -0.0, 0.0, -0.0], np.float32)
    assert sampler(4).sample(logits) == 1
    assert sampler(4).sample(logits[::-1].copy()) == 0


def test_greedy_works_beside_minus_infinity_and_extremes() -> None:
    lowest = np.finfo(np.float32).min
    logits = np.array([-np.inf, lowest, -np.inf], np.float32)
    assert sampler(3).sample(logits) == 1
    assert sampler(3, temperature=1.0).sample(logits) == 1


def test_the_logits_are_not_changed() -> None:
    logits = some_logits(50)
    before = logits.copy()
    logits.flags.writeable = False
    one = sampler(50, temperature=0.5, repetition_penalty=1.5, logit_bias={3: 2.0}, top_p=0.5)
    one.observe([1, 2])
    one.sample(logits)
    assert np.array_equal(logits, before)


# ------------------------------------------------------------------ filters against an oracle


def oracle_adjust(
    logits: Floats, params: SamplingParams, prompt: list[int], answer: list[int]
) -> Floats:
    out = logits.copy()
    for token, bias in (params.logit_bias or {}).items():
        out[token] += np.float32(bias)
    for token in set(prompt) | set(answer):
        penalty = np.float32(params.repetition_penalty)
        out[token] = out[token] / penalty if out[token] > 0 else out[token] * penalty
        if times := answer.count(token):
            value = float(out[token]) - times * float(np.float32(params.frequency_penalty))
            out[token] = np.float32(value - float(np.float32(params.presence_penalty)))
    return out


def oracle_weights(logits: Floats, params: SamplingParams) -> dict[int, int]:
    """Token to weight of what the filters leave, by sorting and exact fractions."""
    ranked = sorted(np.flatnonzero(logits > -np.inf), key=lambda i: (-float(logits[i]), i))
    if params.top_k:
        ranked = ranked[: params.top_k]
    ids = sorted(int(i) for i in ranked)
    p = softmax(logits[ids], float(np.float32(1 / params.temperature)))
    weight = {i: int(Fraction(float(one)) * 2**52) for i, one in zip(ids, p, strict=True)}
    kept, mass = [], 0
    need = math.ceil(Fraction(float(params.top_p * sum(weight.values()))))
    for i in sorted(ids, key=lambda i: (-weight[i], i)):
        if params.top_p < 1 and mass >= need:
            break
        kept.append(i)
        mass += weight[i]
    probability = dict(zip(ids, p, strict=True))
    least = params.min_p * float(p.max())
    return {i: weight[i] for i in sorted(kept) if float(probability[i]) >= least}


def oracle_draw(weight: dict[int, int], word: int) -> int:
    target = word * sum(weight.values()) >> 64
    for token, one in weight.items():
        target -= one
        if target < 0:
            return token
    raise AssertionError("the target lies beyond the weights")


filters = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.05, 0.7, 1.0, 3.0]),
        "top_k": st.sampled_from([0, 1, 2, 5, 40, 10_000]),
        "top_p": st.sampled_from([1.0, 0.95, 0.5, 0.1, 1e-9, 1 - 1e-12]),
        "min_p": st.sampled_from([0.0, 0.05, 0.5, 1.0]),
        "seed": st.integers(0, 2**64 - 1),
    }
)


@settings(max_examples=300, deadline=None)
@given(filters, st.sampled_from(SIZES), st.integers(0, 1000), st.booleans())
def test_filters_and_draw_equal_the_oracle(
    params: dict[str, float], n: int, seed: int, ties: bool
) -> None:
    logits = some_logits(n, seed)
    if ties:
        logits = np.round(logits)
    logits[1::7] = -np.inf
    checked = SamplingParams.from_kwargs(params)
    weight = oracle_weights(logits, checked)
    one = sampler(n, **params)
    for i in range(4):
        assert one.sample(logits) == oracle_draw(weight, random_word(one.seed, i))


penalties = st.fixed_dictionaries(
    {
        "temperature": st.just(0.8),
        "seed": st.integers(0, 100),
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.3]),
        "presence_penalty": st.sampled_from([-2.0, 0.0, 0.1]),
        "frequency_penalty": st.sampled_from([-1.1, 0.0, 0.3]),
        "logit_bias": st.dictionaries(  # token 30 is never banned, so one is always left
            st.integers(0, 29), st.sampled_from([-100.0, 0.7, 5.0, -math.inf])
        ),
    }
)


@settings(max_examples=100, deadline=None)
@given(penalties, st.lists(st.integers(0, 29), max_size=20))
def test_bias_and_penalties_equal_the_oracle(args: dict[str, Any], prompt: list[int]) -> None:
    checked = SamplingParams.from_kwargs(args)
    one = sampler(31, **args)
    one.observe(prompt)
    answer: list[int] = []
    for step in range(6):
        logits = some_logits(31, step)
        weight = oracle_weights(oracle_adjust(logits, checked, prompt, answer), checked)
        token = one.sample(logits)
        assert token == oracle_draw(weight, random_word(args["seed"], step))
        one.accept(token)
        answer.append(token)


def test_presence_and_frequency_ignore_the_prompt() -> None:
    logits = np.array([1.0, 0.9, 0.0], np.float32)
    one = sampler(3, presence_penalty=0.5, frequency_penalty=0.5)
    one.observe([0, 0, 0])
    assert one.sample(logits) == 0
    one.accept(0)
    assert one.sample(logits) == 1


def test_repetition_counts_the_prompt_once() -> None:
    logits = np.array([1.0, 0.6, 0.0], np.float32)
    one = sampler(3, repetition_penalty=1.5)
    one.observe([0, 0, 0])
    assert one.sample(logits) == 0  # 1 / 1.5 > 0.6; a second division would fall below
    assert sampler(3, repetition_penalty=2.0).sample(logits) == 0
    one = sampler(3, repetition_penalty=2.0)
    one.observe([0])
    assert one.sample(logits) == 1


@pytest.mark.parametrize("k", [1, 3, 64, 65, 500, 4999, 5000])
def test_top_k_leaves_exactly_k_and_prefers_low_ids(k: int) -> None:
    n = 5000
    logits = np.zeros(n, np.float32)
    logits[4000:] = 1e-3
    expected = set(range(4000, min(4000 + k, n))) | set(range(max(0, k - 1000)))
    one = sampler(n, temperature=1.0, top_k=k, seed=1)
    drawn = Counter(one.sample(logits) for _ in range(300))
    assert set(drawn) <= expected
    assert oracle_weights(logits, SamplingParams(temperature=1.0, top_k=k)).keys() == expected


def test_top_p_on_a_flat_distribution_keeps_the_lowest_ids() -> None:
    one = sampler(8, temperature=1.0, top_p=0.5, seed=5)
    assert {one.sample(np.zeros(8, np.float32)) for _ in range(200)} == {0, 1, 2, 3}


def test_a_huge_top_k_keeps_all() -> None:
    assert sampler(3, temperature=1.0, top_k=10**30, seed=0).sample(some_logits(3)) in range(3)


def test_frequencies_follow_the_probabilities() -> None:
    n, draws = 8, 40_000
    logits = some_logits(n, 3) / 2
    p = softmax(logits, 1 / 0.9).astype(np.float64)
    one = sampler(n, temperature=0.9, seed=1234)
    seen = np.zeros(n)
    for _ in range(draws):
        seen[one.sample(logits)] += 1
    chi2 = float(((seen - draws * p) ** 2 / (draws * p)).sum())
    assert chi2 < 24.3  # 99.9% quantile of chi-square with 7 degrees of freedom


@pytest.mark.parametrize("temperature", [1e-45, 1e-39, 1e-30, 1e-6])
def test_a_tiny_temperature_is_almost_greedy(temperature: float) -> None:
    logits = some_logits(200)
    one = sampler(200, temperature=temperature, seed=0)
    assert [one.sample(logits) for _ in range(5)] == [int(np.argmax(logits))] * 5


def test_a_huge_temperature_is_almost_uniform() -> None:
    one = sampler(4, temperature=1e30, seed=0)
    logits = np.array([0, 50, -50, 10], np.float32)
    assert {one.sample(logits) for _ in range(100)} == {0, 1, 2, 3}


def test_tokens_are_the_same_on_every_machine() -> None:
    rng = np.random.Philox(key=7)
    rows = (rng.random_raw(20 * 1000) % 4096).astype(np.float32).reshape(20, 1000) / 256
    common = {"temperature": 0.75, "seed": 42}
    expected = {
        "plain": ({}, GOLDEN_PLAIN),
        "filtered": (
            {"top_k": 50, "top_p": 0.6, "min_p": 0.01, "repetition_penalty": 1.1},
            GOLDEN_FILTERED,
        ),
    }
    for args, golden in expected.values():
        one = make_sampler(SamplingParams.from_kwargs({**common, **args}), 1000, softmax=rational)
        tokens = []
        for row in rows:
            tokens.append(one.sample(row))
            one.accept(tokens[-1])
        assert tokens == golden


GOLDEN_PLAIN = [
    827, 172, 855, 371, 371, 410, 213, 59, 888, 761, 341, 34, 58, 525,
    739, 394, 987, 838, 566, 742,
]  # fmt: skip
GOLDEN_FILTERED = [
    836, 144, 876, 324, 297, 280, 275, 9, 942, 613, 258, 21, 136, 493,
    712, 379, 987, 918, 627, 742,
]  # fmt: skip


# ------------------------------------------------------------------ unusable logits


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"logit_bias": {1: 1.0}}])
@pytest.mark.parametrize("at", [0, 70, 129])
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF])
def test_nan_logits_are_an_error(params: dict[str, object], at: int, bits: int) -> None:
    logits = some_logits(130)
    logits.view(np.uint32)[at] = bits
    with pytest.raises(CheckpointError, match="produced NaN in 1 of 130 logits"):
        sampler(130, **params).sample(logits)


def test_infinite_logits_are_an_error() -> None:
    logits = some_logits(5)
    logits[3] = np.inf
    with pytest.raises(CheckpointError, match="infinite logit"):
        sampler(5).sample(logits)
    with pytest.raises(CheckpointError, match="ruled out every token"):
        sampler(5).sample(np.full(5, -np.inf, np.float32))


def test_nothing_left_to_choose_is_an_error() -> None:
    banned = dict.fromkeys(range(5), -math.inf)
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="no token is left"):
            sampler(5, logit_bias=banned, temperature=temperature).sample(some_logits(5))
    huge = sampler(5, logit_bias={0: 3e38})
    with pytest.raises(ValueError, match="made a logit infinite"):
        huge.sample(np.full(5, 3e38, np.float32))


def test_a_softmax_that_fails_is_an_error_not_a_wrong_token() -> None:
    params = SamplingParams(temperature=1.0)
    for broken in (lambda x, s: np.zeros_like(x), lambda x, s: np.full_like(x, np.nan)):
        with pytest.raises(ValueError, match="no token a positive probability"):
            make_sampler(params, 5, softmax=broken).sample(some_logits(5))
    with pytest.raises(ValueError, match="expected float32"):
        make_sampler(params, 5, softmax=lambda x, s: x[:2]).sample(some_logits(5))


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        ([0.0, 1.0], TypeError, "expected float32.2., got list"),
        (np.zeros(2), ValueError, "expected float32.2., got float64.2."),
        (np.zeros(3, np.float32), ValueError, "expected float32.2., got float32.3."),
        (np.zeros((1, 2), np.float32), ValueError, "got float32.1, 2."),
        (np.zeros(4, np.float32)[::2], ValueError, "without gaps"),
        (np.zeros(9, np.uint8)[1:].view(np.float32), ValueError, "without gaps"),
        (np.zeros(2, ">f4"), ValueError, "got >f4.2."),
    ],
)
def test_logits_of_another_kind_are_refused(
    logits: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sampler(2).sample(logits)  # type: ignore[arg-type]


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    one = sampler(5, repetition_penalty=2.0)
    for token in (-1, 5, 2**40):
        with pytest.raises(ValueError, match="expected 0 to 4"):
            one.observe([token])
        with pytest.raises(ValueError, match="expected 0 to 4"):
            one.accept(token)
    with pytest.raises(ValueError, match="from 0 to 4, got 5"):
        sampler(5, logit_bias={5: 1.0})
    with pytest.raises(ValueError, match="from 0 to 4, got 7"):
        sampler(5, stop=[7])
    with pytest.raises(ValueError, match="at most 5"):
        sampler(5, logprobs=6)
    with pytest.raises(ValueError, match="n_vocab"):
        Sampler(0, softmax)
    with pytest.raises(ValueError, match="token ids from 0 to 4, got -1"):
        Sampler(5, softmax, logit_bias={-1: 0.0})


# ------------------------------------------------------------------ with the native softmax


def test_every_isa_draws_the_same_tokens() -> None:
    rows = [some_logits(5000, seed) for seed in range(8)]
    tables = [table for table in isa.values() if table is not None]
    for params in ({}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.02}):
        checked = SamplingParams.from_kwargs({"temperature": 1.1, "seed": 6, **params})
        drawn = set()
        for table in tables:
            one = make_sampler(checked, 5000, softmax=table.softmax)
            drawn.add(tuple(one.sample(row) for row in rows))
        drawn.add(tuple(map(make_sampler(checked, 5000).sample, rows)))
        assert len(drawn) == 1


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1e-45, {1}), (1e-30, {1}), (1e-3, {1}), (1.0, {1, 3}), (1e30, {0, 1, 2, 3})],
)
def test_the_native_softmax_stands_any_temperature(temperature: float, expected: set[int]) -> None:
    params = SamplingParams(temperature=temperature, seed=1)
    logits = np.array([0, 50, -50, 49.9, -np.inf, -3e38], np.float32)
    one = make_sampler(params, 6)
    assert {one.sample(logits) for _ in range(200)} == expected
