"""GGUF's quantized blocks, decoded: to their integers, with nothing lost, and to float32.

A row of a tensor is a run of blocks of 32 or 256 columns. A field of 4, 2 or 1 bits of byte j in a
run of bytes belongs to column `field * len(run) + j`: all low nibbles of a run come first, then all
high ones. The byte offsets of each type stand in its decoder below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from slmq.checkpoint.foreign.ggml_codebooks import CODEBOOKS, E2M1_DOUBLED, IQ4_VALUES

__all__ = ["FLOAT_TYPES", "QUANTIZED_TYPES", "BlockIntegers", "block_integers", "dequantize"]

F32 = npt.NDArray[np.float32]
F16 = npt.NDArray[np.float16]
U8 = npt.NDArray[np.uint8]
I8 = npt.NDArray[np.int8]

FLOAT_TYPES = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class BlockIntegers:
    """What rows of a quantized tensor store: n rows, k columns.

    With s = c // superblock and g = c // group, the value of column c is, in float32::

        a = d[s] * scales[g]             (d[s] without scales)
        b = dmin[s] * mins[g]            (dmin[s] without mins)
        w = a * (codes[c] - zero)        without dmin
        w = a * codes[c] + b             Q4_1, Q5_1 (min_sign 1)
        w = a * codes[c] - b             K-quants (min_sign -1)
        w = a * codebook[codes[c]]       IQ4_NL

    All products are exact in float32; only the sum with b rounds.

    Attributes
    ----------
    codes : uint8[n, k]
        Unsigned integers; a signed byte of Q8_0 is stored plus 128.
    d : float16 or float32 [n, k / superblock]
        The scale, or the scale of the scales; float32 where the type's scales are no float16.
    group, superblock : int
        Columns that share a scale; columns that share a `d`.
    zero : int
        The code that means nothing.
    scales : uint8, int8 or float32 [n, k / group], optional
        Unsigned in Q2_K, Q4_K and Q5_K, float32 in NVFP4; signed in the others.
    dmin : float16[n, k / superblock], optional
    mins : uint8[n, k / group], optional
    min_sign : int
        1 or -1.
    codebook : int8[16], optional
    """

    codes: U8
    d: F16 | F32
    group: int
    superblock: int
    zero: int = 0
    scales: U8 | I8 | F32 | None = None
    dmin: F16 | None = None
    mins: U8 | None = None
    min_sign: int = 1
    codebook: I8 | None = None

    def dequantize(self, out: F32 | None = None) -> F32:
        """The values: float32[n, k], written to `out` (contiguous) if it is given."""
        n, k = self.codes.shape
        values: F32 = np.empty((n, k), np.float32) if out is None else out
        if self.codebook is not None:
            values[...] = self.codebook.take(self.codes)
        else:
            values[...] = self.signed() if self.zero else self.codes
        grouped = values.reshape(n, k // self.group, self.group)
        with np.errstate(invalid="ignore", over="ignore"):  # a file may hold infinities: 0 * inf
            grouped *= self.by_group(self.d, self.scales)[..., None]
            if self.dmin is not None:
                minima = self.by_group(self.dmin, self.mins)[..., None]
                (np.add if self.min_sign > 0 else np.subtract)(grouped, minima, out=grouped)
        return values

    def signed(self) -> I8:
        """codes - zero: int8[n, k]; of types with a zero."""
        difference: I8 = (self.codes - np.uint8(self.zero)).view(np.int8)  # wraps, as int8 does
        return difference

    def by_group(self, d: F16 | F32, factors: U8 | I8 | F32 | None) -> F32:
        """`d` times the factors of its groups, or by itself: float32[n, groups]."""
        wide = d.astype(np.float32)
        if factors is None:
            return wide
        per_block = factors.astype(np.float32).reshape(*d.shape, -1)
        return (wide[..., None] * per_block).reshape(factors.shape)


# What codes are places of, in types that keep them so.
CODES_OF = {"iq4_nl": IQ4_VALUES, "iq4_xs": IQ4_VALUES, "mxfp4": E2M1_DOUBLED}


class BlockType(NamedTuple):
    """A type: its columns and bytes a block, and what turns uint8[n, bytes] into its integers."""

    size: int
    nbytes: int
    decode: Callable[[U8], dict[str, Any]]


def block_integers(
    kind: str, raw: U8, shape: tuple[int, int], row_begin: int = 0, row_end: int | None = None
) -> BlockIntegers:
    """The integers of rows of a quantized tensor.

    Parameters
    ----------
    kind : str
        One of `QUANTIZED_TYPES`.
    raw : uint8[bytes]
        The whole tensor as stored; only the bytes of the rows asked for are touched.
    shape : (int, int)
        Rows and columns of the whole tensor.
    row_begin, row_end : int
        Rows to decode, at least one, by default all.

    Raises
    ------
    ValueError
        The type is none of these, or bytes, shape and rows do not belong together.
    """
    if kind not in _TYPES:
        raise ValueError(f"expected one of {', '.join(_TYPES)}, got {kind!r}")
    block, (n, k) = _TYPES[kind], shape
    blocks = -(-k // block.size)
    rows = _rows(raw, n, blocks * block.nbytes, row_begin, row_end)
    if k % block.size:
        raise ValueError(f"expected columns in multiples of {block.size} for {kind}, got {k}")
    fields = block.decode(rows.reshape(-1, block.nbytes))
    per_row: dict[str, Any] = {
        name: value.reshape(len(rows), -1) if isinstance(value, np.ndarray) else value
        for name, value in fields.items()
    }
    codebook = CODES_OF.get(kind)
    group = k // per_row["scales"].shape[1] if "scales" in per_row else block.size
    return BlockIntegers(group=group, superblock=block.size, codebook=codebook, **per_row)


def dequantize(
    kind: str,
    raw: U8,
    shape: tuple[int, int],
    row_begin: int = 0,
    row_end: int | None = None,
    out: F32 | None = None,
) -> F32:
    """The float32 values of rows of a tensor, float types included: float32[rows, k].

    Equal bit by bit to `gguf.quants.dequantize`. Parameters and errors as in `block_integers`;
    `out` (contiguous) takes the values if it is given.
    """
    if kind not in FLOAT_TYPES:
        return block_integers(kind, raw, shape, row_begin, row_end).dequantize(out)
    size = 4 if kind == "f32" else 2
    rows = _rows(raw, shape[0], shape[1] * size, row_begin, row_end)
    values: F32 = np.empty((len(rows), shape[1]), np.float32) if out is None else out
    if kind == "bf16":
        np.left_shift(rows.view("<u2"), np.uint32(16), out=values.view(np.uint32), dtype=np.uint32)
    else:
        values[...] = rows.view("<f4" if kind == "f32" else "<f2")
    return values


def _rows(raw: U8, n: int, row_bytes: int, begin: int, end: int | None) -> U8:
    end = n if end is None else end
    if raw.shape != (n * row_bytes,) or raw.dtype != np.uint8:
        raise ValueError(f"expected uint8[{n * row_bytes}], got {raw.dtype}{list(raw.shape)}")
    if not 0 <= begin < end <= n:
        raise ValueError(f"expected at least one row within 0..{n}, got {begin}..{end}")
    return raw[begin * row_bytes : end * row_bytes].reshape(end - begin, row_bytes)


# -- decoders: uint8[blocks, bytes] to fields of BlockIntegers, [blocks, ...] ----------------------


def _half(blocks: U8, at: int) -> F16:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float16, copy=False)


def _fields(packed: U8, bits: int, run: int) -> U8:
    """The `bits`-wide fields of runs of `run` bytes, in the order of their columns."""
    n, nbytes = packed.shape
    words = np.ascontiguousarray(packed).view(np.uint32)  # bits from the next byte are masked off
    mask = np.uint32(((1 << bits) - 1) * 0x01010101)
    places = np.empty((n, nbytes // run, 8 // bits), f"V{run}")  # whole runs are moved
    for i in range(8 // bits):
        field = (words >> np.uint32(i * bits)) & mask
        places[:, :, i] = field.view(f"V{run}")
    return places.view(np.uint8).reshape(n, -1)


def _q4_0(b: U8) -> dict[str, Any]:
    return {"d": _half(b, 0), "codes": _fields(b[:, 2:], 4, 16), "zero": 8}


def _q4_1(b: U8) -> dict[str, Any]:
    return {"d": _half(b, 0), "dmin": _half(b, 2), "codes": _fields(b[:, 4:], 4, 16)}


def _five_bits(high: U8, low: U8) -> U8:
    codes = np.unpackbits(high, axis=1, bitorder="little")  # bit c belongs to column c
    codes <<= 4
    codes |= _fields(low, 4, 16)
    return codes


def _q5_0(b: U8) -> dict[str, Any]:
    return {"d": _half(b, 0), "codes": _five_bits(b[:, 2:6], b[:, 6:]), "zero": 16}


def _q5_1(b: U8) -> dict[str, Any]:
    return {"d": _half(b, 0), "dmin": _half(b, 2), "codes": _five_bits(b[:, 4:8], b[:, 8:])}


def _q8_0(b: U8) -> dict[str, Any]:
    return {"d": _half(b, 0), "codes": b[:, 2:] ^ np.uint8(128), "zero": 128}


def _iq4_nl(b: U8) -> dict[str, Any]:
    return {"d": _half(b, 0), "codes": _fields(b[:, 2:], 4, 16)}


def _q2_k(b: U8) -> dict[str, Any]:
    """scales and mins, a nibble each [16] | two-bit codes [64] | d | dmin; groups of 16."""
    return {
        "scales": b[:, :16] & np.uint8(15),
        "mins": b[:, :16] >> 4,
        "codes": _fields(b[:, 16:80], 2, 32),
        "d": _half(b, 80),
        "dmin": _half(b, 82),
        "min_sign": -1,
    }


def _q3_k(b: U8) -> dict[str, Any]:
    """third bits [32] | two-bit codes [64] | sixteen 6-bit scales [12] | d; groups of 16."""
    codes = _fields(b[:, :32], 1, 32)
    codes <<= 2
    codes |= _fields(b[:, 32:96], 2, 32)
    scales = _fields(b[:, 104:108], 2, 4)
    scales <<= 4
    scales |= _fields(b[:, 96:104], 4, 8)
    signed = (scales - np.uint8(32)).view(np.int8)
    return {"codes": codes, "scales": signed, "d": _half(b, 108), "zero": 4}


def _six_bit_pairs(b: U8) -> tuple[U8, U8]:
    """Eight 6-bit scales and eight 6-bit mins out of twelve bytes.

    The first four of each are the low six bits of bytes 0-3 and 4-7. Of the last four, bytes 8-11
    hold the low four bits (scale in the low nibble) and the upper two bits of bytes 0-7 the rest.
    """
    low, last = b[:, :8], b[:, 8:]
    upper = (low >> 2) & np.uint8(0x30)
    first = low & np.uint8(63)
    scales = np.concatenate([first[:, :4], (last & np.uint8(15)) | upper[:, :4]], axis=1)
    mins = np.concatenate([first[:, 4:], (last >> 4) | upper[:, 4:]], axis=1)
    return scales, mins


def _q4_k(b: U8) -> dict[str, Any]:
    """d | dmin | 6-bit scales and mins [12] | codes [128]; groups of 32."""
    scales, mins = _six_bit_pairs(b[:, 4:16])
    return {
        "d": _half(b, 0),
        "dmin": _half(b, 2),
        "scales": scales,
        "mins": mins,
        "codes": _fields(b[:, 16:], 4, 32),
        "min_sign": -1,
    }


def _q5_k(b: U8) -> dict[str, Any]:
    """d | dmin | 6-bit scales and mins [12] | fifth bits [32] | low nibbles [128]; groups of 32."""
    scales, mins = _six_bit_pairs(b[:, 4:16])
    codes = _fields(b[:, 16:48], 1, 32)
    codes <<= 4
    codes |= _fields(b[:, 48:], 4, 32)
    return {
        "d": _half(b, 0),
        "dmin": _half(b, 2),
        "scales": scales,
        "mins": mins,
        "codes": codes,
        "min_sign": -1,
    }


def _q6_k(b: U8) -> dict[str, Any]:
    """low nibbles [128] | upper two bits [64] | 8-bit scales [16] | d; groups of 16."""
    codes = _fields(b[:, 128:192], 2, 32)
    codes <<= 4
    codes |= _fields(b[:, :128], 4, 64)
    scales = np.ascontiguousarray(b[:, 192:208]).view(np.int8)
    return {"codes": codes, "scales": scales, "d": _half(b, 208), "zero": 32}


_TYPES = {
    "q4_0": BlockType(32, 18, _q4_0),
    "q4_1": BlockType(32, 20, _q4_1),
    "q5_0": BlockType(32, 22, _q5_0),
    "q5_1": BlockType(32, 24, _q5_1),
    "q8_0": BlockType(32, 34, _q8_0),
    "iq4_nl": BlockType(32, 18, _iq4_nl),
    "q2_k": BlockType(256, 84, _q2_k),
    "q3_k": BlockType(256, 110, _q3_k),
    "q4_k": BlockType(256, 144, _q4_k),
    "q5_k": BlockType(256, 176, _q5_k),
    "q6_k": BlockType(256, 210, _q6_k),
    **{kind: BlockType(*of) for kind, of in CODEBOOKS.items()},
}
QUANTIZED_TYPES = tuple(_TYPES)
