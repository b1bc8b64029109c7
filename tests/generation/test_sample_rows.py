"""Many rows at once are each row alone; masks against a plain oracle; errors row by row."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from slmq.errors import Error
from slmq.generation._sampling import Sampler, sample_rows
from slmq.generation.sampling import SamplingParams, make_sampler

Floats = NDArray[np.float32]
Mask = NDArray[np.int32]
SIZES = [1, 2, 31, 32, 33, 64, 259, 1000]


def sampler(n: int, params: dict[str, Any]) -> Sampler:
    return make_sampler(SamplingParams.from_kwargs(params), n)


def some_params(rng: random.Random, n: int) -> dict[str, Any]:
    params: dict[str, Any] = {"seed": rng.randrange(2**64)}
    params["temperature"] = rng.choice([0.0, 0.3, 1.0, 5.0])
    params |= rng.choice([{}, {"top_k": rng.randint(1, n)}, {"top_p": 0.5}, {"min_p": 0.2}])
    params |= rng.choice(
        [{}, {"repetition_penalty": 1.5}, {"presence_penalty": -1.0, "frequency_penalty": 0.5}]
    )
    params |= rng.choice([{}, {"logit_bias": {rng.randrange(n): rng.choice([-3.0, 4.0])}}])
    return params


def some_logits(seed: int, rows: int, n: int) -> Floats:
    logits = np.random.default_rng(seed).standard_normal((rows, n)) * 4
    return logits.astype(np.float32)


def packed(allowed: NDArray[np.bool_]) -> Mask:
    """Bit i % 32 of word i // 32."""
    padded = np.zeros(-(-len(allowed) // 32) * 32, np.uint8)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view("<i4").astype(np.int32)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SIZES), st.integers(0, 9))
def test_rows_are_each_row_alone(seed: int, n: int, rows: int) -> None:
    """Several draws, penalties included: the state that a draw leaves is the same, too."""
    rng = random.Random(seed)
    asked = [some_params(rng, n) for _ in range(rows)]
    together, alone = [sampler(n, p) for p in asked], [sampler(n, p) for p in asked]
    for draw in range(3):
        logits = some_logits(seed + draw, rows, n)
        masks: list[Mask | None] = []
        for row in range(rows):
            allowed = np.array([rng.random() < 0.5 for _ in range(n)])
            allowed[rng.randrange(n)] = True
            masks.append(packed(allowed) if (row + draw) % 3 else None)
        before = logits.copy()
        tokens = sample_rows(together, logits, masks)
        expected = [s.sample(x, m) for s, x, m in zip(alone, logits, masks, strict=True)]
        assert tokens == expected
        assert (logits == before).all()
        for one, other, token in zip(together, alone, expected, strict=True):
            one.accept(token)
            other.accept(token)
            assert one.draws == other.draws
    assert sample_rows(together, some_logits(seed, rows, n)) == [
        s.sample(x) for s, x in zip(alone, some_logits(seed, rows, n), strict=True)
    ]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SIZES))
def test_a_mask_is_as_if_the_others_were_ruled_out(seed: int, n: int) -> None:
    """Logits of -inf in the place of the mask give the same; greedy takes the greatest left."""
    rng = random.Random(seed)
    params = some_params(rng, n)
    allowed = np.array([rng.random() < rng.choice([0.02, 0.5, 0.98]) for _ in range(n)])
    for start in range(0, n, 32):  # as masks are: many words have all bits, or none
        if rng.random() < 0.7:
            allowed[start : start + 32] = rng.random() < 0.5
    allowed[rng.randrange(n)] = True
    logits = some_logits(seed, 1, n)[0]
    masked, plain = sampler(n, params), sampler(n, params)
    ruled_out = np.where(allowed, logits, np.float32(-np.inf))
    tokens = [masked.sample(logits, packed(allowed)) for _ in range(4)]
    assert tokens == [plain.sample(ruled_out) for _ in range(4)]
    assert allowed[tokens].all()
    greedy = sampler(n, {"temperature": 0.0})
    assert greedy.sample(logits, packed(allowed)) == int(np.argmax(ruled_out))


def test_bits_beyond_the_vocabulary_mean_nothing() -> None:
    logits = some_logits(1, 1, 33)[0]
    allowed = np.zeros(33, bool)
    allowed[32] = True
    mask = packed(allowed)
    mask[1] |= np.int32(-2)  # all the bits behind the 33rd
    assert sampler(33, {}).sample(logits, mask) == 32
    mask[1] &= np.int32(-2)
    with pytest.raises(ValueError, match="no token is left to choose from"):
        sampler(33, {}).sample(logits, mask)


def test_errors_stay_in_their_row() -> None:
    n = 50
    logits = some_logits(2, 6, n)
    logits[1, 7] = np.nan
    logits[2, 3] = np.inf
    logits[3] = -np.inf
    logits[5, 7] = np.nan  # whether the mask bars it or not
    none, some = packed(np.zeros(n, bool)), packed(np.arange(n) > 10)
    samplers = [sampler(n, {"temperature": 1.0, "seed": i}) for i in range(6)]
    found = sample_rows(samplers, logits, [None, None, None, None, none, some])
    assert found[0] == sampler(n, {"temperature": 1.0, "seed": 0}).sample(logits[0])
    for error, message in zip(
        found[1:],
        ["NaN in 1 of 50", "infinite logit", "ruled out every token", "no token is left", "NaN in"],
        strict=True,
    ):
        assert isinstance(error, ValueError if "is left" in message else Error)
        assert message in str(error)


def test_what_is_refused() -> None:
    one, other = sampler(40, {}), sampler(40, {})
    logits = some_logits(3, 2, 40)
    with pytest.raises(ValueError, match="expected 1 rows"):
        sample_rows([one], logits)
    with pytest.raises(ValueError, match="expected 2 rows"):
        sample_rows([one, other], logits, [None])
    with pytest.raises(ValueError, match="different samplers"):
        sample_rows([one, one], logits)
    with pytest.raises(ValueError, match="samplers of 40 tokens"):
        sample_rows([one, sampler(41, {})], logits)
    with pytest.raises(ValueError, match="without gaps"):
        sample_rows([one, other], np.asfortranarray(logits))
    with pytest.raises(TypeError, match=r"float32\[rows, n_vocab\]"):
        sample_rows([one, other], logits.astype(np.float64))
    with pytest.raises(TypeError):
        sample_rows([one, None], logits)
    for mask in (np.zeros(1, np.int32), np.zeros(2, np.int64), np.zeros(4, np.int32)[::2], [0, 0]):
        with pytest.raises(ValueError, match=r"allowed: expected int32\[2\]"):
            sample_rows([one, other], logits, [None, mask])
    assert sample_rows([], np.empty((0, 40), np.float32)) == []


def test_an_answer_that_waits_holds_little() -> None:
    """Hundreds may wait for their turn; arrays as long as the vocabulary are one thread's."""
    n, params = 262_144, {"temperature": 1.0, "top_p": 0.9, "presence_penalty": 1.0}
    logits = np.zeros(n, np.float32)
    sampler(n, params).sample(logits)  # this thread has its arrays now
    tracemalloc.start()
    try:
        waiting = [sampler(n, params) for _ in range(100)]
        for one in waiting:
            one.observe(range(1000))
            one.sample(logits)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / len(waiting) < 200_000  # the tokens of its prompt; one array is a megabyte


def test_a_softmax_in_python_may_draw() -> None:
    """It gets arrays of its own: those of the draw that called it stay as they are."""
    rows = some_logits(5, 2, 500)
    other = sampler(500, {"temperature": 1.0, "seed": 2})

    def exact(x: Floats, scale: float) -> Floats:
        terms = np.exp(x.astype(np.float64) * scale)
        return (terms / terms.sum()).astype(np.float32)

    def drawing(x: Floats, scale: float) -> Floats:
        before = x.copy()
        other.sample(rows[1])
        assert np.array_equal(x, before)
        return exact(x, scale)

    params = SamplingParams.from_kwargs({"temperature": 1.0, "seed": 1})
    plain = make_sampler(params, 500, softmax=exact)
    nested = make_sampler(params, 500, softmax=drawing)
    for _ in range(5):
        assert nested.sample(rows[0]) == plain.sample(rows[0])
