"""Blocks of rows that a thread takes through several steps: nobody sees where they end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from encoder_golden import open_runner, read_encoder

import slmq
from slmq.embedding.runner import EncodedText

ISAS = [name for name, table in slmq.isa.items() if table is not None]
LENGTHS = [3, 40, 1, 17, 64, 63, 33, 2, 50, 31, 16, 48]


def texts_of(lengths: list[int]) -> list[EncodedText]:
    rng = np.random.default_rng(4)
    return [
        EncodedText(rng.integers(5, 60, n).astype(np.int32), np.zeros(n, np.int32)) for n in lengths
    ]


@pytest.mark.parametrize("format", ["f32", "q8g32s", None])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_texts_share_blocks_without_a_trace(family: str, format: Any) -> None:
    golden = read_encoder(family, "body" if family == "bert" else "windows_mean_pooled")
    texts = texts_of(LENGTHS)
    alone = open_runner(golden.folder, format=format, isa="scalar", n_threads=1)
    want = [next(alone.pooled([text])) for text in texts]
    for isa in ISAS:
        for threads in (1, 2, 3, 5):
            runner = open_runner(golden.folder, format=format, isa=isa, n_threads=threads)
            for got, vector in zip(runner.pooled(texts), want, strict=True):
                assert np.array_equal(got, vector), (isa, threads)


def test_time_is_shared_out_among_the_steps_of_a_chain() -> None:
    runner = open_runner(read_encoder("bert", "body").folder, n_threads=2)
    texts = texts_of(LENGTHS)
    list(runner.pooled(texts))
    plan = next(iter(runner._plans.values())).native
    segments = [
        (s, len(text.ids))
        for s, text in zip(runner._some_sequences(plan, len(texts)), texts, strict=True)
    ]
    tokens = np.concatenate([text.ids for text in texts])
    outputs = np.zeros(1, np.int32)
    times = plan.run(tokens, segments, outputs, profile=True)
    assert len(times) == len(plan.describe())
    assert all(us > 0 for us in times)
