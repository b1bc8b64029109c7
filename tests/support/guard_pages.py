"""Runs every kernel on arrays that end where memory ends; prints "fine" if the process survives.

A script of its own: a read behind an array is a segmentation fault. Usage: guard_pages.py kernels;
"read beyond" reads one byte too far on purpose.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from kernel_cases import F32, FORMATS, ISAS, SCALAR, normal, pack, same_bits

from slmq import _native

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
KEPT: list[mmap.mmap] = []  # a mapping that has a guarded page must not be closed


def at_the_edge(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The bytes of an array, copied to where a page that nobody may read follows."""
    size = -(-values.nbytes // PAGE) * PAGE
    room = mmap.mmap(-1, size + PAGE)
    KEPT.append(room)
    whole = np.frombuffer(room, np.uint8)
    view = whole[size - values.nbytes : size]
    view[:] = values.reshape(-1).view(np.uint8)
    if LIBC.mprotect(whole.ctypes.data + size, PAGE, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    return view


def floats(*shape: int) -> F32:
    """Normal float32 values at the edge."""
    return at_the_edge(normal(*shape)).view(np.float32).reshape(shape)


def products(fmt: str, n: int, k: int) -> None:
    """Packing, products and dequantizing of one matrix, sources and packed bytes at the edge."""
    w = normal(n, k)
    assert np.array_equal(
        _native.Matrix.pack("f32", at_the_edge(w), n, k, fmt).packed, pack(w, fmt).packed
    )
    far = pack(w, fmt)
    edge = at_the_edge(far.packed)
    matrix = _native.Matrix.from_packed(fmt, n, k, edge)
    assert np.shares_memory(matrix.packed, edge)  # else the copy would be what is tested
    for m in (1, 2, 3, 4, 5, 16, 17, 33):
        x = floats(m, k)
        for act in ("a8g32", "a16g32", "a8o16g32"):
            want = SCALAR.linear(far, x.copy(), 1, act)
            for table in ISAS.values():
                assert same_bits(table.linear(matrix, x, 1, act), want)
    for table in ISAS.values():
        assert same_bits(table.dequantize(matrix), far.dequantize(0, n))


def rows(n: int) -> None:
    """Row kernels and attention of n values."""
    for table in ISAS.values():
        table.softmax(floats(n))
        table.gated("silu", floats(n), floats(n))
        table.softcap(floats(n), 30.0)
        table.rmsnorm(floats(2, n), floats(n), 1e-5)
        table.layernorm(floats(2, n), floats(n), floats(n), 1e-5)
        table.unary("gelu", floats(n))
        table.rope(floats(2, n), floats(n // 2), floats(n // 2))
        table.quantize(floats(3, n))
        table.quantize_rows(floats(3, n))
        for kv in ("f16", "f32"):
            table.attention(floats(2, 2, n), floats(66, 1, n), floats(66, 1, n), 1.0, 0, kv)


if __name__ == "__main__":
    if sys.argv[1] == "read beyond":
        ctypes.string_at(at_the_edge(np.zeros(64, np.uint8)).ctypes.data, 65)
    for stored in FORMATS:
        for n_rows, n_columns in [(1, 1), (16, 32), (17, 33), (32, 64), (50, 576)]:
            products(stored, n_rows, n_columns)
    for size in (1, 15, 16, 17, 31, 33, 100):
        rows(size)
    print("fine")
