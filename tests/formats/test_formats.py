"""The native packer against its NumPy specification, byte by byte, and both against GGUF."""

from __future__ import annotations

import time
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import reference as ref
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import FORMATS, ISAS, QUANTIZED, normal, pack, same_bits

from slmq import QuantizedMatrix, _native, formats

SHAPES = [(1, 1), (1, 33), (15, 31), (16, 32), (17, 33), (31, 100), (32, 64), (33, 65), (50, 96)]
GGUF_TYPES = {"q4_0": "q4g32s", "q4_1": "q4g32a", "q8_0": "q8g32s"}


def assert_as_specified(w: npt.NDArray[np.float32], fmt: str) -> None:
    """Packing, unpacking and dequantizing are the specification's, on every ISA."""
    layout, matrix = formats.FORMATS[fmt], pack(w, fmt)
    wanted = formats.pack(w, layout)
    assert np.array_equal(matrix.packed, wanted)
    unpacked = formats.unpack(wanted, len(w), w.shape[1], layout)
    assert same_bits(matrix.dequantize(0, len(w)), unpacked)
    for table in ISAS.values():
        assert same_bits(table.dequantize(matrix), unpacked)


# --- the layout -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
def test_native_bytes_are_the_specification(fmt: str, shape: tuple[int, int]) -> None:
    w = normal(*shape, seed=shape[0])
    assert_as_specified(w, fmt)
    assert pack(w, fmt).nbytes == formats.packed_bytes(formats.FORMATS[fmt], *shape)
    assert _native.packed_bytes(fmt, *shape) == pack(w, fmt).nbytes


def test_the_diagram_of_the_four_bit_tile() -> None:
    """Line j, lane r, byte b: low nibble column 4j + b, high nibble column 16 + 4j + b."""
    w = np.tile(np.arange(32, dtype=np.float32) % 16, (32, 1))  # code = column mod 16
    w[5] = 15 - w[5]
    packed = pack(w, "q4g32a").packed
    tile = packed[:256].reshape(4, 16, 4)
    for line in range(4):
        codes = 4 * line + np.arange(4)
        assert np.array_equal(tile[line, 0], codes | codes << 4)
        assert np.array_equal(tile[line, 5], (15 - codes) | (15 - codes) << 4)
    assert np.array_equal(packed[512:576].view(np.float16), np.ones(32, np.float16))


def test_the_diagram_of_the_eight_bit_tile() -> None:
    """Line j, lane r: columns 4j..4j+3 as w + 128; scales follow the two tiles."""
    w = np.zeros((32, 32), np.float32)
    w[3] = np.arange(32) - 127  # scale 1
    w[20, 31] = 254  # scale 2
    packed = pack(w, "q8g32s").packed
    assert np.array_equal(packed[:512].reshape(8, 16, 4)[:, 3].reshape(-1), np.arange(32) + 1)
    assert packed[512:1024].reshape(8, 16, 4)[7, 4, 3] == 127 + 128
    scales = packed[1024:].view(np.float16)
    assert (scales[3], scales[20], scales[0]) == (1, 2, 0)


def test_row_order_picks_source_rows() -> None:
    w = normal(40, 64)
    order = np.random.default_rng(1).permutation(40).astype(np.int32)
    for fmt in FORMATS:
        matrix = pack(w, fmt, order=order)
        assert np.array_equal(matrix.packed, pack(w[order], fmt).packed)


def test_packing_is_the_same_on_many_threads() -> None:
    w = normal(300, 96)
    for fmt in FORMATS:
        assert np.array_equal(pack(w, fmt, threads=3).packed, pack(w, fmt).packed)


def test_rows_of_a_part_dequantize_alone() -> None:
    matrix = pack(normal(70, 40), "q4g32a")
    whole = matrix.dequantize(0, 70)
    for begin, end in [(0, 0), (0, 1), (31, 33), (69, 70), (70, 70)]:
        assert same_bits(matrix.dequantize(begin, end), whole[begin:end])


# --- extremes -------------------------------------------------------------------------------


def groups_of_extremes() -> dict[str, npt.NDArray[np.float32]]:
    tiny = np.float32(2.0**-149)
    alternating = np.where(np.arange(32) % 2 == 0, 1, -1).astype(np.float32)
    return {
        "zeros": np.zeros(32, np.float32),
        "negative zeros": np.full(32, -0.0, np.float32),
        "all equal": np.full(32, 0.7, np.float32),  # q4g32a: all q = 0, the minimum carries it
        "all negative": np.full(32, -3.25, np.float32),  # q4g32s: all q = 0
        "ends only": alternating,  # q4g32a: all q = 0 or 15
        "one outlier": np.where(np.arange(32) == 17, 6e4, 1e-3).astype(np.float32),
        "subnormal scale": (alternating * 2.0**-20).astype(np.float32),
        "scale below float16": (alternating * 2.0**-28).astype(np.float32),
        "float32 subnormals": np.arange(32).astype(np.float32) * tiny,
        "largest float16": np.full(32, 65504, np.float32),
        "ties": (np.arange(32) - 16).astype(np.float32) / 2,
        "peak twice": np.array([5, -5] * 16, np.float32),
    }


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", groups_of_extremes())
def test_extreme_groups(name: str, fmt: str) -> None:
    group = groups_of_extremes()[name]
    w = np.tile(normal(1, 32, seed=3), (33, 2))
    w[:, 32:] = group
    w[7, :32] = group[::-1]
    assert_as_specified(w, fmt)


@pytest.mark.parametrize("fmt", QUANTIZED)
def test_equal_weights_keep_their_value(fmt: str) -> None:
    w = np.full((3, 32), -0.5, np.float32)
    assert np.abs(pack(w, fmt).dequantize(0, 3) - w).max() <= 0.5 * 2.0**-11


def test_every_code_of_every_format_comes_back() -> None:
    """Bytes chosen freely (minus 128 too, which quantizing never gives) through from_packed."""
    rng = np.random.default_rng(5)
    for fmt in QUANTIZED:
        layout = formats.FORMATS[fmt]
        run = layout.run_groups(64)
        group, codes = layout.tile_bytes * 2, layout.tile_bytes * 2 * run
        blocks = rng.integers(0, 256, (3, 2 // run, layout.run_bytes(64)), np.uint8)
        scales = rng.standard_normal((3, 2 // run, (layout.run_bytes(64) - codes) // 2))
        blocks[..., codes:] = scales.astype(np.float16).view(np.uint8)
        blocks[0, 0, :group] = 0  # q8g32s: all w = -128; int4: all q = 0
        blocks[0, -1, codes - group : codes] = 255  # all w = 127; all q = 15
        packed = blocks.reshape(-1)
        matrix = _native.Matrix.from_packed(fmt, 96, 64, packed)
        wanted = formats.unpack(packed, 96, 64, layout)
        for table in ISAS.values():
            assert same_bits(table.dequantize(matrix), wanted)


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("place", [(0, 0), (16, 31), (32, 99)], ids=str)
def test_weights_that_are_not_finite(fmt: str, value: float, place: tuple[int, int]) -> None:
    w = normal(33, 100)
    w[place] = value
    with pytest.raises(ValueError, match="expected finite weights, found NaN or infinity"):
        pack(w, fmt)


@pytest.mark.parametrize("shape", [(2**31, 32), (2**28 + 1, 1), (1, 2**28 + 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_shapes_are_checked_before_anything_is_copied(
    shape: tuple[int, int], dtype: type[np.floating[Any]]
) -> None:
    endless = np.broadcast_to(np.ones((1, 1), dtype), shape)  # no memory of its own
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r"at most 2\^28 rows and columns, got"):
        QuantizedMatrix.quantize(endless)
    with pytest.raises(ValueError, match="format"):
        QuantizedMatrix.quantize(np.broadcast_to(np.ones((1, 1), dtype), (2**28, 32)), "int3")
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("fmt", ["q4g32s", "q4g32a", "q8g32s", "f16"])
def test_weights_beyond_float16(fmt: str) -> None:
    w = normal(2, 64)
    w[1, 40] = -1e9
    with pytest.raises(ValueError, match="too large for float16"):
        pack(w, fmt)
    with (
        np.errstate(over="ignore"),
        pytest.raises(ValueError, match="too large for float16"),
    ):
        formats.pack(w, formats.FORMATS[fmt])
    assert pack(w, "f32").dequantize(1, 2)[0, 40] == np.float32(-1e9)


def test_a_range_too_wide_for_float32_is_an_error() -> None:
    w = np.zeros((1, 32), np.float32)
    w[0, :2] = 3e38, -3e38  # the difference is infinite
    for fmt in QUANTIZED:
        with pytest.raises(ValueError, match="too large for float16"):
            pack(w, fmt)


# --- sources --------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
def test_float16_and_bfloat16_sources(fmt: str) -> None:
    w = normal(20, 70, seed=2)
    half = w.astype(np.float16)
    assert np.array_equal(pack(half, fmt).packed, pack(half.astype(np.float32), fmt).packed)
    bits = (w.view(np.uint32) >> 16).astype(np.uint16)  # truncated: any bfloat16 will do
    exact = (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(pack(bits, fmt, "bf16").packed, pack(exact, fmt).packed)


def test_float16_sources_keep_every_value() -> None:
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(-1, 32)
    assert same_bits(pack(finite, "f16").dequantize(0, len(finite)), finite.astype(np.float32))


def test_float32_is_rounded_to_float16_as_numpy_does() -> None:
    rng = np.random.default_rng(0)
    halves = rng.integers(0, 0x7BFF, 4096, np.uint16).view(np.float16).astype(np.float32)
    above = np.nextafter(halves.astype(np.float16), np.float16(np.inf)).astype(np.float32)
    ties = (halves + above) / 2  # exact in float32
    w = np.stack([halves, ties, np.nextafter(ties, np.float32(0)), -ties]).reshape(-1, 64)
    w = w[(np.abs(w) <= 65504).all(axis=1)]
    assert same_bits(pack(w, "f16").dequantize(0, len(w)), w.astype(np.float16).astype(np.float32))


def gguf_blocks(kind: str, n: int, k: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Rows of a GGUF type with codes at random, each code included, and finite scales."""
    rng = np.random.default_rng(seed)
    head = {"q4_0": 2, "q4_1": 4, "q8_0": 2}[kind]
    codes = {"q4_0": 16, "q4_1": 16, "q8_0": 32}[kind]
    blocks = rng.integers(0, 256, (n, k // 32, head + codes), np.uint8)
    scales = rng.standard_normal((n, k // 32, head // 2)).astype(np.float16)
    scales[0, 0, 0] = 2.0**-24  # the smallest subnormal
    scales[-1, -1] = 0
    blocks[..., :head] = scales.view(np.uint8)
    blocks[0, -1, head:] = 128 if kind == "q8_0" else 0  # w = -128; all q = 0
    blocks[-1, 0, head:] = 255
    return blocks.reshape(n, -1)


@pytest.mark.parametrize("kind", GGUF_TYPES)
@pytest.mark.parametrize("shape", [(1, 32), (33, 64), (50, 576)], ids=str)
def test_gguf_blocks_are_kept_bit_by_bit(kind: str, shape: tuple[int, int]) -> None:
    blocks = gguf_blocks(kind, *shape)
    fmt = GGUF_TYPES[kind]
    matrix = _native.Matrix.pack(kind, blocks.reshape(-1), *shape, fmt)
    wanted = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind.upper()])
    assert same_bits(matrix.dequantize(0, shape[0]), wanted)
    # Bytes, not only values: what is stored again is what was there.
    q, scale, minimum = gguf_fields(blocks, kind)
    packed_q, floats = packed_fields(matrix, fmt)
    assert np.array_equal(packed_q, q)
    assert np.array_equal(floats[0].view(np.uint16), scale.view(np.uint16))
    if minimum is not None:
        assert np.array_equal(floats[1].view(np.uint16), minimum.view(np.uint16))


def gguf_fields(blocks: npt.NDArray[np.uint8], kind: str) -> tuple[Any, Any, Any]:
    """Codes [n, k], scales and minimums [n, groups] of GGUF rows."""
    head = {"q4_0": 2, "q4_1": 4, "q8_0": 2}[kind]
    cells = blocks.reshape(len(blocks), -1, head + (32 if kind == "q8_0" else 16))
    floats = np.ascontiguousarray(cells[..., :head]).view(np.float16)
    codes = cells[..., head:]
    if kind == "q8_0":
        q: Any = codes.view(np.int8)
    else:
        q = np.concatenate([codes & 15, codes >> 4], axis=-1)
    return q.reshape(len(blocks), -1), floats[..., 0], floats[..., 1] if kind == "q4_1" else None


def packed_fields(matrix: Any, fmt: str) -> tuple[Any, Any]:
    """Codes [n, k] and float16 parts [scale, min][n, groups] of a packed matrix, by the diagram."""
    layout = formats.FORMATS[fmt]
    groups = -(-matrix.k // 32)
    blocks = matrix.packed.reshape(-1, groups, layout.pair_group_bytes)
    tiles = np.ascontiguousarray(blocks[..., : 2 * layout.tile_bytes])
    lines = tiles.reshape(len(blocks), groups, 2, -1, 16, 4).transpose(0, 2, 4, 1, 3, 5)
    rows = lines.reshape(len(blocks) * 32, groups, -1)  # 16 or 32 bytes of a row's group
    if fmt == "q8g32s":
        q: Any = (rows.astype(np.int16) - 128).astype(np.int8)
    else:
        q = np.concatenate([rows & 15, rows >> 4], axis=-1)
    floats = np.ascontiguousarray(blocks[..., 2 * layout.tile_bytes :]).view(np.float16)
    parts = floats.reshape(len(blocks), groups, -1, 32).transpose(2, 0, 3, 1)
    return q.reshape(len(q), -1)[: matrix.n], parts.reshape(len(parts), -1, groups)[:, : matrix.n]


@pytest.mark.parametrize("kind", GGUF_TYPES)
@pytest.mark.parametrize("fmt", FORMATS)
def test_gguf_blocks_into_other_formats(kind: str, fmt: str) -> None:
    """Repacking is quantizing the dequantized values (and the same bits into their own format)."""
    blocks = gguf_blocks(kind, 20, 64, seed=1)
    values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind.upper()])
    matrix = _native.Matrix.pack(kind, blocks.reshape(-1), 20, 64, fmt)
    if fmt == GGUF_TYPES[kind]:
        assert same_bits(matrix.dequantize(0, 20), values)
    else:
        assert np.array_equal(matrix.packed, formats.pack(values, formats.FORMATS[fmt]))


@pytest.mark.parametrize("kind", GGUF_TYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_gguf_scales_that_are_not_finite(kind: str, value: float) -> None:
    for at in (0, 1) if kind == "q4_1" else (0,):
        blocks = gguf_blocks(kind, 2, 64)
        blocks[1, 2 * at : 2 * at + 2] = np.array([value], np.float16).view(np.uint8)
        for fmt in (GGUF_TYPES[kind], "f16"):
            with pytest.raises(ValueError, match="finite"):
                _native.Matrix.pack(kind, blocks.reshape(-1), 2, 64, fmt)


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_gguf_rows_need_whole_blocks(kind: str) -> None:
    with pytest.raises(ValueError, match=r"k to be a multiple of 32 for q\d_\d, got 33"):
        _native.Matrix.pack(kind, np.zeros(34, np.uint8), 1, 33, "f16")


# --- properties -----------------------------------------------------------------------------

finite_weights = st.floats(-6e4, 6e4, width=32)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 70))


@given(data=st.data(), shape=shapes, fmt=st.sampled_from(FORMATS))
@settings(max_examples=60, deadline=None)
def test_any_matrix_packs_as_specified(
    data: st.DataObject, shape: tuple[int, int], fmt: str
) -> None:
    seed, size = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.floats(1e-9, 1e4))
    w = normal(*shape, seed=seed, scale=size)
    for _ in range(data.draw(st.integers(0, 4))):
        row, column = (data.draw(st.integers(0, s - 1)) for s in shape)
        w[row, column] = data.draw(finite_weights)
    np.clip(w, -6e4, 6e4, out=w)
    assert_as_specified(w, fmt)


@given(values=st.lists(finite_weights, min_size=1, max_size=96), fmt=st.sampled_from(QUANTIZED))
@settings(max_examples=150, deadline=None)
def test_quantization_stays_within_its_bound(values: list[float], fmt: str) -> None:
    w = np.array([values], np.float32)
    error = np.abs(pack(w, fmt).dequantize(0, 1).astype(np.float64) - w)
    assert (error <= ref.quantization_bound(w, fmt)).all()


@given(seed=st.integers(0, 2**32 - 1), fmt=st.sampled_from(FORMATS))
@settings(max_examples=25, deadline=None)
def test_quantizing_what_is_quantized_moves_no_code_by_more_than_rounding(
    seed: int, fmt: str
) -> None:
    """Values on a format's grid come back to within the bound; floats exactly."""
    w = normal(33, 64, seed=seed)
    once = pack(w, fmt).dequantize(0, 33)
    twice = pack(once, fmt).dequantize(0, 33)
    if fmt in QUANTIZED:
        assert (np.abs(twice - once) <= ref.quantization_bound(once, fmt)).all()
    else:
        assert same_bits(twice, once)


# --- QuantizedMatrix ------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", [*FORMATS, "int4", "int8"])
def test_packed_bytes_round_trip(fmt: str) -> None:
    matrix = QuantizedMatrix.quantize(normal(33, 100), fmt)
    x = normal(3, 100, seed=1)
    aligned = aligned_copy(matrix.packed)
    moved = aligned_copy(np.concatenate([np.zeros(1, np.uint8), matrix.packed]))[1:]
    for packed in (matrix.packed, aligned, moved):
        again = QuantizedMatrix.from_packed(packed, matrix.shape, fmt)
        assert same_bits(again.dequantize(), matrix.dequantize())
        assert same_bits(again @ x, matrix @ x)
        assert np.shares_memory(again.packed, packed) == (packed is not moved)
    assert not matrix.packed.flags.writeable


def aligned_copy(a: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A copy that starts at a 64-byte line."""
    room = np.zeros(a.size + 64, np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + a.size] = a
    return room[start : start + a.size]


def test_packed_bytes_outlive_their_matrix() -> None:
    packed = QuantizedMatrix.quantize(normal(32, 32), "int8").packed
    copy = packed.copy()
    QuantizedMatrix.quantize(np.zeros((32, 32), np.float32), "int8")
    assert np.array_equal(packed, copy)


@pytest.mark.parametrize("fmt", FORMATS)
def test_quantized_matrix_as_readers_see_it(fmt: str) -> None:
    matrix = QuantizedMatrix.quantize(normal(20, 40).astype(np.float16), fmt, n_threads=2)
    assert matrix.shape == (20, 40)
    assert matrix.format.name == fmt
    of_rows = 64 if matrix.format.run == 0 else 0  # bits_per_weight is of endless ones
    assert matrix.format.bits_per_weight * 32 * 64 / 8 + of_rows == matrix.nbytes
    assert "20 x 40" in repr(matrix)
    one = matrix @ normal(40)
    assert one.shape == (20,)
    assert same_bits(one, (matrix @ normal(40)[None])[0])


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.zeros((2, 2)), TypeError, r"expected float32\[n, k\] or float16\[n, k\], got float64"),
        ([[1.0]], TypeError, "got list"),
        (np.zeros(4, np.float32), ValueError, r"two non-empty dimensions, got \[4\]"),
        (np.zeros((0, 4), np.float32), ValueError, r"got \[0, 4\]"),
        (np.zeros((1, 1, 1), np.float32), ValueError, r"got \[1, 1, 1\]"),
    ],
)
def test_quantize_says_what_it_expects(array: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        QuantizedMatrix.quantize(array)


def test_a_vector_of_another_type_is_named_as_it_came() -> None:
    matrix = QuantizedMatrix.quantize(normal(20, 40))
    expected = r"expected float32\[m, 40\] or float32\[40\], got float64\[40\]; x\.astype"
    with pytest.raises(TypeError, match=expected):
        matrix @ np.ones(40)


def test_unknown_formats_name_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"int4, int8, q4g32s, q4g32a, .*; got 'q5'"):
        QuantizedMatrix.quantize(normal(2, 2), "q5")
    with pytest.raises(ValueError, match=r"expected a format q4g32s.*got 'int4'"):
        _native.packed_bytes("int4", 1, 1)
