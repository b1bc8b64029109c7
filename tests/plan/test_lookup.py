"""Tables that stay in their file, keys of an earlier attention, sums behind norms, and scales."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import pytest
from kernel_cases import Recording, normal, same_bits

from slmq import _native
from slmq.checkpoint.foreign.weight import BLOCK_FORMATS
from slmq.weights.reader import KEPT, ROW_BY_ROW

BAD_RECORDINGS: dict[str, tuple[Callable[[Recording], Any], str]] = {
    "heads normed with an add of another width": (
        lambda r: r.native.head_norm((r.x, 0, 64), normal(32), 0.1, (r.x, 0, 32)),
        "head_norm: expected add= of width 64, got 32",
    ),
    "a scale of NaN": (
        lambda r: r.native.scale((r.x, 0, 64), np.nan),
        "scale: expected a factor of -1e6..1e6",
    ),
    "a short table": (
        lambda r: r.native.lookup(
            _native.RowTable("f32", np.zeros(63 * 64 * 4, np.uint8), 63, 64, "f32")
        ),
        "lookup: expected at least 64 rows, got 63",
    ),
    "keys of no attention": (
        lambda r: r.native.attention((r.x, 0, 64), None, None, -1, 2, 2, 32, 0, 1.0, shared=0),
        "expected keys and values of an earlier attention, of which there are 0, got number 0",
    ),
    "keys of other heads": (
        lambda r: [
            r.native.attention(*[(r.x, 0, 64)] * 3, -1, 2, 2, 32, 0, 1.0),
            r.native.attention((r.x, 0, 64), None, None, -1, 2, 1, 32, 0, 1.0, shared=0),
        ],
        "expected the keys of attention 0, 2 causal heads of 32, got 1 of 32",
    ),
    "neither keys nor those of another": (
        lambda r: r.native.attention((r.x, 0, 64), None, None, -1, 2, 2, 32, 0, 1.0),
        "expected k and v, or the number of the attention",
    ),
    "keys and those of another": (
        lambda r: r.native.attention(*[(r.x, 0, 64)] * 3, -1, 2, 2, 32, 0, 1.0, shared=0),
        "expected k and v, or the number of the attention",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD_RECORDINGS.values(), ids=list(BAD_RECORDINGS))
def test_recordings_that_cannot_share(call: Callable[[Recording], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call(Recording())


def stored(kind: str, n: int, k: int) -> Any:
    """Random rows of a type: uint8[n * bytes of a row]."""
    values = normal(n, k)
    if kind == "f32":
        return values.view(np.uint8).reshape(-1)
    if kind == "f16":
        return values.astype(np.float16).view(np.uint8).reshape(-1)
    if kind == "bf16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(-1)
    size, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
    blocks = np.random.default_rng(1).integers(0, 0x3C, (n * k // size, nbytes), np.uint8)
    return blocks.reshape(-1)  # no byte of them makes a float16 that is not finite


@pytest.mark.parametrize("kind", [*ROW_BY_ROW, *BLOCK_FORMATS])
def test_rows_are_those_of_the_whole_table_packed(kind: str) -> None:
    n, k, fmt = 70, 512, KEPT[kind]
    rows = stored(kind, n, k)
    whole = _native.Matrix.pack(kind, rows, n, k, fmt).dequantize(0, n)
    r = _native.Recording(threads=2, max_rows=8, max_outputs=8, vocabulary=n)
    table = r.lookup(_native.RowTable(kind, rows, n, k, fmt), 0.5)
    plan = r.finish(r.select((table, 0, k)), k)
    tokens = np.array([69, 0, 33, 33, 64], np.int32)
    sequence = plan.make_cache().sequence()
    plan.run(tokens, [(sequence, 5)], np.arange(5, dtype=np.int32))
    assert same_bits(plan.read(table), whole[tokens] * np.float32(0.5))


@pytest.mark.parametrize(
    ("kind", "size", "fmt", "message"),
    [
        ("f16", 2 * 64 * 64 - 2, "f16", r"rows: expected .*8192"),
        ("f16", 2 * 64 * 64, "q4k", "a table of f16 has no rows of format q4k"),
        ("q8_0", 34 * 2 * 64, "q4k", "a table of q8_0 has no rows of format q4k"),
        ("q4_k", 64, "q4k", "k to be a multiple of 256 for q4_k, got 64"),
        ("i8", 64, "f16", "expected a source type"),
    ],
)
def test_tables_that_cannot_be(kind: str, size: int, fmt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _native.RowTable(kind, np.zeros(size, np.uint8), 64, 64, fmt)
