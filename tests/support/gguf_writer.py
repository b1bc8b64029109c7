"""GGUF files for tests: `write_gguf` by the `gguf` package, `image` by hand, with room to lie."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

# Value types of a key, by the names of the struct module where there is one.
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
NUMBER_CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f"}
# Types that llama.cpp has and the package lacks: their numbers.
NEWER: dict[str, Any] = {"q2_0": 42}
gguf.constants.GGML_QUANT_SIZES.setdefault(NEWER["q2_0"], (64, 18))
NUMBER_CODES |= {BOOL: "B", U64: "Q", I64: "q", F64: "d"}


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, FloatArray | tuple[npt.NDArray[Any], str]],
    *,
    alignment: int | None = None,
) -> Path:
    """Write a valid file with the `gguf` package and return its path.

    `metadata` must hold general.architecture. An int becomes u32 (u64 or i32 where that does not
    fit), a float f32. A tensor is an array, stored as it is (float32, float16), or a pair of a
    float32 array and a type ("q4_0", "q4_1", "q8_0", "bf16", "f16") to quantize it to, or of rows
    of that type's bytes (uint8). Shapes are row-major, as in NumPy.
    """
    writer = gguf.GGUFWriter(path, str(metadata["general.architecture"]))
    for key, value in metadata.items():
        if key != "general.architecture":
            _add_value(writer, key, value)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            kind = NEWER.get(tensor[1]) or gguf.GGMLQuantizationType[tensor[1].upper()]
            rows = tensor[0]
            stored = rows if rows.dtype == np.uint8 else gguf.quants.quantize(rows, kind)
            writer.add_tensor(name, np.ascontiguousarray(stored), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, int):
        add = writer.add_int32 if value < 0 else writer.add_uint64
        (writer.add_uint32 if 0 <= value < 1 << 32 else add)(key, value)
    else:
        writer.add_array(key, list(value))


def string(data: bytes, *, length: int | None = None) -> bytes:
    """A string of a header; `length` is what it claims to be."""
    return struct.pack("<Q", len(data) if length is None else length) + data


def number(kind: int, value: float) -> bytes:
    """One number of a value type."""
    return struct.pack("<" + NUMBER_CODES[kind], value)


def array(kind: int, items: Iterable[bytes], *, count: int | None = None) -> bytes:
    """The payload of an array; `count` is what it claims to hold."""
    parts = list(items)
    return struct.pack("<IQ", kind, len(parts) if count is None else count) + b"".join(parts)


def key(name: bytes, kind: int, payload: bytes) -> bytes:
    """One key with its value."""
    return string(name) + struct.pack("<I", kind) + payload


def tensor(
    name: bytes, ne: Iterable[int], kind: int = 0, offset: int = 0, *, n_dims: int | None = None
) -> bytes:
    """One tensor info; `ne` counts from the innermost dimension."""
    dims = list(ne)
    n_dims = len(dims) if n_dims is None else n_dims
    packed = struct.pack(f"<I{len(dims)}Q", n_dims, *dims)
    return string(name) + packed + struct.pack("<IQ", kind, offset)


def image(
    keys: Iterable[bytes] = (),
    tensors: Iterable[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """The bytes of a file; the counts are what it claims to hold."""
    keys, tensors = list(keys), list(tensors)
    n_keys = len(keys) if n_keys is None else n_keys
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    header = magic + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(keys + tensors)
    return header + bytes(-len(header) % alignment) + data
