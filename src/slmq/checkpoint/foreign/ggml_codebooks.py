"""GGUF's blocks whose codes are numbers of a table, decoded to the integers that they stand for.

Layouts are those of llama.cpp's ggml-common.h and the `gguf` package's quants.py (both MIT). Types
IQ1, IQ2 and IQ3 number the rows of a grid: four or eight small integers at once. The grids are
constants of the format, found by its author's search, and lie in grids.npz.

Each decoder takes uint8[blocks, bytes] and returns the fields of `BlockIntegers`, [blocks, ...].
Codes are stored plus `zero`, or as places of a table that one of our formats has, too; where a
type's own scales are fractions, `d` holds the unit.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from slmq.formats import FLOAT4, NORMAL4

__all__ = ["CODEBOOKS", "E2M1_DOUBLED", "IQ4_VALUES"]

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
I8 = npt.NDArray[np.int8]

IQ4_VALUES = np.array(NORMAL4, np.int8)
# Twice the values of four-bit floats, E2M1 (OCP Microscaling Formats 1.0).
E2M1_DOUBLED = np.array(FLOAT4, np.int8)


@cache
def _grid(name: str) -> I8:
    """The rows of a grid: int8[rows, 4 or 8]."""
    with (files(__package__) / "grids.npz").open("rb") as file, np.load(file) as grids:
        grid: I8 = grids[name]
    return grid


def _field(b: U8, begin: int, end: int, dtype: str) -> Any:
    """Bytes of every block as little-endian numbers."""
    return np.ascontiguousarray(b[:, begin:end]).view(dtype)


def _unit(b: U8, at: int, unit: float) -> F32:
    """A float16 of every block times a power of two, in float32, which loses nothing."""
    with np.errstate(invalid="ignore"):
        wide: F32 = _field(b, at, at + 2, "<f2").astype(np.float32) * np.float32(unit)
    return wide


def _nibbles(packed: U8, run: int) -> U8:
    """Nibbles of runs of `run` bytes: all low ones of a run, then all high ones."""
    by_run = packed.reshape(len(packed), -1, 1, run)
    both = np.concatenate([by_run & np.uint8(15), by_run >> 4], axis=2)
    return both.reshape(len(packed), -1)


def _pairs(packed: U8) -> U8:
    """Nibbles in the order of bytes, the low one of each first."""
    both = np.stack([packed & np.uint8(15), packed >> 4], axis=-1)
    return both.reshape(len(packed), -1)


def _odd(scales: Any) -> I8:
    """2 s + 1 of small unsigned scales."""
    odd: I8 = (2 * scales.astype(np.int8) + 1).astype(np.int8)
    return odd


def _plus(values: I8, zero: int) -> U8:
    """Signed integers as codes: values + zero, which fit a byte."""
    codes: U8 = values.view(np.uint8) + np.uint8(zero)  # wraps, as wanted
    return codes.reshape(len(values), -1)


def _signed(values: I8, bits: U8) -> I8:
    """Values [blocks, runs, 8] with the sign of bit j of the run's byte [blocks, runs]."""
    negative = np.unpackbits(bits[..., None], axis=-1, bitorder="little").view(np.int8)
    return values * (1 - 2 * negative)


def _even_signs(seven: Any) -> U8:
    """Signs of eight values out of seven bits: the number of minus signs is even."""
    low: U8 = seven.astype(np.uint8)
    folded = low ^ (low >> 4)
    folded ^= folded >> 2
    folded ^= folded >> 1
    signs: U8 = low | ((folded & np.uint8(1)) << 7)
    return signs


# -- four bits -------------------------------------------------------------------------------------


def _iq4_xs(b: U8) -> dict[str, Any]:
    """d | upper two bits of eight scales [2] | lower four [4] | codes [128]; groups of 32."""
    high = _field(b, 2, 4, "<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    scales = _pairs(b[:, 4:8]) | ((high & 3).astype(np.uint8) << 4)
    return {
        "d": _unit(b, 0, 1.0),
        "scales": (scales - np.uint8(32)).view(np.int8),
        "codes": _nibbles(b[:, 8:], 16),
    }


def _mxfp4(b: U8) -> dict[str, Any]:
    """A power of two [1] | E2M1 codes [16]; the scale is half of it, since values are doubled."""
    exponent = b[:, 0].astype(np.uint32)
    small = np.uint32(0x00200000) << exponent.clip(max=1)  # subnormal numbers
    bits = np.where(exponent < 2, small, (exponent.clip(min=1) - 1) << 23)
    return {
        "d": bits.astype(np.uint32).view(np.float32),
        "codes": _nibbles(b[:, 1:], 16),
    }


def _nvfp4(b: U8) -> dict[str, Any]:
    """Scales of 16 columns [4], eight-bit floats (E4M3) | E2M1 codes [32]; values are doubled.

    (NVIDIA, "Introducing NVFP4", 2025.) The number that E4M3 has for NaN is 0 here.
    """
    stored = b[:, :4]
    exponent, fraction = (stored >> 3) & np.uint8(15), (stored & np.uint8(7)).astype(np.float32)
    normal = np.ldexp(8 + fraction, exponent.astype(np.int32) - 11)
    scales = np.where(exponent == 0, np.ldexp(fraction, -10), normal).astype(np.float32)
    scales[stored == 0x7F] = 0
    return {
        "d": np.ones((len(b), 1), np.float32),
        "scales": scales,
        "codes": _plus(E2M1_DOUBLED[_nibbles(b[:, 4:], 8)], 128),
        "zero": 128,
    }


# -- four values, three and two --------------------------------------------------------------------


def _tq1_0(b: U8) -> dict[str, Any]:
    """Five base-3 digits a byte [48], four in the last [4] | d. A byte is a fraction of 256."""

    def digits(packed: U8, count: int, run: int) -> U8:
        powers = np.array([1, 3, 9, 27, 81], np.uint8)[:count, None]
        shifted = packed.reshape(len(packed), -1, 1, run) * powers  # wraps: earlier digits leave
        return ((shifted.astype(np.uint16) * 3) >> 8).astype(np.uint8).reshape(len(packed), -1)

    codes = [digits(b[:, :32], 5, 32), digits(b[:, 32:48], 5, 16), digits(b[:, 48:52], 4, 4)]
    ones = np.concatenate(codes, axis=1)
    return {"d": _unit(b, 52, 1.0), "codes": ones, "zero": 1}


def _tq2_0(b: U8) -> dict[str, Any]:
    """Two-bit codes [64] | d."""
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    codes = (b[:, :64].reshape(len(b), 2, 1, 32) >> shifts) & np.uint8(3)
    return {"d": _unit(b, 64, 1.0), "codes": codes.reshape(len(b), -1), "zero": 1}


def _q2_0(b: U8) -> dict[str, Any]:
    """d | two-bit codes of 64 columns [16]: -1, 0, 1 and 2."""
    codes = (b[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8)) & np.uint8(3)
    return {"d": _unit(b, 0, 1.0), "codes": codes.reshape(len(b), -1), "zero": 1}


def _q1_0(b: U8) -> dict[str, Any]:
    """d | signs of 128 columns [16]: 1 means d, 0 means -d."""
    bits = np.unpackbits(b[:, 2:], axis=1, bitorder="little")
    return {"d": _unit(b, 0, 1.0), "codes": 2 * bits, "zero": 1}


# -- grids -----------------------------------------------------------------------------------------


def _iq2_xxs(b: U8) -> dict[str, Any]:
    """d | of 32 columns: four rows of the grid [4], four times seven signs and a scale [4]."""
    words = _field(b, 2, 66, "<u4").reshape(len(b), 8, 2)
    rows = np.ascontiguousarray(words[..., 0]).view(np.uint8)
    seven = (words[..., 1:] >> np.arange(0, 28, 7, dtype=np.uint32)) & 127
    values = _signed(_grid("iq2_xxs")[rows], _even_signs(seven).reshape(len(b), -1))
    return {
        "d": _unit(b, 0, 0.125),
        "scales": _odd(words[..., 1] >> 28),
        "codes": _plus(values, 128),
        "zero": 128,
    }


def _iq2_xs(b: U8) -> dict[str, Any]:
    """d | of 8 columns: nine bits of row, seven of signs [64] | scales, a nibble each [8]."""
    words = _field(b, 2, 66, "<u2")
    values = _signed(_grid("iq2_xs")[words & 511], _even_signs(words >> 9))
    return {
        "d": _unit(b, 0, 0.125),
        "scales": _odd(_pairs(b[:, 66:])),
        "codes": _plus(values, 128),
        "zero": 128,
    }


def _iq2_s(b: U8) -> dict[str, Any]:
    """d | rows, low bits [32] | signs [32] | rows, two more bits [8] | scales, nibbles [8]."""
    high = (b[:, 66:74, None] >> np.arange(0, 8, 2, dtype=np.uint8)) & np.uint8(3)
    rows = b[:, 2:34] | high.reshape(len(b), -1).astype(np.uint16) << 8
    values = _signed(_grid("iq2_s")[rows], b[:, 34:66])
    return {
        "d": _unit(b, 0, 0.125),
        "scales": _odd(_pairs(b[:, 74:])),
        "codes": _plus(values, 128),
        "zero": 128,
    }


def _iq3_xxs(b: U8) -> dict[str, Any]:
    """d | rows, of 4 columns each [64] | of 32: four times seven signs and a scale [32]."""
    words = _field(b, 66, 98, "<u4")
    seven = (words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32)) & 127
    halves = (_grid("iq3_xxs") // 2)[b[:, 2:66]].reshape(len(b), 32, 8)  # all are even
    values = _signed(halves, _even_signs(seven).reshape(len(b), -1))
    return {
        "d": _unit(b, 0, 0.5),
        "scales": _odd(words >> 28),
        "codes": _plus(values, 32),
        "zero": 32,
    }


def _iq3_s(b: U8) -> dict[str, Any]:
    """d | rows, low bits [64] | ninth bits [8] | signs [32] | scales, a nibble each [4]."""
    ninth = np.unpackbits(b[:, 66:74], axis=1, bitorder="little").astype(np.uint16)
    values = _grid("iq3_s")[b[:, 2:66] | ninth << 8].reshape(len(b), 32, 8)
    return {
        "d": _unit(b, 0, 1.0),
        "scales": _odd(_pairs(b[:, 106:])),
        "codes": _plus(_signed(values, b[:, 74:106]), 32),
        "zero": 32,
    }


def _eighths(rows: U16, minus: Any) -> U8:
    """Eight times the grid's -1, 0, 1, moved by an eighth up or down, as codes of six bits."""
    moved = 8 * _grid("iq1_s")[rows] + np.where(minus, -1, 1)[..., None].astype(np.int8)
    return _plus(moved.astype(np.int8), 32)


def _iq1_s(b: U8) -> dict[str, Any]:
    """d | rows, low bits [32] | of 32 columns: four times three bits, scale, direction [16]."""
    words = _field(b, 34, 50, "<u2")
    high = (words[..., None] >> np.arange(0, 12, 3, dtype=np.uint16)) & 7
    rows = b[:, 2:34] | high.reshape(len(b), -1) << 8
    return {
        "d": _unit(b, 0, 0.125),
        "scales": _odd((words >> 12) & 7),
        "codes": _eighths(rows, np.repeat(words >> 15, 4, axis=1)),
        "zero": 32,
    }


def _iq1_m(b: U8) -> dict[str, Any]:
    """rows, low bits [32] | a nibble of three bits and direction each [16] | scales, d [8].

    Four words hold four scales of three bits each, and a quarter of d in their upper bits.
    """
    words = _field(b, 48, 56, "<u2")
    quarters = (words >> 12) << np.arange(0, 16, 4, dtype=np.uint16)
    d = np.bitwise_or.reduce(quarters, axis=1, keepdims=True).astype("<u2").view("<f2")
    scales = (words[..., None] >> np.arange(0, 12, 3, dtype=np.uint16)) & 7
    nibbles = _pairs(b[:, 32:48])
    rows = b[:, :32] | (nibbles & np.uint8(7)).astype(np.uint16) << 8
    with np.errstate(invalid="ignore"):
        unit = d.astype(np.float32) * np.float32(0.125)
    return {
        "d": unit,
        "scales": _odd(scales.reshape(len(b), -1)),
        "codes": _eighths(rows, nibbles >> 3),
        "zero": 32,
    }


CODEBOOKS = {
    "iq4_xs": (256, 136, _iq4_xs),
    "mxfp4": (32, 17, _mxfp4),
    "tq1_0": (256, 54, _tq1_0),
    "tq2_0": (256, 66, _tq2_0),
    "q1_0": (128, 18, _q1_0),
    "q2_0": (64, 18, _q2_0),
    "nvfp4": (64, 36, _nvfp4),
    "iq1_s": (256, 50, _iq1_s),
    "iq1_m": (256, 56, _iq1_m),
    "iq2_xxs": (256, 66, _iq2_xxs),
    "iq2_xs": (256, 74, _iq2_xs),
    "iq2_s": (256, 82, _iq2_s),
    "iq3_xxs": (256, 98, _iq3_xxs),
    "iq3_s": (256, 110, _iq3_s),
}
"""Columns and bytes of a block, and its decoder, for every type."""
