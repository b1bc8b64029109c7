"""Wrong arrays and numbers at every native entry: an error that names what was expected.

A crash here would end pytest itself; cases that need a fresh process have one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import ISAS, SCALAR, Recording, normal, pack, same_bits
from places import SUPPORT

from slmq import QuantizedMatrix, _native

MATRIX: Any = _native.Matrix


def float_matrix() -> Any:
    return pack(normal(40, 33), "f32")


# Every entry that takes a float32 array: a name, a call with one array in its place, a good array.
ENTRIES: dict[str, tuple[Callable[[Any], Any], tuple[int, ...]]] = {
    "IsaTable.linear": (lambda a: SCALAR.linear(float_matrix(), a), (3, 33)),
    "IsaTable.quantize": (SCALAR.quantize, (3, 33)),
    "IsaTable.rmsnorm x": (lambda a: SCALAR.rmsnorm(a, normal(33), 1e-5), (3, 33)),
    "IsaTable.rmsnorm weight": (lambda a: SCALAR.rmsnorm(normal(3, 33), a, 1e-5), (33,)),
    "IsaTable.layernorm weight": (
        lambda a: SCALAR.layernorm(normal(3, 33), a, None, 1e-5),
        (33,),
    ),
    "IsaTable.layernorm bias": (
        lambda a: SCALAR.layernorm(normal(3, 33), normal(33), a, 1e-5),
        (33,),
    ),
    "IsaTable.unary": (lambda a: SCALAR.unary("gelu", a), (33,)),
    "IsaTable.rope x": (lambda a: SCALAR.rope(a, normal(4), normal(4)), (3, 33)),
    "IsaTable.rope cosines": (lambda a: SCALAR.rope(normal(3, 33), a, normal(4)), (4,)),
    "IsaTable.rope sines": (lambda a: SCALAR.rope(normal(3, 33), normal(4), a), (4,)),
    "IsaTable.gated gate": (lambda a: SCALAR.gated("silu", a, normal(33)), (33,)),
    "IsaTable.gated up": (lambda a: SCALAR.gated("silu", normal(33), a), (33,)),
    "IsaTable.softcap": (lambda a: SCALAR.softcap(a, 30.0), (33,)),
    "IsaTable.softmax": (SCALAR.softmax, (33,)),
    "softmax": (_native.softmax, (33,)),
    "IsaTable.attention q": (
        lambda a: SCALAR.attention(a, normal(5, 1, 8), normal(5, 1, 8), 1.0),
        (2, 2, 8),
    ),
    "IsaTable.attention k": (
        lambda a: SCALAR.attention(normal(2, 2, 8), a, normal(5, 1, 8), 1.0),
        (5, 1, 8),
    ),
    "IsaTable.attention v": (
        lambda a: SCALAR.attention(normal(2, 2, 8), normal(5, 1, 8), a, 1.0),
        (5, 1, 8),
    ),
    "Matrix.matmul": (lambda a: float_matrix().matmul(a), (3, 33)),
    "Recording.rmsnorm weight": (lambda a: Recording().norm(a), (64,)),
    "Recording.head_norm weight": (
        lambda a: Recording().native.head_norm((Recording().x, 0, 64), a, 0.1),
        (32,),
    ),
    "Recording.rope": (lambda a: Recording().native.rope(a, 1.0), (4,)),
    "Recording.linear bias": (lambda a: Recording().biased(a), (64,)),
}
# Entries that take any last size.
FREE_SIZE = {
    "IsaTable.quantize",
    "IsaTable.unary",
    "IsaTable.rope x",
    "IsaTable.softcap",
    "IsaTable.softmax",
    "softmax",
}
FREE_SIZE |= {"Recording.rope"}
entries = pytest.mark.parametrize(("call", "shape"), ENTRIES.values(), ids=list(ENTRIES))
Call = Callable[[Any], Any]


# --- arrays ---------------------------------------------------------------------------------


@entries
def test_good_arrays_pass(call: Call, shape: tuple[int, ...]) -> None:
    call(normal(*shape))


@entries
@pytest.mark.parametrize(
    "dtype", [np.float64, np.float16, np.int32, np.uint8, bool, ">f4", "O", "c8"]
)
def test_another_dtype(call: Call, shape: tuple[int, ...], dtype: Any) -> None:
    with pytest.raises(TypeError, match=r"expected float32\[.*\], got \S+\["):
        call(normal(*shape).astype(dtype))


@entries
@pytest.mark.parametrize("thing", [1.0, "text", b"\0" * 264, [[0.0] * 33] * 3, object()])
def test_what_is_not_an_array(call: Call, shape: tuple[int, ...], thing: Any) -> None:
    name = type(thing).__name__
    with pytest.raises(TypeError, match=rf"expected float32\[.*\], got {name}"):
        call(thing)


@pytest.mark.parametrize("name", [name for name in ENTRIES if "bias" not in name])
def test_none_is_not_an_array(name: str) -> None:
    with pytest.raises(TypeError, match=r"expected float32\[.*\], got NoneType"):
        ENTRIES[name][0](None)


@entries
def test_another_number_of_dimensions(call: Call, shape: tuple[int, ...]) -> None:
    good = normal(*shape)
    for array in (good[None], np.array(1, np.float32), good.reshape(-1, 1, 1, 1)):
        with pytest.raises(ValueError, match=r"expected float32\[.*\], got float32\["):
            call(array)


@pytest.mark.parametrize("more", [-1, 1, 40])
@pytest.mark.parametrize("name", [n for n in ENTRIES if n not in FREE_SIZE])
def test_another_size(name: str, more: int) -> None:
    call, shape = ENTRIES[name]
    with pytest.raises(ValueError, match=r"expected .*, got"):
        call(normal(*shape[:-1], shape[-1] + more))


@pytest.mark.parametrize("name", [n for n, (_, shape) in ENTRIES.items() if len(shape) > 1])
def test_strides_that_are_not_contiguous(name: str) -> None:
    call, shape = ENTRIES[name]
    wide = normal(*shape[:-1], 2 * shape[-1])
    strided = [wide[..., ::2], wide[..., shape[-1] :], np.asfortranarray(normal(*shape))]
    strided += [normal(*shape)[..., ::-1], np.broadcast_to(normal(shape[-1]), shape)]
    for array in strided:
        assert array.shape == shape
        if not array.flags.c_contiguous:
            with pytest.raises(
                ValueError, match=r"C-contiguous array; pass numpy\.ascontiguousarray"
            ):
                call(array)


@entries
def test_reversed_rows(call: Call, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="C-contiguous"):
        call(normal(*shape)[::-1])


@entries
def test_an_address_between_floats(call: Call, shape: tuple[int, ...]) -> None:
    good = normal(*shape)
    room = np.zeros(good.nbytes + 1, np.uint8)
    room[1:] = good.view(np.uint8).reshape(-1)
    shifted = room[1:].view(np.float32).reshape(shape)
    with pytest.raises(ValueError, match="expected an aligned array; pass a copy"):
        call(shifted)


@entries
def test_read_only_and_subclasses_pass(call: Call, shape: tuple[int, ...]) -> None:
    frozen = normal(*shape)
    frozen.flags.writeable = False
    call(frozen)
    call(frozen.view(np.recarray))


@entries
def test_arguments_are_left_alone(call: Call, shape: tuple[int, ...]) -> None:
    good = normal(*shape)
    before = good.copy()
    call(good)
    assert same_bits(good, before)


def test_empty_rows() -> None:
    nothing = np.zeros((0, 33), np.float32)
    assert float_matrix().matmul(nothing).shape == (0, 40)
    assert SCALAR.quantize(nothing)[0].shape == (0, 64)
    assert SCALAR.rmsnorm(nothing, normal(33), 1e-5).shape == (0, 33)
    assert SCALAR.rope(nothing, normal(4), normal(4)).shape == (0, 33)
    assert SCALAR.gated("silu", nothing[:, 0], nothing[:, 0]).shape == (0,)
    for call in (SCALAR.softmax, _native.softmax):
        with pytest.raises(ValueError, match="at least one value"):
            call(nothing[:, 0])
    with pytest.raises(ValueError, match="at least one column"):
        SCALAR.rmsnorm(np.zeros((3, 0), np.float32), np.zeros(0, np.float32), 1e-5)
    with pytest.raises(ValueError, match="1 <= m <= t"):
        SCALAR.attention(normal(0, 2, 8), normal(5, 1, 8), normal(5, 1, 8), 1.0)


# --- numbers and names ----------------------------------------------------------------------


def attend(q: tuple[int, ...], k: tuple[int, ...], **options: Any) -> None:
    SCALAR.attention(normal(*q), normal(*k), normal(*k), 1.0, **options)


BAD_VALUES: dict[str, tuple[Callable[[], Any], str]] = {
    "more rows than positions": (lambda: attend((3, 2, 8), (2, 1, 8)), "1 <= m <= t"),
    "heads that do not divide": (lambda: attend((1, 3, 8), (2, 2, 8)), "multiple of kv heads"),
    "no kv heads": (lambda: attend((1, 3, 8), (2, 0, 8)), "multiple of kv heads"),
    "too many shared heads": (lambda: attend((1, 65, 8), (2, 1, 8)), "multiple of kv heads"),
    "no channels": (lambda: attend((1, 1, 0), (2, 1, 0)), "head_dim >= 1"),
    "kv type": (
        lambda: attend((1, 1, 8), (2, 1, 8), kv_type="f64"),
        "'f16', 'f32', 'int8' or 'int4', got 'f64'",
    ),
    "activations": (
        lambda: SCALAR.quantize(normal(1, 2), "a4"),
        "'a8g32', 'a16g32' or 'a8o16g32', got 'a4'",
    ),
    "a row too wide to quantize": (
        lambda: SCALAR.quantize(normal(1, 65537)),
        "expected at most 65536 values, got 65537",
    ),
    "the same, of a product": (
        lambda: pack(normal(1, 65537), "q8g32s").matmul(normal(1, 65537)),
        "expected at most 65536 values, got 65568",
    ),
    "softmax scale": (lambda: SCALAR.softmax(normal(3), np.nan), "finite number"),
    "rope too wide": (
        lambda: SCALAR.rope(normal(1, 7), normal(4), normal(4)),
        "at most half of x's 7 columns, got 4",
    ),
    "threads 0": (lambda: float_matrix().matmul(normal(1, 33), 0), "1..1024, got 0"),
    "threads -1": (lambda: float_matrix().matmul(normal(1, 33), -1), "1..1024, got -1"),
    "threads 5000": (lambda: pack(normal(1, 1), "f32", threads=5000), "1..1024, got 5000"),
    "rows of a matrix": (lambda: float_matrix().dequantize(0, 41), "within 0..40"),
    "rows backwards": (lambda: float_matrix().dequantize(3, 2), "within 0..40"),
    "negative rows": (lambda: float_matrix().dequantize(-1, 2), "within 0..40"),
    "source type": (lambda: pack(normal(1, 1), "f32", "q9_k"), "q6_k, iq4_xs, got 'q9_k'"),
    "format of blocks": (lambda: pack(normal(1, 1), "f32", "q4_k"), "format q4k for q4_k, got f32"),
    "format": (lambda: pack(normal(1, 1), "int4"), "got 'int4'"),
    "no rows": (lambda: _native.packed_bytes("f32", 0, 5), "1..2^28 rows and columns, got 0 x 5"),
    "huge": (lambda: _native.packed_bytes("f32", 2**28 + 1, 5), "1..2^28"),
    "negative": (lambda: _native.packed_bytes("f32", -4, -4), "1..2^28"),
    "order too short": (
        lambda: pack(normal(4, 4), "f32", order=np.arange(3, dtype=np.int32)),
        "order: expected int32[4], got int32[3]",
    ),
    "order out of range": (
        lambda: pack(normal(2, 4), "f32", order=np.array([0, 2], np.int32)),
        "row out of range",
    ),
    "order negative": (
        lambda: pack(normal(2, 4), "f32", order=np.array([0, -1], np.int32)),
        "row out of range",
    ),
    "full arena": (
        lambda: pack(normal(2, 4), "f32", arena=_native.Arena(64)),
        "room for 4096 bytes, 64 are left",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD_VALUES.values(), ids=list(BAD_VALUES))
def test_values_out_of_range(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: SCALAR.linear(None, normal(1, 33)),
        lambda: SCALAR.dequantize(None),
        lambda: SCALAR.rmsnorm(normal(1, 3), normal(3), "1e-5"),
        lambda: float_matrix().dequantize(0.5, 1),
        lambda: _native.Arena(-1),
        lambda: MATRIX.pack("f32", normal(1).view(np.uint8), 1, 1, None),
        lambda: pack(normal(2, 2), "f32", order=np.arange(2)),
    ],
)
def test_other_types(call: Callable[[], Any]) -> None:
    with pytest.raises(TypeError):
        call()


@pytest.mark.parametrize("nbytes", [2**64 - 1, 2**63, 2**62 + 1, 2**50])
def test_memory_that_no_machine_has(nbytes: int) -> None:
    with pytest.raises(MemoryError):
        _native.Arena(nbytes)


# --- packed bytes ---------------------------------------------------------------------------


def test_pack_counts_the_bytes_of_its_rows() -> None:
    rows = normal(4, 33).view(np.uint8).reshape(-1)
    for wrong in (rows[:-1], rows[:0], np.concatenate([rows, rows])):
        with pytest.raises(ValueError, match=r"rows: expected uint8\[528\], got uint8"):
            _native.Matrix.pack("f32", wrong, 4, 33, "f32")
    with pytest.raises(TypeError, match=r"rows: expected uint8\[528\], got float32\[4, 33\]"):
        MATRIX.pack("f32", normal(4, 33), 4, 33, "f32")
    with pytest.raises(ValueError, match="C-contiguous"):
        _native.Matrix.pack("f32", np.repeat(rows, 2)[::2], 4, 33, "f32")
    with pytest.raises(ValueError, match="rows: expected"):
        _native.Matrix.pack("f32", rows, 2**28, 2**28, "f32")


def test_pack_takes_rows_at_any_address() -> None:
    w = normal(5, 37)
    room = np.zeros(w.nbytes + 3, np.uint8)
    for shift in range(4):
        room[shift : shift + w.nbytes] = w.view(np.uint8).reshape(-1)
        shifted = room[shift : shift + w.nbytes]
        for fmt in ("q4g32a", "f32"):
            matrix = _native.Matrix.pack("f32", shifted, 5, 37, fmt)
            assert np.array_equal(matrix.packed, pack(w, fmt).packed)


def test_from_packed_counts_its_bytes() -> None:
    packed = pack(normal(33, 33), "q8g32s").packed
    for wrong in (packed[:-1], packed[:0], np.concatenate([packed, packed])):
        with pytest.raises(ValueError, match=r"packed: expected uint8\[4352\], got uint8\["):
            _native.Matrix.from_packed("q8g32s", 33, 33, wrong)
    with pytest.raises(TypeError, match=r"packed: expected uint8\[4352\], got int8\[4352\]"):
        _native.Matrix.from_packed("q8g32s", 33, 33, packed.view(np.int8))
    with pytest.raises(ValueError, match="C-contiguous"):
        _native.Matrix.from_packed("q8g32s", 33, 33, np.repeat(packed, 2)[::2])
    with pytest.raises(TypeError, match="got bytes"):
        _native.Matrix.from_packed("q8g32s", 33, 33, packed.tobytes())
    with pytest.raises(ValueError, match="expected uint8"):
        QuantizedMatrix.from_packed(packed, (34, 65), "int8")


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_packed_bytes_are_safe(data: st.DataObject) -> None:
    """Bytes decide values, never addresses."""
    fmt = data.draw(st.sampled_from(["q4g32s", "q4g32a", "q8g32s", "f16", "f32"]))
    n, k = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 70))
    size = _native.packed_bytes(fmt, n, k)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    matrix = _native.Matrix.from_packed(fmt, n, k, rng.integers(0, 256, size, np.uint8))
    x = normal(2, k)
    want = SCALAR.linear(matrix, x)
    for table in ISAS.values():
        assert same_bits(table.linear(matrix, x), want)


def run_guarded(argument: str) -> subprocess.CompletedProcess[str]:
    script = SUPPORT / "guard_pages.py"
    command = [sys.executable, str(script), argument]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="guard pages are made with mprotect")
def test_no_kernel_reads_behind_its_arrays() -> None:
    """Arrays that end where memory ends: one byte too far is the end of the process."""
    done = run_guarded("kernels")
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr[-2000:]
    assert run_guarded("read beyond").returncode != 0  # the guard holds
