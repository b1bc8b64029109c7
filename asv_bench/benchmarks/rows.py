"""The other kernels, on one thread: rows of SmolLM2-135M's sizes, and one block of attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .common import ISAS, need_isa, once_for_all_isas, random_rows

HIDDEN, INNER = 576, 1536
HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64


def rmsnorm(table: Any, rows: int) -> Callable[[], Any]:
    x, weight = random_rows(rows, HIDDEN), np.ones(HIDDEN, np.float32)
    return lambda: table.rmsnorm(x, weight, 1e-5)


def quantize_a8(table: Any, rows: int) -> Callable[[], Any]:
    x = random_rows(rows, INNER)
    if not hasattr(table, "quantize"):
        return lambda: table.quantize_a8(x)
    return lambda: table.quantize(x, "a8g32")


def quantize_a16(table: Any, rows: int) -> Callable[[], Any]:
    x = random_rows(rows, INNER)
    return lambda: table.quantize(x, "a16g32")


def rope(table: Any, rows: int) -> Callable[[], Any]:
    """A head a row, all at one position."""
    x, angles = random_rows(rows * HEADS, HEAD_DIM), random_rows(1, HEAD_DIM // 2)[0]
    cosines, sines = np.cos(angles), np.sin(angles)
    return lambda: table.rope(x, cosines, sines)


def swiglu(table: Any, rows: int) -> Callable[[], Any]:
    gate = random_rows(rows, INNER).reshape(-1)
    if not hasattr(table, "gated"):
        return lambda: table.swiglu(gate, gate)
    return lambda: table.gated("silu", gate, gate)


def softmax(table: Any, rows: int) -> Callable[[], Any]:
    """One row, of sixteen positions for each."""
    x = random_rows(1, 16 * rows)[0]
    return lambda: table.softmax(x)


def attention(table: Any, rows: int) -> Callable[[], Any]:
    """As many positions as rows; the keys and values are put into a fresh cache in the call."""
    q = random_rows(rows * HEADS, HEAD_DIM).reshape(rows, HEADS, HEAD_DIM)
    k = random_rows(rows * KV_HEADS, HEAD_DIM).reshape(rows, KV_HEADS, HEAD_DIM)
    return lambda: table.attention(q, k, k, 0.125)


VERBS = {
    make.__name__: make
    for make in (rmsnorm, quantize_a8, quantize_a16, rope, swiglu, softmax, attention)
}


class Rows:
    """Time of one kernel over a few and over many rows."""

    version = "1"
    timeout = 60
    rounds = 1
    number = 1
    repeat = (5, 500, 0.1)
    warmup_time = 0.02
    params = (list(VERBS), [16, 256], ISAS)
    param_names = ("verb", "rows", "isa")

    def setup(self, verb: str, rows: int, isa: str) -> None:
        once_for_all_isas()
        self.call = VERBS[verb](need_isa(isa), rows)
        try:
            self.call()
        except (AttributeError, TypeError) as error:
            raise NotImplementedError(f"this commit has no such {verb}: {error}") from error

    def time_rows(self, *_: object) -> None:
        self.call()
