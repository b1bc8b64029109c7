"""Formats made of parts that somebody else quantized: bytes, values and products.

The packer and the dequantizers against the NumPy specification, K-quants against `gguf`, products
on every ISA against float64 within derived bounds and against each other bit by bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from kernel_cases import (
    FROM_PARTS,
    ISAS,
    QUANTIZED,
    SCALAR,
    from_parts,
    normal,
    random_parts,
    same_bits,
)
from test_kernels import ACTIVATIONS, assert_linear, extreme_activations

from slmq import _native, formats
from slmq.checkpoint.foreign.ggml_blocks import block_integers

BITS = {
    "q4k": 4.625,
    "q5k": 5.625,
    "q6k": 6.5625,
    "q2k": 3.125,
    "q5g32s": 5.5,
    "q5g32a": 6,
    "q6g32s": 6.5,
    "q8g32a": 9,
    "q4g32z": 5,
    "q4g64z": 4.5,
    "q4g128z": 4.25,
    "q4g64s": 4.25,
    "q4g128s": 4.125,
    "q2g64s": 2.25,
    "q2g128s": 2.125,
    "q2g256s": 2.0625,
    "q1g128a": 1.25,
}
K_QUANTS = {"q2_k": "q2k", "q3_k": "q6k", "q4_k": "q4k", "q5_k": "q5k", "q6_k": "q6k"}


def columns(fmt: str, runs: int) -> int:
    """Columns of so many runs; in formats of any size, one less than whole groups."""
    layout = formats.FORMATS[fmt]
    return runs * layout.columns if layout.columns > 1 else 32 * runs - 1


def assert_values(matrix: Any, wanted: npt.NDArray[np.float32]) -> None:
    assert same_bits(matrix.dequantize(0, len(wanted)), wanted)
    for table in ISAS.values():
        assert same_bits(table.dequantize(matrix), wanted)


def only(bytes_: npt.NDArray[np.uint8]) -> tuple[list[int], int]:
    """Where the only byte is that is not 0, and the byte."""
    (place,) = np.argwhere(bytes_).tolist()
    return place, int(bytes_[tuple(place)])


# --- bytes and values -------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FROM_PARTS)
def test_bits_per_weight(fmt: str) -> None:
    n, k = 64, 4 * formats.FORMATS[fmt].columns if formats.FORMATS[fmt].run > 1 else 128
    assert formats.FORMATS[fmt].bits_per_weight == BITS[fmt]
    assert _native.packed_bytes(fmt, n, k) == BITS[fmt] * n * k / 8


@pytest.mark.parametrize("fmt", [*QUANTIZED, *FROM_PARTS])
@pytest.mark.parametrize(("n", "runs"), [(1, 1), (16, 3), (33, 2), (70, 1)])
def test_parts_pack_as_specified_and_come_back(fmt: str, n: int, runs: int) -> None:
    layout, k = formats.FORMATS[fmt], columns(fmt, runs)
    parts = random_parts(fmt, n, k, seed=n)
    matrix, wanted = from_parts(parts, fmt), formats.pack_parts(parts, layout)
    assert np.array_equal(matrix.packed, wanted)
    assert matrix.nbytes == formats.packed_bytes(layout, n, k) == len(wanted)
    again = formats.unpack_parts(wanted, n, k, layout)
    for name in ("codes", "scales", "mins", "d", "dmin"):
        got, want = getattr(again, name), getattr(parts, name)
        assert (got is None) == (want is None), name
        assert want is None or same_bits(got, want), name
    assert_values(matrix, parts.dequantize(layout))
    assert same_bits(formats.unpack(wanted, n, k, layout), parts.dequantize(layout))


def test_the_diagram_of_the_upper_planes() -> None:
    """Bit i of byte b, lane r, is column 4i + b; fields of two bits of line h are 16h + 4j + b."""
    codes = np.zeros((32, 256), np.uint8)
    codes[3, 22] = 16  # q5k: the fifth bit of column 22 = 4 * 5 + 2 of row 3
    codes[17, 9] = 15
    ones, halves = np.ones((32, 8), np.int8), np.ones((32, 1), np.float16)
    five = from_parts(formats.Parts(codes, ones, ones, halves, halves), "q5k").packed
    fifth = five[256:320].reshape(16, 4)
    assert only(fifth) == ([3, 2], 1 << 5)
    assert five[320 + 64 * 2 + 4 * 1 + 1] == 15  # tile B: line 2, lane 1, byte 1, low nibble
    codes[3, 22] = 48  # column 16 * 1 + 4 * 1 + 2
    six = from_parts(formats.Parts(codes, np.ones((32, 16), np.int8), None, halves), "q6k").packed
    upper = six[256:384].reshape(2, 16, 4)
    assert only(upper) == ([1, 3, 2], 3 << 2)
    codes[3, 22], codes[17, 9] = 2, 0
    sixteen = np.ones((32, 16), np.int8)
    two = from_parts(formats.Parts(codes, sixteen, sixteen, halves, halves), "q2k").packed
    assert only(two[:256].reshape(2, 2, 16, 4)) == ([0, 1, 3, 2], 2 << 2)


@pytest.mark.parametrize("kind", K_QUANTS)
def test_k_quants_keep_every_value(kind: str) -> None:
    """Random blocks, and those of the largest and smallest integers."""
    kind_of = gguf.GGMLQuantizationType[kind.upper()]
    size = gguf.GGML_QUANT_SIZES[kind_of][1]
    raw = np.random.default_rng(3).integers(0, 256, (40, 3, size), np.uint8)
    raw[0], raw[1] = 0, 255
    at = {"q2_k": [80, 82], "q3_k": [108], "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208]}[kind]
    for i, byte in enumerate(at):
        d = normal(40, 3, seed=i).astype(np.float16)
        d[2], d[3], d[4] = 65504, -0.0, 2.0**-24
        raw[..., byte : byte + 2] = d[..., None].view(np.uint8)
    raw = raw.reshape(40, -1)
    found = block_integers(kind, raw.reshape(-1), (40, 768))
    codes = found.codes + np.uint8(28) if kind == "q3_k" else found.codes
    assert found.scales is not None
    parts = formats.Parts(codes, found.scales, found.mins, found.d, found.dmin)
    matrix = from_parts(parts, K_QUANTS[kind])
    assert_values(matrix, gguf.quants.dequantize(raw, kind_of))


def test_row_order_and_threads() -> None:
    order = np.random.default_rng(1).permutation(70).astype(np.int32)
    for fmt in FROM_PARTS:
        parts = random_parts(fmt, 70, columns(fmt, 1))
        picked: dict[str, Any] = {
            name: None if part is None else part[order] for name, part in vars(parts).items()
        }
        want = from_parts(formats.Parts(**picked), fmt).packed
        assert np.array_equal(from_parts(parts, fmt, order=order, threads=2).packed, want)


# --- products ---------------------------------------------------------------------------------

kinds = pytest.mark.parametrize("fmt", FROM_PARTS)


@kinds
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_linear_at_awkward_sizes(fmt: str, act: str) -> None:
    for n, runs, m in [(1, 1, 1), (17, 2, 3), (50, 3, 2)]:
        k = columns(fmt, runs)
        assert_linear(from_parts(random_parts(fmt, n, k, n), fmt), normal(m, k, seed=m), act)


@kinds
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_linear_of_any_number_of_rows(fmt: str, act: str) -> None:
    """Each row alone gives the bits that it gives among others."""
    k = columns(fmt, 1 if formats.FORMATS[fmt].two_level else 3)
    matrix, x = from_parts(random_parts(fmt, 33, k), fmt), normal(37, k, seed=1)
    alone = np.concatenate([SCALAR.linear(matrix, x[i : i + 1], 1, act) for i in range(37)])
    for m in (*range(1, 12), 16, 37):
        assert same_bits(assert_linear(matrix, x[:m], act), alone[:m])


@kinds
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("largest", [True, False])
def test_linear_of_extreme_integers(fmt: str, act: str, largest: bool) -> None:
    """All codes and factors at an end, against all a = 127 or -127: no dot may saturate."""
    layout, k = formats.FORMATS[fmt], columns(fmt, 2)
    parts = random_parts(fmt, 40, k)
    codes = np.full_like(parts.codes, (1 << layout.bits) - 1 if largest else 0)
    codes[::3, ::2] ^= (1 << layout.bits) - 1
    parts = replace(parts, codes=codes)
    if layout.two_level:
        scales = np.full_like(parts.scales, 127 if largest else -128 if fmt == "q6k" else 0)
        mins = None if parts.mins is None else np.full_like(parts.mins, 127 * largest)
        parts = replace(parts, scales=scales, mins=mins)
    assert_linear(from_parts(parts, fmt), extreme_activations(k), act)


# --- errors -----------------------------------------------------------------------------------


def broken(fmt: str, n: int = 3, **changes: Any) -> Any:
    """A call that packs parts of which some are replaced."""
    k = columns(fmt, 1)
    parts = vars(random_parts(fmt, n, k)) | changes
    return lambda: _native.Matrix.from_parts(fmt, n, k, **parts)


@kinds
def test_codes_beyond_their_bits(fmt: str) -> None:
    layout = formats.FORMATS[fmt]
    if layout.bits == 8:
        pytest.skip("every byte is a code")
    codes = np.zeros((3, columns(fmt, 1)), np.uint8)
    codes[1, 5] = 1 << layout.bits
    with pytest.raises(ValueError, match=rf"codes: expected integers of {layout.bits} bits"):
        broken(fmt, codes=codes)()


@kinds
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_scales_that_are_not_finite(fmt: str, value: float) -> None:
    parts = vars(random_parts(fmt, 3, columns(fmt, 1)))
    for name, part in parts.items():
        if part is None or part.dtype != np.float16:
            continue
        spoiled = part.copy()
        spoiled[2, -1] = value
        with pytest.raises(ValueError, match="expected finite weights, found NaN or infinity"):
            broken(fmt, **{name: spoiled})()


@kinds
def test_rows_of_whole_runs(fmt: str) -> None:
    layout = formats.FORMATS[fmt]
    if layout.run == 1:
        pytest.skip("takes any number of columns")
    message = rf"k to be a multiple of {layout.columns} for {fmt}, got 32"
    with pytest.raises(ValueError, match=message):
        _native.packed_bytes(fmt, 1, 32)
    with pytest.raises(ValueError, match=message):
        formats.packed_bytes(layout, 1, 32)
    with pytest.raises(ValueError, match=message):
        _native.Matrix.from_packed(fmt, 32, 32, np.zeros(4096, np.uint8))
    with pytest.raises(ValueError, match=message):
        _native.Arena(8192).matrix(fmt, 32, 32, 0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (broken("q4k", d=None), TypeError, r"d: expected float16\[3, 1\], got NoneType"),
        (broken("q4k", mins=None), TypeError, r"mins: expected int8\[3, 8\], got NoneType"),
        (broken("q6k", mins=np.zeros((3, 16), np.int8)), ValueError, "mins: expected None"),
        (broken("q6k", dmin=np.zeros((3, 1), np.float16)), ValueError, "dmin: expected None"),
        (
            broken("q6k", scales=np.zeros((3, 8), np.int8)),
            ValueError,
            r"scales: expected int8\[3, 16\], got int8\[3, 8\]",
        ),
        (
            broken("q4k", scales=np.full((3, 8), 128, np.uint8)),
            ValueError,
            r"scales: expected factors of 0\.\.127",
        ),
        (
            broken("q4g128z", mins=np.zeros((3, 1), np.int8)),
            TypeError,
            r"mins: expected uint8\[3, 1\], got int8",
        ),
        (
            broken("q8g32a", scales=np.zeros((3, 1), np.float32)),
            TypeError,
            r"scales: expected float16\[3, 1\], got float32",
        ),
        (
            broken("q4g64s", codes=np.zeros((3, 63), np.uint8)),
            ValueError,
            r"codes: expected uint8\[3, 64\], got uint8\[3, 63\]",
        ),
        (
            lambda: _native.Matrix.from_parts(
                "f16", 1, 1, np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.float16)
            ),
            ValueError,
            "f16 has no parts",
        ),
    ],
)
def test_parts_say_what_they_expect(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@kinds
def test_floats_are_not_rounded_to_them(fmt: str) -> None:
    rows = normal(2, 256).view(np.uint8).reshape(-1)
    with pytest.raises(ValueError, match=f"{fmt} only holds weights quantized elsewhere; expected"):
        _native.Matrix.pack("f32", rows, 2, 256, fmt)
