"""GGUF blocks to integers and values: against the `gguf` package, and against blocks by hand."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from ggml_packer import SIGNED_SCALES, SIZES, WITH_MIN, Block, block_bytes, random_block
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq.checkpoint.foreign.ggml_blocks import (
    FLOAT_TYPES,
    QUANTIZED_TYPES,
    BlockIntegers,
    block_integers,
    dequantize,
)
from slmq.checkpoint.gguf import BLOCK_TYPES

PACKED = [kind for kind in QUANTIZED_TYPES if kind in SIZES]
quantized = pytest.mark.parametrize("kind", PACKED)

# Scales from everyday to extreme: zeros of both signs, the smallest and largest subnormal, the
# smallest normal, the largest number of float16, and negative ones.
HALVES = [0.0, -0.0, 6e-8, -6e-8, 6.1e-5, 6.104e-5, 0.01, -0.01, 1.0, -3.3, 65504.0, -65504.0]


def theirs(kind: str, raw: Any, n: int) -> Any:
    """The `gguf` package's values: float32[n, k]."""
    rows = raw.reshape(n, -1)
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind.upper()])
    return values.astype(np.float32).reshape(n, -1)


def assert_same_bits(got: Any, want: Any) -> None:
    """Equal to the sign of a zero; NaN is NaN."""
    both = np.isnan(got) & np.isnan(want)
    np.testing.assert_array_equal(
        np.where(both, 0, got.view(np.uint32)), np.where(both, 0, want.view(np.uint32))
    )


def image(kind: str, blocks: list[Block]) -> Any:
    return np.frombuffer(b"".join(block_bytes(kind, b) for b in blocks), np.uint8)


@pytest.mark.parametrize(
    "kind", [*(kind for kind in QUANTIZED_TYPES if kind not in ("q1_0", "q2_0")), *FLOAT_TYPES]
)
def test_random_bytes_have_the_values_of_the_package(kind: str) -> None:
    """Every bit pattern is a block: infinite and NaN scales too."""
    size = {block.name: block for block in BLOCK_TYPES.values()}[kind]
    rng = np.random.default_rng(7)
    n, k = 24, 1024
    raw = rng.integers(0, 256, n * (k // size.size) * size.nbytes, dtype=np.uint8)
    want = theirs(kind, raw, n)
    assert_same_bits(dequantize(kind, raw, (n, k)), want)
    for begin, end in [(0, 1), (5, 17), (23, 24)]:
        assert_same_bits(dequantize(kind, raw, (n, k), begin, end), want[begin:end])
    out = np.full((6, k), 7, np.float32)
    assert dequantize(kind, raw, (n, k), 2, 8, out) is out
    assert_same_bits(out, want[2:8])


@quantized
def test_extremes_have_the_values_of_the_package(kind: str) -> None:
    """All codes lowest and highest, all scales lowest and highest, every special float16."""
    columns, _, bits, groups, largest, largest_min = SIZES[kind]
    low, high = SIGNED_SCALES.get(kind, (0, largest))
    blocks = [
        Block([code] * columns, np.float16(d), [scale] * groups, np.float16(dmin), [least] * groups)
        for code in (0, (1 << bits) - 1)
        for scale in sorted({low, high})
        for least in sorted({0, largest_min})
        for d in HALVES
        for dmin in (HALVES[:4] + HALVES[-2:] if kind in WITH_MIN else [0.0])
    ]
    raw = image(kind, blocks)
    got = dequantize(kind, raw, (len(blocks), columns))
    assert_same_bits(got, theirs(kind, raw, len(blocks)))


@given(kind=st.sampled_from(PACKED), seed=st.integers(0, 1 << 32), data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_integers_are_those_that_were_packed(kind: str, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    columns, _, _, groups, _, largest_min = SIZES[kind]
    n, per_row = data.draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2)]))
    half = st.floats(width=16, allow_nan=False, allow_infinity=False)
    blocks = [random_block(kind, rng, data.draw(half), data.draw(half)) for _ in range(n * per_row)]
    got = block_integers(kind, image(kind, blocks), (n, per_row * columns))
    assert got.codes.tolist() == np.array([b.codes for b in blocks]).reshape(n, -1).tolist()
    assert got.codes.dtype == np.uint8
    d = np.array([b.d for b in blocks]).reshape(n, -1)
    assert got.d.astype(np.float16).view(np.uint16).tolist() == d.view(np.uint16).tolist()
    assert (got.superblock, got.group) == (columns, columns // groups)
    assert (got.dmin is not None) == (kind in WITH_MIN)
    if groups > 1:
        assert got.scales is not None
        assert got.scales.tolist() == np.array([b.scales for b in blocks]).reshape(n, -1).tolist()
    if got.dmin is not None:
        dmin = np.array([b.dmin for b in blocks]).reshape(n, -1)
        assert got.dmin.view(np.uint16).tolist() == dmin.view(np.uint16).tolist()
    if largest_min:
        assert got.mins is not None
        assert got.mins.tolist() == np.array([b.mins for b in blocks]).reshape(n, -1).tolist()
    assert_same_bits(got.dequantize(), by_the_docstring(got))


def by_the_docstring(x: BlockIntegers) -> Any:
    """The formula of `BlockIntegers` with whole columns, each step rounded to float32."""
    f32 = np.float32
    columns = np.arange(x.codes.shape[1])
    s, g = columns // x.superblock, columns // x.group
    a = x.d.astype(f32)[:, s]
    if x.scales is not None:
        a = a * x.scales.astype(f32)[:, g]
    if x.codebook is not None:
        return a * x.codebook.astype(f32)[x.codes]
    if x.dmin is None:
        return a * (x.codes.astype(f32) - f32(x.zero))
    b = x.dmin.astype(f32)[:, s]
    if x.mins is not None:
        b = b * x.mins.astype(f32)[:, g]
    return a * x.codes.astype(f32) + b * f32(x.min_sign)


@quantized
def test_blocks_by_hand_have_the_values_of_the_package(kind: str) -> None:
    rng = np.random.default_rng(3)
    blocks = [random_block(kind, rng, 0.01 * i - 0.03, 0.02 * i - 0.05) for i in range(8)]
    raw = image(kind, blocks)
    assert_same_bits(dequantize(kind, raw, (8, SIZES[kind][0])), theirs(kind, raw, 8))


@pytest.mark.parametrize(
    ("kind", "raw", "shape", "rows", "message"),
    [
        ("q8_k", 292, (1, 256), (0, 1), "expected one of q4_0"),
        ("q4_k", 143, (1, 256), (0, 1), r"expected uint8\[144\], got uint8\[143\]"),
        ("q4_k", 288, (1, 256), (0, 1), r"expected uint8\[144\], got uint8\[288\]"),
        ("q4_k", 144, (1, 255), (0, 1), "multiples of 256 for q4_k, got 255"),
        ("q4_0", 36, (2, 32), (0, 3), r"at least one row within 0\.\.2, got 0\.\.3"),
        ("q4_0", 36, (2, 32), (-1, 1), r"got -1\.\.1"),
        ("f16", 4, (2, 1), (1, 1), r"got 1\.\.1"),
    ],
)
def test_wrong_arguments(
    kind: str, raw: int, shape: tuple[int, int], rows: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dequantize(kind, np.zeros(raw, np.uint8), shape, *rows)
