"""Every family: sequences that run together have the bits that each has alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from golden import golden_names, read_golden
from llama_files import build, feed

from slmq.models.registry import FAMILIES

CASES = [
    (family, name) for family in sorted(set(FAMILIES.values())) for name in golden_names(family)
]
# Rows of the sequences in each run: prompts, one more token beside a prompt, one token each.
RUNS = ((20, 7, 0), (1, 13, 9), (1, 1, 1), (5, 1, 20))


def together(plan: Any, texts: list[list[int]]) -> list[Any]:
    """Logits of every text, fed in `RUNS`."""
    sequences = [plan.cache.sequence() for _ in texts]
    found: list[list[Any]] = [[] for _ in texts]
    at = [0] * len(texts)
    for sizes in RUNS:
        parts = [text[a : a + n] for text, a, n in zip(texts, at, sizes, strict=True)]
        running = [i for i, part in enumerate(parts) if part]
        tokens = np.array([token for part in parts for token in part], np.int32)
        plan.run(
            tokens,
            [(sequences[i], len(parts[i])) for i in running],
            np.arange(len(tokens), dtype=np.int32),
        )
        logits = iter(plan.logits())
        for i in running:
            found[i] += [next(logits) for _ in parts[i]]
            at[i] += len(parts[i])
    return [np.array(rows) for rows in found]


@pytest.mark.parametrize(("family", "name"), CASES)
@pytest.mark.parametrize("kv_dtype", ["f16", "int8"])
def test_a_batch_has_the_bits_of_each_alone(family: str, name: str, kv_dtype: str) -> None:
    golden = read_golden(family, name)
    first, second = golden.tokens
    texts = [list(first), list(second), list(second[::-1])]
    plan = build(golden.folder, format=None, kv_dtype=kv_dtype, threads=2)
    for got, text in zip(together(plan, texts), texts, strict=True):
        alone = feed(plan, plan.cache.sequence(), text[: len(got)])
        assert np.array_equal(got, alone)
