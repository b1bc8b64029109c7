"""Log-probabilities of tokens: accuracy, order and bits."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from slmq.generation._sampling import logsumexp, top_ids
from slmq.generation.sampling import token_logprob

SIZES = [1, 2, 15, 16, 17, 63, 64, 65, 127, 129, 1000]


def some_logits(n: int, seed: int = 0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(n) * 3).astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 100, 5000])
def test_logsumexp_is_accurate(n: int) -> None:
    for scale in (0.01, 1.0, 30.0):
        logits = some_logits(n, 5) * np.float32(scale)
        top = float(logits.max())
        exact = top + math.log(math.fsum(math.exp(float(x) - top) for x in logits))
        assert logsumexp(logits) == pytest.approx(exact, rel=1e-14, abs=1e-14)


def test_logsumexp_has_the_same_bits_everywhere() -> None:
    # Fails where the compiler contracts a * b + c, which 600 values in 200 sums do not hide.
    rows = (np.random.Philox(key=1).random_raw(600) % 4096).astype(np.float32).reshape(-1, 3)
    bits = np.array([logsumexp(row / 128 - 16) for row in rows], "<f8").tobytes()
    assert hashlib.sha256(bits).hexdigest() == GOLDEN_LOGSUMEXP


GOLDEN_LOGSUMEXP = "6dbaf023a62194963567342bb5b47d560a1a09101c7ff00464a57b8b6b3c5790"


def test_logsumexp_passes_over_minus_infinity() -> None:
    logits = np.array([-np.inf, 2.5, -np.inf], np.float32)
    assert logsumexp(logits) == 2.5
    assert token_logprob(logits, 1, 3).top == ((1, 0.0),)
    assert token_logprob(logits, 0, 0).logprob == -math.inf


@pytest.mark.parametrize("n", SIZES)
def test_top_ids_equal_a_sort(n: int) -> None:
    logits = np.round(some_logits(n, n))
    ranked = sorted(range(n), key=lambda i: (-float(logits[i]), i))
    for k in (0, 1, 2, 5, n):
        assert top_ids(logits, k) == ranked[:k]


def test_logprobs_are_those_of_the_model_before_filters() -> None:
    logits = some_logits(100)
    exact = logits.astype(np.float64) - logits.max()
    exact -= math.log(np.exp(exact).sum())
    found = token_logprob(logits, 17, 100)
    assert found.token == 17
    assert found.logprob == pytest.approx(exact[17], abs=1e-12)
    np.testing.assert_allclose(
        [value for _, value in found.top], np.sort(exact)[::-1], rtol=0, atol=1e-12
    )
    assert math.fsum(math.exp(value) for _, value in found.top) == pytest.approx(1, abs=1e-12)
