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
    "n4g32": 4.25,
    "n4k": 4.3125,
    "n4g32s": 4.5,
    "f4g32s": 4.5,
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
    layout = formats.FORMATS[fmt]
    assert layout.bits_per_weight == BITS[fmt]
    assert layout.bits_in_rows(k) == BITS[fmt] + (16 / k if layout.run == 0 else 0)
    assert _native.packed_bytes(fmt, n, k) == layout.bits_in_rows(k) * n * k / 8


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


def test_the_bytes_of_codes_with_a_table() -> None:
    """Codes lie as those of int4; a group's byte is twice its scale plus the bit of its table."""
    codes = np.full((32, 256), 8, np.uint8)
    codes[3, 6], codes[3, 22] = 15, 1  # nibbles of byte 2 of lane 3 in line 1
    scales = np.full((32, 8), 2, np.int8)
    scales[3, 0], scales[3, 1] = 2 * -5 + 1, 2 * 63
    d = np.full((32, 1), 0.5, np.float16)
    d[3] = 2
    packed = from_parts(formats.Parts(codes, scales, None, d), "n4k").packed
    assert packed[64 * 1 + 4 * 3 + 2] == 15 | 1 << 4
    assert packed[512:544].view(np.int8).tolist() == [2, 2, 2, -9, *[2] * 28]
    assert packed[544 + 3] == 126  # of the second group, in front of its tiles
    assert packed[576] == 8 | 8 << 4
    matrix = from_parts(formats.Parts(codes, scales, None, d), "n4g32")
    assert np.array_equal(matrix.packed, packed)  # a row of 256 columns
    row = matrix.dequantize(3, 4)[0]
    assert (row[6], row[22], row[0]) == (2 * -5 * (113 + 4), 2 * -5 * (-104 + 4), 2 * -5 * (1 + 4))
    assert row[32] == 2 * 63 * 1
    assert_values(
        matrix, formats.Parts(codes, scales, None, d).dequantize(formats.FORMATS["n4g32"])
    )


@pytest.mark.parametrize("fmt", ["n4g32", "n4k", "n4g32s", "f4g32s"])
def test_products_by_a_table_have_the_bits_of_int8(fmt: str) -> None:
    """Where float16 holds the products of scales: integers are the same, and so are all sums."""
    layout, (n, k), rng = formats.FORMATS[fmt], (70, 512), np.random.default_rng(2)
    codes = rng.integers(0, 16, (n, k), np.uint8)
    values = np.array(layout.values, np.int16)[codes]
    if layout.two_level:
        scales = rng.integers(-128, 128, (n, k // 32)).astype(np.int8)
        d = np.ldexp(1.0, rng.integers(-9, 3, (n, 16 // layout.run_groups(k)))).astype(np.float16)
        parts = formats.Parts(codes, scales, None, d)
        values += layout.lift * np.repeat(scales & 1, 32, axis=1)
        wide = np.repeat(d, layout.run_groups(k), axis=1) * (scales >> 1).astype(np.float16)
    else:
        wide = (rng.standard_normal((n, k // 32)) * 0.1).astype(np.float16)
        parts = formats.Parts(codes, wide)
    matrix = from_parts(parts, fmt)
    int8 = from_parts(formats.Parts((values + 128).astype(np.uint8), wide), "q8g32s")
    assert np.array_equal(matrix.dequantize(0, n), int8.dequantize(0, n))
    for act in ACTIVATIONS:
        for m in (1, 2, 3, 4, 7, 20):
            x = normal(m, k, seed=m)
            x[:, 40:50] *= 50  # groups with low planes
            want = SCALAR.linear(int8, x, 1, act)
            for name, table in ISAS.items():
                assert same_bits(table.linear(matrix, x, 2, act), want), (name, act, m)


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
        signed = fmt == "q6k" or layout.lift
        scales = np.full_like(parts.scales, 127 if largest else -128 if signed else 0)
        mins = None if parts.mins is None else np.full_like(parts.mins, 127 * largest)
        parts = replace(parts, scales=scales, mins=mins)
    assert_linear(from_parts(parts, fmt), extreme_activations(k), act)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("fmt", ["n4g32s", "f4g32s"])
def test_linear_of_every_value_of_a_table(fmt: str, act: str) -> None:
    """Rows of one code each, and of two: sums of sixteen bits may pass their bounds on the way."""
    rows, k = np.arange(48)[:, None], 96
    codes = np.where(np.arange(k) % 2 == 0, rows % 16, (rows + rows // 16 * 7) % 16)
    parts = formats.Parts(codes.astype(np.uint8), np.ones((48, k // 32), np.float16), None)
    assert_linear(from_parts(parts, fmt), extreme_activations(k), act)


@pytest.mark.parametrize("fmt", ["q5g32s", "q6k", "n4g32"])
@pytest.mark.parametrize("more", [0, 1])
def test_linear_of_one_row_whose_low_planes_wait(fmt: str, more: int) -> None:
    """Up to 256 parts of groups wait for the high planes; of more, all come behind these."""
    layout = formats.FORMATS[fmt]
    k = 32 * 256 // layout.parts + more * max(32, layout.columns)
    assert_linear(from_parts(random_parts(fmt, 33, k), fmt), normal(1, k, seed=1), "a16g32")


# --- errors -----------------------------------------------------------------------------------


def broken(fmt: str, n: int = 3, **changes: Any) -> Any:
    """A call that packs parts of which some are replaced."""
    k = columns(fmt, 1)
    parts = vars(random_parts(fmt, n, k)) | changes
    return lambda: _native.Matrix.from_parts(fmt, n, k, **parts)


@pytest.mark.parametrize("fmt", [fmt for fmt in FROM_PARTS if formats.FORMATS[fmt].bits < 8])
def test_codes_beyond_their_bits(fmt: str) -> None:
    layout = formats.FORMATS[fmt]
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


@pytest.mark.parametrize("fmt", [fmt for fmt in FROM_PARTS if formats.FORMATS[fmt].run != 1])
def test_rows_of_whole_runs(fmt: str) -> None:
    layout = formats.FORMATS[fmt]
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
