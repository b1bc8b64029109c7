"""Products and quantized activations on every ISA: right within derived bounds, equal bit by bit.

The reference is float64 NumPy over the values that a kernel sees (dequantized weights, quantized
activations); one ISA is held to it, the others, all thread counts and row counts to that one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference as ref
from kernel_cases import (
    FORMATS,
    ISAS,
    QUANTIZED,
    SCALAR,
    assert_within,
    normal,
    pack,
    same_bits,
)

from slmq import _native, formats

F32 = npt.NDArray[np.float32]

ACTIVATIONS = formats.ACTIVATIONS
KINDS = [(fmt, act) for fmt in QUANTIZED for act in ACTIVATIONS] + [
    ("f16", "a16g32"),
    ("f32", "a16g32"),
]
SIZES_N = (1, 15, 16, 17, 31, 32, 33, 50)
SIZES_K = (1, 31, 32, 33, 100, 576, 1536)
kinds = pytest.mark.parametrize(("fmt", "act"), KINDS, ids=["-".join(kind) for kind in KINDS])


def test_this_machine_runs_more_than_one_isa() -> None:
    """Otherwise equality across ISAs proves nothing here, and the log should say so."""
    if len(ISAS) == 1:
        pytest.skip("this CPU runs the scalar kernels only")
    assert _native.active_isa() in ISAS


# --- linear ---------------------------------------------------------------------------------


def seen_activations(x: F32, act: str, fmt: str = "q8g32s") -> npt.NDArray[np.float64]:
    """What the products of a format see of x: dequantized codes, float64[m, k]."""
    if formats.FORMATS[fmt].row_panels:
        q, scale = SCALAR.quantize_rows(x, act)
        return np.asarray((q * scale.astype(np.float64)[:, None])[:, : x.shape[1]])
    q, scale, _ = SCALAR.quantize(x, act)
    seen = q.reshape(len(x), -1, 32) * scale.astype(np.float64)[..., None]
    return np.asarray(seen.reshape(len(x), -1)[:, : x.shape[1]])


def magnitude(matrix: Any) -> npt.NDArray[np.float64]:
    """Size of what a kernel sums for each weight, as `reference.Quantized.magnitude`."""
    w = matrix.dequantize(0, matrix.n).astype(np.float64)
    layout = formats.FORMATS[matrix.format]
    if not layout.offset:
        return np.asarray(np.abs(w))
    parts = formats.unpack_parts(matrix.packed, matrix.n, matrix.k, layout)
    assert parts.mins is not None
    alone = replace(parts, mins=np.zeros_like(parts.mins)).dequantize(layout).astype(np.float64)
    return np.asarray(np.abs(alone) + np.abs(w - alone))


def assert_linear(matrix: Any, x: F32, act: str) -> F32:
    """Within the bound on one ISA, the same bits on all and for any thread count."""
    layout = formats.FORMATS[matrix.format]
    quantized = layout.quantized
    seen = seen_activations(x, act, matrix.format) if quantized else x
    got: F32 = SCALAR.linear(matrix, x, 1, act)
    w = matrix.dequantize(0, matrix.n)
    bound = ref.linear_bound(magnitude(matrix), seen, grouped=quantized, parts=layout.parts)
    assert_within(got, ref.linear(w, seen), bound)
    for name, table in ISAS.items():
        for threads in (1, 2, 3):
            assert same_bits(table.linear(matrix, x, threads, act), got), (name, threads)
    assert same_bits(matrix.matmul(x, 2, act), got)
    return got


@kinds
@pytest.mark.parametrize("k", SIZES_K)
def test_linear_at_awkward_sizes(fmt: str, act: str, k: int) -> None:
    for n in SIZES_N:
        assert_linear(pack(normal(n, k, seed=n), fmt), normal(3, k, seed=k), act)


@kinds
def test_linear_of_any_number_of_rows(fmt: str, act: str) -> None:
    """Each row alone gives the bits that it gives among 2 to 33 others."""
    matrix, x = pack(normal(50, 100), fmt), normal(33, 100, seed=1)
    alone = np.concatenate([SCALAR.linear(matrix, x[i : i + 1], 1, act) for i in range(33)])
    for m in (*range(1, 21), 33):
        assert same_bits(assert_linear(matrix, x[:m], act), alone[:m])


@kinds
@pytest.mark.parametrize("m", [255, 256, 257])
def test_linear_of_many_rows(fmt: str, act: str, m: int) -> None:
    matrix, x = pack(normal(33, 65), fmt), normal(m, 65, seed=m)
    got = assert_linear(matrix, x, act)
    for row in (0, 15, 16, 31, m - 2, m - 1):
        assert same_bits(SCALAR.linear(matrix, x[row : row + 1], 1, act)[0], got[row])


def extreme_activations(k: int) -> F32:
    """Rows: all +127, all -127, alternating, one outlier, zeros, tiny, subnormal, huge, a mix."""
    signs = np.where(np.arange(k) % 2 == 0, 1, -1)
    outlier = np.where(np.arange(k) == k // 2, 1e4, 1e-2)
    ramp = np.linspace(-1, 1, k)
    rows = [np.ones(k), -np.ones(k), signs, outlier, np.zeros(k), signs * 1e-20]
    rows += [signs * 1e-40, signs * 1e15, ramp * 1e-29, ramp]
    return np.array(rows, np.float32)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("fmt", QUANTIZED)
@pytest.mark.parametrize("byte", [0, 255, 128, 127, 0x0F])
def test_linear_of_extreme_codes(fmt: str, act: str, byte: int) -> None:
    """All q = 0 or 15, w = -128 or 127, against all a = 127 or -127: no dot may saturate."""
    layout = formats.FORMATS[fmt]
    runs = 18 // layout.run_groups(576)
    blocks = np.full((2, runs, layout.run_bytes(576)), byte, np.uint8)
    codes = 2 * layout.tile_bytes * layout.run_groups(576)
    scales = np.full((2, runs, (layout.run_bytes(576) - codes) // 2), 0.5)
    scales[0, 1::3], scales[1, 2::4] = 2.0**-24, -1000.0  # a subnormal and a negative one
    scales[0, 0, 1::3], scales[1, 0, 2::4] = 2.0**-24, -1000.0
    blocks[..., codes:] = scales.astype(np.float16).view(np.uint8)
    matrix = _native.Matrix.from_packed(fmt, 50, 576, blocks.reshape(-1))
    assert_linear(matrix, extreme_activations(576), act)


@kinds
def test_linear_of_extreme_weights(fmt: str, act: str) -> None:
    w = normal(40, 96)
    w[0], w[1], w[2] = 0, 6e4, 2.0**-24
    w[3] = np.where(np.arange(96) == 40, 5e4, 1e-3)
    w[4, 32:64] = -0.0
    assert_linear(pack(w, fmt), extreme_activations(96), act)


@kinds
def test_zero_times_anything_is_zero(fmt: str, act: str) -> None:
    zeros = pack(np.zeros((33, 70), np.float32), fmt)
    assert not SCALAR.linear(zeros, normal(5, 70), 1, act).any()
    assert not SCALAR.linear(pack(normal(33, 70), fmt), np.zeros((5, 70), np.float32), 1, act).any()


@kinds
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_a_broken_row_says_so_and_leaves_the_others_alone(fmt: str, act: str, value: float) -> None:
    matrix, x = pack(normal(50, 70), fmt), normal(7, 70, seed=2)
    want = SCALAR.linear(matrix, x, 1, act)
    x[3, 40] = value
    for name, table in ISAS.items():
        got = table.linear(matrix, x, 2, act)
        assert not np.isfinite(got[3]).any(), name
        assert same_bits(np.delete(got, 3, axis=0), np.delete(want, 3, axis=0)), name


def test_no_rows_are_no_rows() -> None:
    assert SCALAR.linear(pack(normal(5, 6), "f32"), np.zeros((0, 6), np.float32)).shape == (0, 5)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("fmt", QUANTIZED)
def test_quantized_activations_cost_what_they_should(fmt: str, act: str) -> None:
    """Against the true activations, the error is that of their rounding."""
    matrix, x = pack(normal(40, 96), fmt), normal(9, 96, seed=3)
    w = matrix.dequantize(0, 40).astype(np.float64)
    off = activation_bound(x, act, fmt)
    rounding = off @ np.abs(w).T
    own = ref.linear_bound(magnitude(matrix), np.abs(x) + off, grouped=True)
    got = SCALAR.linear(matrix, x, 1, act)
    assert_within(got, ref.linear(w, x), rounding + own)
    if act == "a16g32":
        assert np.abs(got - ref.linear(w, x)).max() < 1e-3


# --- activation quantization ----------------------------------------------------------------


def has_sixteen_bits(
    x: F32, act: str, times: tuple[float, float] = (np.inf, 1.875)
) -> npt.NDArray[np.bool_]:
    """[m, groups]: which groups a row keeps in 16 bits; one by one, as the definition says.

    `times` the median is the most of others, in a8g32 and a8o16g32.
    """
    largest = np.abs(ref.groups_of(x)).max(axis=2).astype(np.float32)
    wide = np.full(largest.shape, act == "a16g32")
    cut_at = dict(zip(("a8g32", "a8o16g32"), times, strict=True)).get(act, np.inf)
    for row in range(len(x) if np.isfinite(cut_at) else 0):
        cut = [np.float32(v).view(np.int32) & -65536 for v in sorted(largest[row])]
        median = np.int32(cut[len(cut) // 2]).view(np.float32)
        wide[row] = largest[row] > np.float32(cut_at) * median
    return wide


def activation_bound(x: F32, act: str, fmt: str = "q8g32s") -> npt.NDArray[np.float64]:
    """Largest error of a quantized activation: half a step, and float32 in the division."""
    if formats.FORMATS[fmt].row_panels:
        return row_bound(x, act)
    steps = np.where(has_sixteen_bits(x, act), 127 * 256, 127)
    largest = np.abs(ref.groups_of(x)).max(axis=2)
    bound = largest / steps * (0.5 + steps * ref.gamma(4)) + 1e-20 * (largest < 1e-20) + 1e-30
    return np.asarray(np.repeat(bound, 32, axis=1)[:, : x.shape[1]])


def row_bound(x: F32, act: str) -> npt.NDArray[np.float64]:
    """The same where a row has one scale: half of its step."""
    wide = has_sixteen_bits(x, act, (4.0, 1.875))
    largest = np.abs(ref.groups_of(x)).max(axis=2)
    fine, most = np.where(wide, 0, largest).max(axis=1), largest.max(axis=1)
    step = np.maximum(fine / 127, most / formats.ACTIVATION_LIMIT)
    bound = step * 0.5 + most * ref.gamma(4) + 1e-20 * (most < 1e-20) + 1e-30
    return np.asarray(np.repeat(bound[:, None], x.shape[1], axis=1))


def test_groups_that_stand_out_keep_sixteen_bits() -> None:
    x = normal(5, 32 * 9, seed=11)
    x[1, 70], x[2, 3], x[3] = 40, -40, 0
    x[4, :96] *= 50  # a minority, however loud
    wide = has_sixteen_bits(x, "a8o16g32")
    assert wide[1].nonzero()[0].tolist() == [2]
    assert wide[2].nonzero()[0].tolist() == [0]
    assert not wide[3].any()
    assert wide[4].nonzero()[0].tolist() == [0, 1, 2]
    for table in ISAS.values():
        q, _, _ = table.quantize(x, "a8o16g32")
        low = (q & 255).reshape(5, 9, 32).any(axis=2)
        assert np.array_equal(low, wide)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 31), (3, 33), (16, 64), (17, 100), (35, 576)], ids=str
)
def test_activation_codes(act: str, shape: tuple[int, int]) -> None:
    x = normal(*shape, seed=7)
    q, scale, total = SCALAR.quantize(x, act)
    padded = np.pad(x, ((0, 0), (0, -shape[1] % 32)))
    assert np.abs(q).max() <= formats.ACTIVATION_LIMIT
    assert np.array_equal(total, q.reshape(*scale.shape, 32).sum(-1))
    assert not q[:, shape[1] :].any()
    assert_within(seen_activations(x, act), x.astype(np.float64), activation_bound(x, act))
    wanted_q, wanted_scale = formats.quantize_activations(padded, act)
    assert np.array_equal(q, wanted_q)
    assert same_bits(scale, wanted_scale)
    for table in ISAS.values():
        for got, want in zip(table.quantize(x, act), (q, scale, total), strict=True):
            assert same_bits(got, want)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations_are_the_specification(act: str) -> None:
    x = np.concatenate([normal(8, 96), extreme_activations(96)])
    q, scale, _ = SCALAR.quantize(x, act)
    wanted_q, wanted_scale = formats.quantize_activations(x, act)
    assert np.array_equal(q, wanted_q)
    assert same_bits(scale, wanted_scale)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_extreme_activations_keep_their_meaning(act: str) -> None:
    x = extreme_activations(96)
    q, _, _ = SCALAR.quantize(x, act)
    assert (q[0] == formats.ACTIVATION_LIMIT).all()
    assert (q[1] == -formats.ACTIVATION_LIMIT).all()
    assert not q[4].any()  # zeros
    assert not q[6].any()  # below 1e-20, where scales could underflow
    assert_within(seen_activations(x, act), x.astype(np.float64), activation_bound(x, act))
    for table in ISAS.values():
        assert np.array_equal(table.quantize(x, act)[0], q)


def test_every_sixteen_bit_code_splits_into_two_bytes() -> None:
    """All codes -32512..32512, so that every carry between the halves happens."""
    codes = np.arange(-32512, 32513, dtype=np.int32)
    groups = np.resize(codes, (-(-codes.size // 31), 31)).astype(np.float32)
    x = np.concatenate([np.full((len(groups), 1), 32512, np.float32), groups], axis=1)
    for name, table in ISAS.items():
        q, scale, _ = table.quantize(x, "a16g32")
        assert (scale == 1).all(), name
        assert np.array_equal(q, x.astype(np.int32)), name


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations_that_are_not_finite(act: str) -> None:
    x = normal(4, 64)
    x[1, 3], x[2, 40], x[3, 63] = np.nan, np.inf, -np.inf
    got = [table.quantize(x, act) for table in ISAS.values()]
    for q, scale, total in got:
        assert np.array_equal(q, got[0][0])
        assert same_bits(scale, got[0][1])
        assert np.array_equal(total, got[0][2])
    assert np.isfinite(got[0][1][0]).all()
    assert not np.isfinite(got[0][1][2, 1])


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (16, 64), (17, 100), (35, 576)], ids=str)
def test_activations_of_whole_rows(act: str, shape: tuple[int, int]) -> None:
    """The specification's bits on every ISA, within half a step, extreme and broken rows too."""
    m, k = shape
    extreme = extreme_activations(k)
    x = np.concatenate([normal(m, k, seed=7), extreme, normal(3, k, seed=8)])
    x[0, k // 2] = 50  # in more than one plane
    q, scale = SCALAR.quantize_rows(x, act)
    wanted_q, wanted_scale = formats.quantize_row_activations(
        np.pad(x, ((0, 0), (0, -k % 32))), act
    )
    assert np.array_equal(q, wanted_q)
    assert same_bits(scale, wanted_scale)
    seen = seen_activations(x, act, "q8rs")
    assert_within(seen, x.astype(np.float64), activation_bound(x, act, "q8rs"))
    x[-3, 0], x[-2, k - 1], x[-1, k // 2] = np.nan, np.inf, -np.inf
    q, scale = SCALAR.quantize_rows(x, act)
    assert np.isnan(scale[-3:]).all()
    assert np.isfinite(scale[:-3]).all()
    for table in ISAS.values():
        for got, want in zip(table.quantize_rows(x, act), (q, scale), strict=True):
            assert same_bits(got, want)


def test_few_groups_of_a_row_stand_out() -> None:
    x = normal(3, 32 * 9, seed=11)
    x[0, 70], x[1, 3] = 40, 7
    for act, rows in (("a8g32", ([2], [])), ("a8o16g32", ([2], [0]))):
        q, _ = SCALAR.quantize_rows(x, act)
        wide = (np.abs(q) > 128).reshape(3, 9, 32).any(axis=2)
        for row, groups in enumerate(rows):
            assert wide[row].nonzero()[0].tolist() == groups, act
    assert (np.abs(SCALAR.quantize_rows(x, "a16g32")[0]).max(axis=1) == 32512).all()


@pytest.mark.parametrize("share", [0.03, 0.4, 1.0])
def test_whole_rows_with_any_number_of_groups_that_stand_out(share: float) -> None:
    """Products take such groups of one row, and of neighbours together, by different ways."""
    rng = np.random.default_rng(5)
    x = normal(33, 32 * 20, seed=3)
    groups = x.reshape(33, 20, 32)
    groups[rng.random((33, 20)) < share * 0.45] *= 30
    groups[:, 4] *= 30  # in all rows
    matrix = pack(normal(70, 32 * 20), "q8rs")
    alone = np.concatenate([SCALAR.linear(matrix, row[None], 1, "a8g32") for row in x])
    for m in (1, 3, 7, 8, 12, 16, 23, 33):
        assert same_bits(assert_linear(matrix, x[:m], "a8g32"), alone[:m])


# --- embedding ------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("k", [17, 32, 100])
def test_embedding_is_a_dequantized_row(fmt: str, k: int) -> None:
    matrix = pack(normal(50, k), fmt)
    tokens = np.array([16, 0, 7, 15, 1, 16, 0], np.int32)
    want = matrix.dequantize(0, 50)[tokens]
    for isa in ISAS:
        for scale in (1.0, 0.37):
            r = _native.Recording(2, 8, 8, 17, "f16", isa)
            plan = r.finish(r.select((r.embed(matrix, scale), 0, k)))
            plan.run(tokens, [(plan.make_cache().sequence(), 7)], np.arange(7, dtype=np.int32))
            assert same_bits(plan.logits(), want * np.float32(scale))
