"""Products with a packed matrix: what nearly all of a model's time goes to."""

from __future__ import annotations

from functools import lru_cache
from inspect import signature
from typing import Any

import numpy as np

from .common import ISAS, need, need_isa, need_threads, once_for_all_isas, random_rows
from .limits import fraction, integer_macs_per_s, read_fraction

INTEGER_FORMATS = ["q4g32s", "q4g32a", "q8g32s", "q4k", "q5k", "q6k", "q4g128z", "n4g32"]
FORMATS = [*INTEGER_FORMATS, "f16"]
ACTIVATIONS = ["a8g32", "a16g32", "a8o16g32"]
# Outputs x inputs: SmolLM2-135M's gate and down, TinyLlama-1.1B's gate.
SHAPES = {"1536x576": (1536, 576), "576x1536": (576, 1536), "5632x2048": (5632, 2048)}
LARGE_K = 2048
LARGE_BYTES = 128 << 20  # far beyond the caches
PEAK_SHAPE, PEAK_ROWS = "5632x2048", 128


@lru_cache(maxsize=1)
def matrix(shape: tuple[int, int], weight_format: str) -> Any:
    """A random packed matrix; skips a shape whose rows are not whole runs of the format."""
    made = need("slmq", "QuantizedMatrix")
    if weight_format in ("q4g32s", "q4g32a", "q8g32s", "f16"):
        return made.quantize(random_rows(*shape), weight_format)
    layout = need("slmq.formats", "FORMATS").get(weight_format)
    if layout is None or shape[1] % layout.columns:
        raise NotImplementedError(f"{weight_format} does not hold rows of {shape[1]} columns here")
    make, rng = need("slmq.speed.shapes", "random_blocks"), np.random.default_rng(0)
    blocks = make(layout, shape[1], rng) if _takes_width(make) else make(layout, rng)
    size = need("slmq.formats", "packed_bytes")(layout, *shape)
    return made.from_packed(np.resize(blocks, size), shape, weight_format)


def _takes_width(make: Any) -> bool:
    """Whether blocks are made for rows of a width: older commits had no formats that need it."""
    return "width" in signature(make).parameters


@lru_cache(maxsize=1)
def large_matrix(weight_format: str) -> Any:
    """Weights far larger than a cache: one block over and over, only their number matters."""
    rows = 512
    block = matrix((rows, LARGE_K), weight_format)
    repeats = -(-LARGE_BYTES // block.nbytes)
    packed = np.tile(block.packed, repeats)
    made = need("slmq", "QuantizedMatrix")
    return made.from_packed(packed, (repeats * rows, LARGE_K), weight_format)


def product(isa: str, weights: Any, x: Any, threads: int, activations: str) -> Any:
    """A call that multiplies with one instruction set, tried once."""
    table, native = need_isa(isa), weights._native

    def multiply() -> Any:
        return table.linear(native, x, threads, activations)

    try:
        multiply()
    except TypeError as error:
        raise NotImplementedError(f"this commit cannot choose activations: {error}") from error
    return multiply


class Linear:
    """Time of `x @ w.T`: one row as in decoding, sixteen as in a batch; weights in the cache."""

    version = "1"
    timeout = 120
    rounds = 1
    number = 1
    repeat = (5, 200, 0.2)
    warmup_time = 0.02
    params = (FORMATS, list(SHAPES), [1, 16], ISAS, [1, 2])
    param_names = ("format", "shape", "rows", "isa", "threads")

    def setup(self, weight_format: str, shape: str, rows: int, isa: str, threads: int) -> None:
        once_for_all_isas()
        need_threads(threads)
        need_isa(isa)
        weights = matrix(SHAPES[shape], weight_format)
        x = random_rows(rows, SHAPES[shape][1])
        self.multiply = product(isa, weights, x, threads, "a16g32")

    def time_linear(self, *_: object) -> None:
        self.multiply()


class ReadFraction:
    """One row against weights far larger than a cache: bound by memory, so by bytes."""

    version = "1"
    timeout = 120
    unit = "fraction of read bandwidth"
    params = (FORMATS, ISAS, [1, 2])
    param_names = ("format", "isa", "threads")

    def setup(self, weight_format: str, isa: str, threads: int) -> None:
        once_for_all_isas()
        need_threads(threads)
        need_isa(isa)
        self.weights = large_matrix(weight_format)
        self.multiply = product(isa, self.weights, random_rows(1, LARGE_K), threads, "a16g32")

    def track_read_fraction(self, weight_format: str, isa: str, threads: int) -> float:
        return read_fraction(self.multiply, self.weights.nbytes, threads)


class IntegerFraction:
    """Many rows against weights in the cache: bound by integer arithmetic.

    Activations of sixteen bits (a16g32) take two int8 products for one weight, which is counted
    once: with them 0.5 is full use.
    """

    version = "1"
    timeout = 120
    unit = "fraction of integer peak"
    params = (INTEGER_FORMATS, ACTIVATIONS, ISAS, [1, 2])
    param_names = ("format", "activations", "isa", "threads")

    def setup(self, weight_format: str, activations: str, isa: str, threads: int) -> None:
        once_for_all_isas()
        need_threads(threads)
        need_isa(isa)
        n, k = SHAPES[PEAK_SHAPE]
        self.macs = PEAK_ROWS * n * k
        weights = matrix((n, k), weight_format)
        self.multiply = product(isa, weights, random_rows(PEAK_ROWS, k), threads, activations)

    def track_integer_fraction(
        self, weight_format: str, activations: str, isa: str, threads: int
    ) -> float:
        return fraction(lambda: integer_macs_per_s(threads, isa), self.multiply, amount=self.macs)
