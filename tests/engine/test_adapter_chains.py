"""Adapters in plans that take texts from end to end: threads run chains without meeting."""

from __future__ import annotations

import numpy as np
from kernel_cases import normal

from slmq import _native
from slmq.plan.handle import Handle
from slmq.plan.linear import Linear
from slmq.plan.plan import RecordedPlan
from slmq.plan.recorder import Recorder

WIDTH, INNER, VOCABULARY, ROWS = 544, 96, 96, 512  # products get the buffer that embed() wrote


def matrix(n: int, k: int, seed: int, format: str = "q8g32s") -> Linear:
    values = (normal(n, k, seed=seed) * k**-0.5).astype(np.float32)
    packed = _native.Matrix.pack("f32", values.view(np.uint8).reshape(-1), n, k, format)
    return Linear(packed)


def record(plan: Recorder) -> Handle:
    """A layer whose gated unit has an adapter, with attention to both sides."""
    x = plan.embed(matrix(VOCABULARY, WIDTH, 1, "f32"))
    y = plan.linear(x, matrix(WIDTH, WIDTH, 2), add=x)
    del x
    gated = plan.gated(y, matrix(INNER, WIDTH, 3), matrix(INNER, WIDTH, 4), "silu")
    out = plan.linear(gated, matrix(WIDTH, INNER, 5), add=y)
    del gated, y
    q, k, v = plan.linear(out, [matrix(64, WIDTH, seed) for seed in (6, 7, 8)]).split()
    del out
    attended = plan.attention(q, k, v, head_dim=32, causal=False)
    return plan.linear(plan.select(attended), matrix(VOCABULARY, 64, 9))


def test_products_of_an_adapter_touch_no_row_of_another_thread() -> None:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, ROWS).astype(np.int32)
    found = set()
    for threads, runs in ((1, 1), (2, 20), (3, 20)):
        plan = RecordedPlan(
            record, threads=threads, max_rows=ROWS, max_outputs=ROWS, vocabulary=VOCABULARY,
            adapters=True,
        )  # fmt: skip
        parts = [
            (slot, normal(16, WIDTH, seed=slot) * 0.04, normal(INNER, 16, seed=slot + 9) * 0.1)
            for slot in (1, 2)
        ]
        adapter = plan.native.adapter(
            [
                (slot, a.astype(np.float32), b.astype(np.float32), None, None)
                for slot, a, b in parts
            ],
            "i8",
        )
        for _ in range(runs):
            plan.native.run(
                tokens, [(plan.cache.sequence(), ROWS)], np.arange(ROWS, dtype=np.int32),
                adapters=[adapter],
            )  # fmt: skip
            found.add(plan.logits().tobytes())
    assert len(found) == 1
